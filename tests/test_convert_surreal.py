"""SURREAL: small sets in exactly the downloaded format, written by code that shares nothing with the converter."""

import shutil
from pathlib import Path

import body_oracle
import numpy as np
import pytest
import torch
from tiny_surreal import MARKED, draw, stored_px, write_clip, write_info, write_video

from bodies import BodyParameters, InputError, load_body_model
from datamodules.convert.summary import RunOptions
from datamodules.convert.surreal import convert_surreal
from datamodules.convert.surreal_files import read_clip
from datamodules.store import FrameStore

QUIET = RunOptions(workers=2, quiet=True)
LONG, SHORT = "run0/01_01/01_01_c0001", "run1/ung_122_57/ung_122_57_c0002"


def disc_center_px(image: np.ndarray) -> np.ndarray:
    weight = np.clip(image.mean(axis=2) - 90, 0, None)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("surreal")
    body_oracle.write_models(root / "smpl")
    cmu = root / "cmu" / "test"
    truth = {LONG: write_clip(cmu, LONG, "female", 6), SHORT: write_clip(cmu, SHORT, "male", 1)}
    write_clip(root / "cmu" / "val", LONG, "female", 2)
    return root, truth


@pytest.fixture
def root(made, tmp_path) -> Path:
    shutil.copytree(made[0], tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def truth(made) -> dict:
    return made[1]


def convert(root: Path, out: Path, **changes):
    options = {"split": "test", "body": root / "smpl", "options": QUIET, **changes}
    return convert_surreal(root, out, **options)


def reasons(summary) -> dict[str, str]:
    return {entry.name: entry.reason for entry in summary.skipped}


def test_rows_project_to_where_the_body_is_in_the_mirrored_image(root, truth, tmp_path):
    """Traps: a left-handed camera, zrot and the world's axes, the root's pivot, gender codes, clips of one frame."""
    convert(root, tmp_path / "out.h5")
    store = FrameStore(tmp_path / "out.h5")
    assert len(store) == 7
    for index in range(len(store)):
        row = store.read(index)
        clip = truth["/".join(row.row_id.split("/")[2:5])]
        expected = stored_px(clip["vertices"][row.frame], clip["camera"])
        expected[:, 0] = 320 - expected[:, 0]
        model = load_body_model(root / "smpl", row.gender)
        numbers = (torch.tensor(part)[None] for part in (row.pose, row.betas, row.transl))
        mesh = model(BodyParameters.from_axis_angle(*numbers))
        camera = row.camera.batched()
        # Half a pixel is promised; the file keeps single precision.
        np.testing.assert_allclose(camera.project(mesh.vertices)[0].numpy(), expected, atol=0.01)
        wrist_px = camera.project(mesh.joints)[0, MARKED].numpy()
        assert np.linalg.norm(disc_center_px(store.read_image(index).pixels) - wrist_px) < 0.3


def test_ground_truth_comes_back(root, truth, tmp_path):
    """Joints of the row, brought back to the world by hand, are those of the file; the limbs' pose is as it was."""
    convert(root, tmp_path / "out.h5")
    store = FrameStore(tmp_path / "out.h5")
    for index in range(len(store)):
        row = store.read(index)
        clip = truth["/".join(row.row_id.split("/")[2:5])]
        assert row.gender == ("female" if clip["gender"][0, 0] == 0 else "male")
        np.testing.assert_allclose(row.pose[3:], clip["pose"][3:, row.frame], atol=1e-6)
        np.testing.assert_allclose(row.betas, clip["shape"][:, row.frame], atol=1e-6)
        model = load_body_model(root / "smpl", row.gender)
        numbers = (torch.tensor(part)[None] for part in (row.pose, row.betas, row.transl))
        x, y, z = model(BodyParameters.from_axis_angle(*numbers)).joints[0].numpy().T
        cx, cy, cz = clip["camera"]
        # Mirrored back, x is -x; then the stored camera's map is undone.
        world = np.stack([cx - z, y + cy, cz + x], axis=-1)
        np.testing.assert_allclose(world, clip["true_joints"][row.frame], atol=1e-4)


def test_boxes_hold_the_joints(root, truth, tmp_path):
    convert(root, tmp_path / "out.h5")
    row = FrameStore(tmp_path / "out.h5").read(0)
    joints_px = stored_px(truth[LONG]["true_joints"][0], truth[LONG]["camera"])
    joints_px[:, 0] = 320 - joints_px[:, 0]
    low, high = joints_px.min(axis=0).clip(0), joints_px.max(axis=0).clip(None, (320, 240))
    np.testing.assert_allclose(row.box_px, [*(low + high) / 2, 1.3 * (high - low).max()], atol=0.01)


def test_splits_strides_and_folders(root, tmp_path):
    """The validation split is in the folder val; the folder cmu itself will do as well."""
    assert convert_surreal(root / "cmu", tmp_path / "v.h5", "validation", root / "smpl", options=QUIET).rows == 2
    assert FrameStore(tmp_path / "v.h5").split == "validation"
    convert(root, tmp_path / "out.h5", every=4)
    assert FrameStore(tmp_path / "out.h5").column("frame").tolist() == [0, 4, 0]
    with pytest.raises(InputError, match="there are no clips train/run0"):
        convert(root, tmp_path / "none.h5", split="train")


def test_a_dry_run_counts_and_writes_nothing(root, tmp_path):
    summary = convert(root, tmp_path / "out.h5", options=RunOptions(1, dry_run=True, quiet=True))
    assert (summary.state, summary.rows) == ("planned", 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_frames_with_zero_joints_or_nan_are_skipped(root, truth, tmp_path):
    content = {key: truth[LONG][key].copy() for key in ("joints2D", "joints3D", "pose")}
    content["joints2D"][..., 1] = 0
    content["joints3D"][:, 7, 2] = 0
    content["pose"][30, 3] = np.nan
    write_info(root / "cmu" / "test", LONG, {**plain(truth[LONG]), **content})
    summary = convert(root, tmp_path / "out.h5")
    expected = {1: "its joints are zero", 2: "its joints are zero", 3: "a number is not finite"}
    assert reasons(summary) == {f"surreal/test/{LONG}/{k:03d}/0": reason for k, reason in expected.items()}
    assert summary.rows == 4


def plain(clip: dict) -> dict:
    return {key: value for key, value in clip.items() if key not in ("vertices", "true_joints", "camera")}


def shifted(key: str, by: float):
    return lambda content: {key: content[key] + np.float32(by)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: {"shape": 9 * content["shape"]}, "joints3D do not fit the pose of the gendered body"),
        (lambda content: {"zrot": 0 * content["zrot"]}, "joints3D do not fit the pose of the gendered body"),
        (shifted("joints2D", 9), "joints2D do not fit joints3D and the camera"),
        (lambda content: {"joints2D": 320 - content["joints2D"]}, "joints2D do not fit joints3D and the camera"),
        (lambda content: {"pose": content["pose"][:70]}, r"pose is float32 of shape (70, 6), expected was (72, 6)"),
        (lambda content: {"gender": content["gender"] + 2}, "gender holds [2.0], expected all 0 or all 1"),
        (lambda content: {"gender": np.zeros((0, 1), np.uint8)}, "it has no frames"),
        (lambda content: {"camLoc": content["camLoc"] * np.float32(np.nan)}, "a number is not finite"),
    ],
)  # fmt: skip
def test_clips_that_do_not_fit_are_skipped_by_name(root, truth, tmp_path, change, reason):
    content = plain(truth[LONG])
    write_info(root / "cmu" / "test", LONG, {**content, **change(content)})
    summary = convert(root, tmp_path / "out.h5")
    assert summary.rows == 1
    assert summary.skipped
    for name, text in reasons(summary).items():
        assert name.startswith(f"surreal/test/{LONG}")
        assert text.startswith(reason)


