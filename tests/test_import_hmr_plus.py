"""mmhuman3d's demo output and HumanData: object arrays are read safely, the two boxes mean different crops."""

import numpy as np
import pytest
import tiny_import as ti

from bodies import InputError
from datamodules.convert.hmr_plus import read_hmr_plus

TRUE = ti.truth(8)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return ti.write_frames(tmp_path_factory.mktemp("frames") / "frames.h5", TRUE)


def tight(margin: float) -> np.ndarray:
    """(x, y, w, h) of boxes twice as high as wide that become the true square boxes after the margin."""
    height = TRUE.box_px[:, 2] / margin
    width = height / 2
    return np.stack([TRUE.box_px[:, 0] - width / 2, TRUE.box_px[:, 1] - height / 2, width, height], axis=1)


def demo() -> dict[str, object]:
    x, y, width, height = tight(1.25).T
    smpl = {
        "body_pose": TRUE.pose[:, 3:].reshape(-1, 23, 3),
        "global_orient": TRUE.pose[:, :3],
        "betas": TRUE.betas,
    }
    return {
        "smpl": smpl,
        "verts": np.zeros((ti.ROWS, 10, 3), np.float32),
        "pred_cams": TRUE.crop_camera(),
        "bboxes_xyxy": np.stack([x, y, x + width, y + height, np.ones(ti.ROWS)], axis=1),
        "image_path": [f"demo_result/images/{name}" for name in TRUE.names],
        "person_id": np.arange(ti.ROWS),
        "frame_id": np.arange(ti.ROWS),
    }


def run(tmp_path, frames, arrays):
    path = tmp_path / "inference_result.npz"
    np.savez_compressed(path, **{name: value for name, value in arrays.items() if value is not None})
    return ti.run_import(tmp_path, read_hmr_plus(path), frames)


def human_data() -> dict[str, object]:
    score = np.ones((ti.ROWS, 1))
    return {
        "__key_strict__": np.array(False),
        "__data_len__": np.array(ti.ROWS),
        "__keypoints_compressed__": np.array(True),
        **{name: value for name, value in demo().items() if name in ("smpl", "image_path")},
        "bbox_xywh": np.concatenate([tight(1.0), score], axis=1),
        "meta": {"gender": np.array(["neutral"] * ti.ROWS)},
        "camera": TRUE.crop_camera(),
        "config": "pw3d",
    }


MATRICES = {
    "smpl": None,
    "body_pose": TRUE.rotations[:, 1:],
    "global_orient": TRUE.rotations[:, 0],
    "betas": TRUE.betas,
}


@pytest.mark.parametrize("arrays", [demo(), human_data(), demo() | MATRICES])
def test_both_forms_give_the_truth(tmp_path, frames, arrays):
    run(tmp_path, frames, arrays)
    ti.assert_is_truth(tmp_path, frames, TRUE)


def test_trap_only_the_demo_enlarges_its_boxes(tmp_path, frames):
    """Read with the other margin, people would be a fifth too near."""
    boxes = human_data()["bbox_xywh"]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], axis=1)
    report = run(tmp_path, frames, demo() | {"bboxes_xyxy": corners})
    assert report.agreement.size_ratio == pytest.approx(1 / 1.25, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smpl": None}, "has no 'body_pose'"),
        ({"smpl": {"body_pose": np.zeros((ti.ROWS, 21, 3))}}, "has no 'global_orient'"),
        (
            {"smpl": {"body_pose": np.zeros((ti.ROWS, 21, 3)), "global_orient": TRUE.pose[:, :3], "betas": TRUE.betas}},
            "SMPL-X's 21 joints",
        ),
        ({"image_path": None}, "has no 'image_path'"),
        ({"pred_cams": None}, r"has no 'pred_cams' \(or camera\)"),
        ({"bboxes_xyxy": None}, r"has no 'bboxes_xyxy' \(or bbox_xywh\)"),
        ({"bboxes_xyxy": tight(1.0) * [1, 1, 0.01, 0.01]}, r"corners \(x1, y1, x2, y2\) was expected"),
        ({"pred_cams": np.full((ti.ROWS, 3), np.nan)}, "no prediction|none of|not finite"),
    ],
)
def test_bad_files_are_named(tmp_path, frames, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, frames, demo() | changes)


def test_the_json_of_the_test_script_has_no_cameras(tmp_path):
    with pytest.raises(InputError, match="has neither cameras nor image names"):
        read_hmr_plus(tmp_path / "result_keypoints.json")
