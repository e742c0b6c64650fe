"""The synthetic set: what is stored is what is seen, and the same set comes out however it is made."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from bodies import BodyParameters, InputError, load_body_model
from datamodules import synthetic, synthetic_frames
from datamodules.amass import draw_amass_poses, upright
from datamodules.backgrounds import made_background, photo_background
from datamodules.lighting import EnvironmentLight, draw_light, harmonics
from datamodules.occluders import LEAST_VISIBLE, draw_occluders
from datamodules.sensor import photographed
from datamodules.store import FrameStore
from datamodules.synthetic import synthesize
from datamodules.synthetic_frames import KEYPOINT_DROPPED, KEYPOINT_NOISE_PX, FrameMaker, SyntheticSettings
from datamodules.synthetic_frames import detect_keypoints as detect
from datamodules.synthetic_subjects import Wardrobe
from datamodules.texture_canvas import make_canvas, make_lattice, sample_image
from datamodules.texture_damage import damaged_texture
from datamodules.texture_patterns import PATTERNS, draw_pattern
from datamodules.viewpoints import CLEARANCE_M, LEAST_INSIDE, draw_view, project
from renderers import make_rasterizer

TINY = SyntheticSettings(frames=6, subjects=2, body="standin-tiny", image_size=(96, 80), seed=3)


@pytest.fixture(scope="module")
def body():
    return load_body_model("standin-tiny")


@pytest.fixture(scope="module")
def full_body():
    return load_body_model("standin")


@pytest.fixture(scope="module")
def maker():
    return FrameMaker(TINY)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "train.h5"
    return synthesize(path, TINY, workers=0, quiet=True)


def stored_body(frame, body):
    numbers = (torch.tensor(part)[None] for part in (frame.pose, frame.betas, frame.transl))
    return body(BodyParameters.from_axis_angle(*numbers))


# --- The set as a whole


def test_the_reader_takes_the_file(store):
    assert (len(store), store.dataset, store.split, store.body_model) == (6, "synthetic", "train", "standin-tiny")
    assert [store.read(row).subject for row in range(6)] == [0, 1, 0, 1, 0, 1]
    piece = store.read_image(5)
    assert piece.pixels.shape == (80, 96, 3)
    assert piece.size_px == (96, 80)
    for subject in range(2):
        assert store.read_texture(subject).rgba.shape == (1229, 4)


def test_any_number_of_processes_makes_the_same_file(store, tmp_path):
    path = tmp_path / "parallel.h5"
    synthesize(path, TINY, workers=2, quiet=True)
    assert path.read_bytes() == store.path.read_bytes()


def test_a_frame_depends_on_its_number_alone(maker):
    longer = FrameMaker(replace(TINY, frames=1000))
    for number in (4, 0):  # in another order, too
        here, there = maker.frame(number), longer.frame(number)
        assert here.image == there.image
        np.testing.assert_array_equal(here.row.pose, there.row.pose)
        np.testing.assert_array_equal(here.row.detected_keypoints_px, there.row.detected_keypoints_px)


@pytest.mark.parametrize("after", ["four frames", "one texture"])
def test_an_interrupted_run_is_gone_on_with(store, tmp_path, monkeypatch, after):
    path, made = tmp_path / "resumed.h5", []
    limit, owner, name = {"four frames": (4, FrameMaker, "frame"), "one texture": (1, Wardrobe, "given_texture")}[after]
    plain = getattr(owner, name)

    def fails_after(self, number):
        if len(made) == limit:
            raise KeyboardInterrupt
        made.append(number)
        return plain(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails_after)
        with pytest.raises(KeyboardInterrupt):
            synthesize(path, TINY, workers=0, quiet=True)
    assert not path.exists()
    with pytest.raises(InputError, match="seed"):
        synthesize(path, replace(TINY, seed=4), workers=0, quiet=True)

    def is_new(self, number):
        assert number not in made
        return plain(self, number)

    monkeypatch.setattr(owner, name, is_new)
    synthesize(path, TINY, workers=0, quiet=True)
    assert path.read_bytes() == store.path.read_bytes()


def test_splits_and_seeds_share_no_subject_and_no_posture(maker):
    others = [
        FrameMaker(replace(TINY, **change)) for change in ({"split": "test"}, {"split": "validation"}, {"seed": 4})
    ]
    makers = [maker, *others]
    names = [make.settings.subject_name(number) for make in makers for number in range(2)]
    assert len(set(names)) == len(names)
    subjects = [make.wardrobe.subject(number) for make in makers for number in range(2)]
    assert len({subject.colors.tobytes() for subject in subjects}) == len(subjects)
    assert len({subject.betas.tobytes() for subject in subjects}) == len(subjects)
    poses = [make.frame(number).row.pose[3:].tobytes() for make in makers for number in range(2)]
    assert len(set(poses)) == len(poses)


def test_a_subject_keeps_its_shape_nearly(store):
    betas = np.stack([store.read(row).betas for row in range(6)])
    within = np.abs(betas[[0, 1, 2, 3]] - betas[[2, 3, 4, 5]]).mean()
    assert 0 < within < np.abs(betas[0::2] - betas[1::2]).mean() / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames 0"),
        ({"subjects": 0}, "subjects 0"),
        ({"seed": -1}, "seed -1"),
        ({"image_size": (96, 8)}, "image size"),
        ({"texture_px": 1}, "texture size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(TINY, **change)


def test_a_negative_number_of_workers_is_refused(tmp_path):
    with pytest.raises(InputError, match="workers -1"):
        synthesize(tmp_path / "out.h5", TINY, workers=-1, quiet=True)


@pytest.mark.parametrize("option", ["amass", "textures", "backgrounds"])
def test_folders_that_cannot_be_used_are_refused_by_name(tmp_path, option):
    for folder, cause in ((tmp_path / "missing", "no such"), (tmp_path, "no ")):
        with pytest.raises(InputError, match=f"{folder.name}: .*{cause}"):
            synthesize(tmp_path / "out.h5", replace(TINY, **{option: folder}), workers=0, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_texture_images_need_a_uv_layout(tmp_path):
    cv2.imwrite(str(tmp_path / "texture.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="UV"):
        FrameMaker(replace(TINY, textures=tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_photo_is_named(tmp_path, workers):
    (tmp_path / "photo.jpg").write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        synthesize(tmp_path / "out.h5", replace(TINY, backgrounds=tmp_path), workers=workers, quiet=True)
    assert str(caught.value) == f"{tmp_path / 'photo.jpg'}: it cannot be read as an image"
    assert not (tmp_path / "out.h5").exists()


# --- What is stored is what is seen


def test_the_stored_body_is_where_the_image_shows_it(monkeypatch, tmp_path, body):
    """A body as bright as can be before black, without occluders and sensor, found again in the decoded JPEG."""
    black = np.zeros((320, 320, 3), np.uint8)
    white = EnvironmentLight(np.eye(9, 3, dtype=np.float32)[:, [0, 0, 0]] / 0.282095)
    monkeypatch.setattr(synthetic_frames, "made_background", lambda rng, width, height: black)
    monkeypatch.setattr(synthetic_frames, "draw_light", lambda *_: white)
    monkeypatch.setattr(synthetic_frames, "draw_occluders", lambda rng, image, person, box: (image, person))
    monkeypatch.setattr(synthetic_frames, "photographed", lambda rng, image: image)
    maker = FrameMaker(replace(TINY, frames=8, image_size=(320, 320)))
    for number in range(2):
        maker.wardrobe.subject(number).colors[:] = 255
    monkeypatch.setattr(synthetic, "FrameMaker", lambda _: maker)
    store = synthesize(tmp_path / "white.h5", maker.settings, workers=0, quiet=True)
    for row in range(8):
        frame, shown = store.read(row), store.read_image(row).pixels.min(axis=-1) > 127
        mesh = stored_body(frame, body)
        expected = make_rasterizer("cpu")(mesh.vertices, body.faces, frame.camera.batched(), 320, 320).mask[0].numpy()
        # The outline is averaged over 4 samples a pixel and passes through JPEG: a pixel of it may fall to either side.
        assert not (shown & ~cv2.dilate(expected.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)).any()
        assert not (expected & ~cv2.dilate(shown.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)).any()
        assert expected.sum() > 500


def test_keypoints_joints_and_box_are_those_of_the_stored_body(store, body):
    for row in range(len(store)):
        frame = store.read(row)
        mesh, camera = stored_body(frame, body), frame.camera.batched()
        # float32 at a few metres, focal length about 120 px.
        expected_px = camera.project(body.keypoints(mesh, "openpose25"))[0].numpy()
        np.testing.assert_allclose(frame.true_keypoints_px[:, :2], expected_px, atol=1e-2)
        np.testing.assert_allclose(frame.joints_m[:, :3], body.keypoints(mesh, "h36m17")[0].numpy(), atol=1e-5)
        assert (frame.true_keypoints_px[:, 2] == 1).all()
        centre, side = frame.box_px[:2], frame.box_px[2]
        inside = ((expected_px >= 0) & (expected_px < (96, 80))).all(axis=1)
        assert (np.abs(expected_px[inside] - centre) <= side / 2).all()


def test_detected_keypoints_are_noisy_and_some_are_missed():
    rng = np.random.default_rng(0)
    true_px = np.column_stack([rng.uniform(0, 320, (20_000, 2)), np.ones(20_000)]).astype(np.float32)
    true_px[:100, 0] = -1
    detected = detect(rng, true_px, (320, 320))
    assert (detected[:100] == 0).all()
    found = detected[100:, 2] > 0
    # Four standard deviations of a share, and of a standard deviation, of so many draws.
    assert 1 - found.mean() == pytest.approx(KEYPOINT_DROPPED, abs=4 * np.sqrt(0.09 / 19_900))
    error = (detected[100:, :2] - true_px[100:, :2])[found]
    assert error.std() == pytest.approx(KEYPOINT_NOISE_PX, rel=4 / np.sqrt(2 * error.size))
    assert (detected[100:][~found] == 0).all()
    assert detected[:, 2].max() <= 1


def test_views_keep_the_body_in_front_and_mostly_inside(body):
    mesh = body(BodyParameters.from_axis_angle(torch.zeros(1, 72), torch.zeros(1, 10), torch.zeros(1, 3)))
    vertices = (mesh.vertices[0] - mesh.joints[0, 0]).numpy()
    whole, facing = 0, []
    for seed in range(200):
        view = draw_view(np.random.default_rng(seed), vertices, (320, 240))
        seen = vertices @ view.rotation.T + view.pelvis_m
        assert seen[:, 2].min() >= CLEARANCE_M - 1e-6
        position_px = project(seen, view.camera)
        inside = ((position_px >= 0) & (position_px < (320, 240))).all(axis=1).mean()
        assert inside >= LEAST_INSIDE
        whole += inside == 1
        facing.append(view.rotation[2, 2] < 0)
        # Upright: the head is above the feet.
        assert position_px[vertices[:, 1].argmax(), 1] < position_px[vertices[:, 1].argmin(), 1]
        np.testing.assert_allclose(view.rotation @ view.rotation.T, np.eye(3), atol=1e-12)
    assert 60 < whole < 190
    assert 60 < sum(facing) < 140


def test_a_body_that_points_at_the_camera_stays_in_front_of_it():
    """A rod of two metres: small as seen, so it would be put near, were it not for its depth."""
    rod = np.zeros((21, 3), np.float32)
    rod[:, 2] = np.linspace(-1, 1, 21)
    for seed in range(300):
        view = draw_view(np.random.default_rng(seed), rod, (320, 240))
        assert (rod @ view.rotation.T + view.pelvis_m)[:, 2].min() >= CLEARANCE_M - 1e-6


# --- Textures


def test_the_given_texture_is_the_clean_one_damaged(maker):
    coverage, errors = [], []
    for number in range(8):
        given = maker.wardrobe.given_texture(number)
        clean = maker.wardrobe.subject(number).colors
        at_vertices = clean[maker.wardrobe.lattice.points.nearest(maker.body.template.numpy())]
        seen = given[:, 3] == 255
        assert set(np.unique(given[:, 3])) <= {0, 255}
        coverage.append(seen.mean())
        errors.append(np.abs(given[seen, :3].astype(float) - at_vertices[seen]).mean() / 255)
        shuffled = np.random.default_rng(0).permutation(at_vertices[seen])
        assert errors[-1] < 0.8 * np.abs(given[seen, :3].astype(float) - shuffled).mean() / 255
    assert min(coverage) > 0.2
    assert min(coverage) < 0.9
    assert min(errors) > 0.01
    assert max(errors) < 0.25


def test_a_uv_canvas_knows_where_on_the_body_its_pixels_are(full_body):
    canvas = make_canvas(full_body, 128)
    layout = full_body.texture
    corners_uv = layout.coordinates[layout.faces]
    corners_m = full_body.template.numpy()[full_body.faces.numpy()]
    middle_uv, middle_m = corners_uv.mean(axis=1), corners_m.mean(axis=1)
    texel = np.floor(np.stack([1 - middle_uv[:, 1], middle_uv[:, 0]], axis=1) * 128).astype(int).clip(0, 127)
    assert canvas.on_body.reshape(128, 128)[tuple(texel.T)].mean() > 0.9
    found_m = canvas.paint(canvas.points.position_m)[tuple(texel.T)]
    # A pixel is about 1.5 cm of the body; at seams and on the fingers the nearest pixel belongs to something else.
    assert np.median(np.linalg.norm(found_m - middle_m, axis=1)) < 0.01
    texture = damaged_texture(
        np.random.default_rng(0), canvas, canvas.points, np.full((len(canvas.points), 3), 99, np.uint8)
    )
    assert texture.shape == (128, 128, 4)
    assert (texture[..., 3][~canvas.on_body.reshape(128, 128)] == 0).all()


def test_the_lattice_interpolates_a_linear_function(body):
    lattice = make_lattice(body)
    assert lattice.subdivisions > 1
    low, high = body.template.numpy().min(axis=0), body.template.numpy().max(axis=0)
    colors = np.rint((lattice.points.position_m - low) / (high - low) * 255).astype(np.uint8)
    rng = np.random.default_rng(0)
    triangle = rng.integers(len(body.faces), size=5000)
    weights = rng.dirichlet(np.ones(3), 5000).astype(np.float32)
    weights[:3], weights[3:6] = np.eye(3), (1 - np.eye(3)) / 2
    expected = np.einsum("pk,pkc->pc", weights, body.template.numpy()[body.faces.numpy()[triangle]])
    sampled = lattice.sample(colors, triangle, weights) * (high - low) + low
    # Colours are rounded to 1 / 255 of the range.
    assert (np.abs(sampled - expected) <= 0.51 / 255 * (high - low) + 1e-5).all()


def test_texture_images_go_where_the_layout_has_them(full_body, tmp_path):
    """An image whose colour is its place, worn, and looked up again at the lattice."""
    side = 256
    ramp = (np.arange(side) + 0.5) / side * 255
    image = np.zeros((side, side, 3), np.uint8)
    image[..., 0], image[..., 1] = np.rint(ramp), np.rint(ramp)[:, None]
    cv2.imwrite(str(tmp_path / "ramp.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    wardrobe = Wardrobe(full_body, (0, 0, 0), tmp_path, 64)
    uv = wardrobe.lattice.uv(full_body.texture)
    worn = wardrobe.subject(0).colors / 255
    np.testing.assert_allclose(worn[:, 0], uv[:, 0], atol=0.01)
    np.testing.assert_allclose(worn[:, 1], 1 - uv[:, 1], atol=0.01)
    assert sample_image(image, np.array([[0.0, 1.0]], np.float32)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_vary_unless_plain(kind, body):
    points = make_lattice(body).points.position_m[::50]
    colors = draw_pattern(np.random.default_rng(5), points, points[:, 1], points[:, 0], kind)
    assert colors.dtype == np.float32
    assert colors.min() >= 0
    assert colors.max() <= 1
    assert (np.ptp(colors, axis=0).max() > 0.02) == (kind != "plain")


# --- Light, surroundings, sensor


def test_the_harmonics_are_orthonormal():
    # Points of equal area on the sphere; the mean of a product of order 4 is exact to a part in a thousand.
    count = 20_000
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.pi * (1 + 5**0.5) * np.arange(count)
    directions = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], axis=1)
    basis = harmonics(directions.astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose(basis.T @ basis * 4 * np.pi / count, np.eye(9), atol=1e-3)


def test_irradiance_of_known_light():
    normals = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    uniform = np.zeros((9, 3), np.float32)
    uniform[0] = 1 / 0.282095
    np.testing.assert_allclose(EnvironmentLight(uniform).irradiance(normals), 1, rtol=1e-5)
    lamp = normals[0]
    lit = EnvironmentLight(np.tile(harmonics(lamp[None]).T, 3)).irradiance(normals)
    assert lit[:, 0].argmax() == 0
    light = draw_light(np.random.default_rng(0), np.array([0.9, 0.1, 0.1]))
    assert light.irradiance(normals).min() > 0


def test_occluders_leave_enough_of_the_person():
    image = np.full((80, 100, 3), 200, np.uint8)
    person = np.zeros((80, 100), bool)
    person[20:70, 30:60] = True
    hidden = 0
    for seed in range(400):
        drawn, visible = draw_occluders(np.random.default_rng(seed), image, person, np.array([30, 20, 60, 70.0]))
        assert visible.sum() >= LEAST_VISIBLE * person.sum()
        assert not (visible & ~person).any()
        # At its soft edge each of up to three occluders hides half of what still counts as the person.
        assert drawn[visible].min() >= 200 // 2**3 - 3
        hidden += visible.sum() < person.sum()
    assert 80 < hidden < 320
    assert (image == 200).all()


def test_backgrounds_fill_the_image_and_differ(tmp_path):
    scenes = [made_background(np.random.default_rng(seed), 64, 48) for seed in range(40)]
    assert all(scene.shape == (48, 64, 3) and scene.dtype == np.uint8 for scene in scenes)
    assert len({scene.tobytes() for scene in scenes}) == 40
    assert np.mean([scene.std() for scene in scenes]) > 15
    photo = np.zeros((30, 500, 3), np.uint8)
    photo[..., 2] = 255  # red, in OpenCV's order
    cv2.imwrite(str(tmp_path / "wide.png"), photo)
    crop = photo_background(np.random.default_rng(0), (tmp_path / "wide.png",), 64, 48)
    assert crop.shape == (48, 64, 3)
    assert (crop == (255, 0, 0)).all()


def test_the_sensor_keeps_the_picture_recognisable():
    picture = made_background(np.random.default_rng(1), 96, 96)
    for seed in range(20):
        taken = photographed(np.random.default_rng(seed), picture)
        assert (taken.shape, taken.dtype) == (picture.shape, np.uint8)
        assert np.corrcoef(taken.ravel(), picture.ravel())[0, 1] > 0.8
        assert not np.array_equal(taken, picture)


# --- AMASS


def recording(frames=60, numbers=156, heading=0.7):
    """Someone who stands upright in a z-up world: the rest body turned by 90 degrees about x, then about z."""
    turned = cv2.Rodrigues(np.array([0, 0, heading]))[0] @ cv2.Rodrigues(np.array([np.pi / 2, 0, 0]))[0]
    poses = np.full((frames, numbers), 0.01)
    poses[:, :3] = cv2.Rodrigues(turned)[0].ravel()
    poses[:, 3] = np.arange(frames) / 100  # the left hip tells the frames apart
    return poses


def write_recording(path, poses, **more):
    np.savez(path, **{"poses": poses, "betas": np.zeros(16), "trans": np.zeros((len(poses), 3)), **more})
    return path


@pytest.mark.parametrize("numbers", [156, 72])
def test_amass_postures_stand_upright(tmp_path, body, numbers):
    write_recording(tmp_path / "walk_poses.npz", recording(numbers=numbers), mocap_framerate=60.0)
    write_recording(tmp_path / "shape.npz", np.zeros((1, 3)))  # lies beside the recordings
    poses = draw_amass_poses(tmp_path, 20, seed=0)
    assert poses.shape == (20, 72)
    assert (poses[:, 66:] == 0).all()
    # Ten postures a second of one second: every sixth frame.
    assert set(np.rint(poses[:, 3] * 100).astype(int)) <= set(range(0, 60, 6))
    mesh = body(BodyParameters.from_axis_angle(torch.from_numpy(poses), torch.zeros(20, 10), torch.zeros(20, 3)))
    spine = mesh.joints[:, 15] - mesh.joints[:, 0]
    assert (spine[:, 1] > 0.99 * spine.norm(dim=1) * np.cos(0.2)).all()
    # The heading about z became one about y.
    turned = cv2.Rodrigues(poses[0, :3].astype(np.float64))[0]
    np.testing.assert_allclose(turned, cv2.Rodrigues(np.array([0, 0.7, 0]))[0], atol=1e-5)
    np.testing.assert_array_equal(draw_amass_poses(tmp_path, 7, seed=0), poses[:7])
    assert upright(np.zeros((0, 72), np.float32)).shape == (0, 72)


def test_amass_frames_look_upright_in_the_image(tmp_path, body):
    path = write_recording(tmp_path / "stand.npz", recording(), mocap_frame_rate=120)
    made = FrameMaker(replace(TINY, amass=path, frames=4))
    for number in range(4):
        keypoints = made.frame(number).row.true_keypoints_px
        assert keypoints[1, 1] < keypoints[8, 1] < min(keypoints[11, 1], keypoints[14, 1])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda path: path.write_bytes(b"not a zip"), "not an AMASS recording"),
        (lambda path: np.savez(path, pose=np.zeros((4, 156))), "not an AMASS recording"),
        (lambda path: np.savez(path, poses=np.zeros((4, 24, 3))), r"\(4, 24, 3\)"),
        (lambda path: np.savez(path, poses=np.zeros((0, 156))), "no frames"),
        (lambda path: np.savez(path, poses=np.full((4, 156), np.nan)), "not finite"),
        (lambda path: np.savez(path, poses=np.full((4, 156), 90.0)), "radians"),
        (lambda path: np.savez(path, poses=np.array([{"a": 1}], dtype=object)), "AMASS|shape"),
    ],
)
def test_bad_recordings_are_refused_by_name(tmp_path, content, cause):
    path = tmp_path / "bad.npz"
    content(path)
    with pytest.raises(InputError, match=rf"bad\.npz: .*({cause})"):
        draw_amass_poses(path, 3, seed=0)


def test_the_store_holds_what_a_full_body_needs(tmp_path):
    settings = SyntheticSettings(frames=1, subjects=3, body="standin", image_size=(64, 64), texture_px=64)
    store = synthesize(tmp_path / "full.h5", settings, workers=0, quiet=True)
    assert isinstance(store, FrameStore)
    assert store.subjects == ("train-0-00000",)
    texture = store.read_texture(0)
    assert (texture.kind, texture.rgba.shape) == ("uv", (64, 64, 4))