def test_missing_keys_are_named(root, truth):
    content = plain(truth[LONG])
    del content["zrot"]
    write_info(root / "cmu" / "test", LONG, content)
    with pytest.raises(InputError, match=r"_info\.mat: not an info file of SURREAL, it lacks zrot"):
        read_clip(root / "cmu" / "test" / f"{LONG}_info.mat")


def test_damaged_and_missing_files_skip_their_clip(root, tmp_path):
    folder = root / "cmu" / "test"
    info, video = folder / f"{LONG}_info.mat", folder / f"{SHORT}.mp4"
    whole = info.read_bytes()
    info.write_bytes(whole[: len(whole) // 2])
    assert reasons(convert(root, tmp_path / "1.h5"))[f"surreal/test/{LONG}"].startswith("not a whole MATLAB file")
    info.unlink()
    assert reasons(convert(root, tmp_path / "2.h5")) == {f"surreal/test/{LONG}": "the clip has no info file"}
    info.write_bytes(whole)
    video.unlink()
    assert reasons(convert(root, tmp_path / "3.h5")) == {f"surreal/test/{SHORT}": "the clip has no video"}


def test_videos_of_another_length_or_size_skip_their_clip(root, tmp_path):
    video = root / "cmu" / "test" / f"{LONG}.mp4"
    frames = [np.zeros((240, 320, 3), np.uint8)] * 6
    write_video(video, frames[:5])
    summary = convert(root, tmp_path / "1.h5")
    assert set(reasons(summary).values()) == {"the video has another number of frames than the info file"}
    assert (summary.rows, len(summary.skipped)) == (1, 6)
    write_video(video, frames, (160, 120))
    assert set(reasons(convert(root, tmp_path / "2.h5")).values()) == {"the video is damaged or not 320 x 240"}
    video.write_bytes(video.read_bytes()[:200])
    assert convert(root, tmp_path / "3.h5").rows == 1


def test_nothing_left_is_an_error(root, tmp_path):
    shutil.rmtree(root / "cmu" / "test" / "run1")
    (root / "cmu" / "test" / f"{LONG}_info.mat").write_bytes(b"no")
    with pytest.raises(InputError, match="all of the source was skipped, the first because not a whole MATLAB file"):
        convert(root, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_h264_as_in_the_real_videos(root, truth, tmp_path):
    """The same rows and nearly the same pixels from h264, yuv420p, crf 23, with its reordered frames."""
    av = pytest.importorskip("av")
    clip = truth[LONG]
    positions = stored_px(clip["true_joints"], clip["camera"])[:, MARKED]
    with av.open(str(root / "cmu" / "test" / f"{LONG}.mp4"), "w") as container:
        stream = container.add_stream(
            "libx264", rate=30, width=320, height=240, pix_fmt="yuv420p", options={"crf": "23"}
        )
        for position in positions:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(position), format="bgr24")))
        container.mux(stream.encode())
    convert(root, tmp_path / "out.h5")
    store = FrameStore(tmp_path / "out.h5")
    assert len(store) == 7
    for index, position in enumerate(positions):
        center = disc_center_px(store.read_image(index).pixels)
        assert np.linalg.norm(center - (320 - position[0], position[1])) < 0.3
