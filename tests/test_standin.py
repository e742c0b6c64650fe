import subprocess
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from bodies import BodyModel, BodyParameters, InputError
from bodies.joints import H36M17, LSP14, OPENPOSE25, SMPL24, SMPL24_PARENTS, SPIN24, mirrored
from bodies.model_files import STAND_INS, read_body_model
from bodies.standin import REST_PELVIS_M, save_body
from bodies.standin_regressors import convex_regressor, round_rows
from bodies.standin_rig import place_joints, pose_joints, rest_rotations, skin, smpl_bone_directions
from commands import body as body_command

MIRROR = np.array([-1.0, 1.0, 1.0])
LANDMARKS = tuple(
    OPENPOSE25.index(name)
    for name in (
        "nose",
        *(f"{s}_{p}" for s in ("left", "right") for p in ("eye", "ear", "big_toe", "small_toe", "heel")),
    )
)
LIMB_ENDS = ("knee", "ankle", "foot", "shoulder", "elbow", "wrist", "hand")


@pytest.fixture(scope="module", params=list(STAND_INS))
def data(request):
    return read_body_model(STAND_INS[request.param])


@pytest.fixture(scope="module")
def body(data):
    return BodyModel(data)


@pytest.fixture(scope="module")
def rest(body):
    return body(body.rest_parameters())


@pytest.fixture(scope="module")
def posed(body):
    """Two dozen persons in strong poses: rest bodies of the same persons, posed bodies."""
    rng = np.random.default_rng(5)
    turns = rng.normal(scale=0.25, size=(24, 24, 3))
    for name, axis, sign in (("left_knee", 0, 1), ("right_knee", 0, 1), ("left_elbow", 1, -1), ("right_elbow", 1, 1)):
        turns[:, SMPL24.index(name)] = 0
        turns[:, SMPL24.index(name), axis] = sign * rng.uniform(0, 2, 24)
    for name in ("left_hip", "right_hip"):
        turns[:, SMPL24.index(name), 0] -= rng.uniform(0, 1.4, 24)
    for name, side in (("left_shoulder", -1), ("right_shoulder", 1)):
        turns[:, SMPL24.index(name), 2] += side * rng.uniform(-0.6, 1.3, 24)
    pose, betas = torch.from_numpy(turns.reshape(24, 72)).float(), torch.from_numpy(rng.normal(size=(24, 10))).float()
    return body.shape(betas), body(BodyParameters.from_axis_angle(pose, betas, torch.zeros(24, 3)))


def keypoints(body, mesh, name="openpose25", names=OPENPOSE25):
    points = body.keypoints(mesh, name).numpy()
    return {label: points[..., index, :] for index, label in enumerate(names)}


def surface(data, vertices=None):
    return trimesh.Trimesh(data.template if vertices is None else vertices, data.faces, process=False)


def test_files_are_small_and_whole():
    assert sum(path.stat().st_size for path in STAND_INS.values()) < 3_000_000
    assert (STAND_INS["standin"].parent / "LICENSE-standin.txt").is_file()
    full, tiny = (read_body_model(path) for path in STAND_INS.values())
    assert (full.name, len(full.template), len(full.faces)) == ("standin", 13_718, 27_420)
    assert (tiny.name, len(tiny.template), tiny.texture) == ("standin-tiny", 1_229, None)


def test_every_joint_regresses_within_three_millimetres():
    for path in STAND_INS.values():
        with np.load(path) as file:
            assert file["joint_error_mm"].shape == (24,)
            assert file["joint_error_mm"].max() < 3.0
            assert file["explained_variance"].sum() > 0.995
            assert (np.diff(file["explained_variance"]) <= 0).all()


def test_bones_point_as_in_smpl(data, rest):
    joints, wanted = rest.joints[0].numpy(), smpl_bone_directions()
    for joint, name in enumerate(SMPL24[1:], start=1):
        bone = joints[joint] - joints[SMPL24_PARENTS[joint]]
        cosine = bone @ wanted[joint] / np.linalg.norm(bone)
        # Limbs are turned exactly, but for the regressors' millimetres; the trunk's joints are placed by hand.
        limit_deg = 1.5 if name.rpartition("_")[2] in LIMB_ENDS else 10
        assert np.degrees(np.arccos(min(1.0, cosine))) < limit_deg, name


def test_rest_frame_and_size(data, body, rest):
    vertices = rest.vertices[0].numpy()
    np.testing.assert_allclose(rest.joints[0, 0].numpy(), REST_PELVIS_M, atol=1e-3)
    height = np.ptp(vertices[:, 1])
    assert 1.65 < height < 1.75
    assert np.ptp(vertices[:, 0]) == pytest.approx(height, rel=0.05)  # arm span
    points = keypoints(body, rest)
    assert points["nose"][0, 2] > points["left_ear"][0, 2] + 0.08  # faces +z
    assert points["left_big_toe"][0, 2] > points["left_heel"][0, 2] + 0.2
    assert vertices[:, 1].argmin() in np.flatnonzero(data.skin_weights[:, [7, 8, 10, 11]].sum(axis=1) > 0.9)
    # Soles: a fifth of the skin of the feet is within 2 cm of the ground, under heel and toes alike.
    feet = vertices[data.skin_weights[:, [7, 10]].sum(axis=1) > 0.9]
    on_ground = feet[feet[:, 1] < vertices[:, 1].min() + 0.02]
    assert len(on_ground) > 0.2 * len(feet)
    assert np.ptp(on_ground[:, 2]) > 0.2


def test_surface_is_closed_and_outward(data):
    mesh = surface(data)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert 0.055 < mesh.volume < 0.075  # cubic metres: about kilograms / 1000


def test_skin_weights(data):
    assert (data.skin_weights >= 0).all()
    assert (data.skin_weights.sum(axis=1, dtype=np.float64) == 1).all()
    # Each joint has skin that it moves, a limb's has some of its own.
    most = data.skin_weights.max(axis=0)
    assert (most > 0.4).all()
    assert (
        most[[SMPL24.index(name) for name in ("left_hip", "left_knee", "head", "left_elbow", "left_hand")]] > 0.9
    ).all()


def test_regressors_are_local_and_convex(data):
    for matrix in (data.joint_regressor, *data.keypoint_regressors.values()):
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert (data.joint_regressor.data > 0).all()
    joints = data.joint_regressor @ data.template
    for joint, row in enumerate(data.joint_regressor):
        distances = np.linalg.norm(data.template[row.indices] - joints[joint], axis=1)
        assert row.data @ distances < 0.25


def test_body_is_its_own_mirror_image(data, rest):
    distances, twin = cKDTree(data.template).query(data.template * MIRROR)
    assert distances.max() < 1e-5
    swapped = data.skin_weights[twin][:, list(mirrored(SMPL24))]
    np.testing.assert_allclose(data.skin_weights, swapped, atol=2e-3)
    mirror_directions = data.shape_directions[twin] * MIRROR[:, None]
    np.testing.assert_allclose(data.shape_directions, mirror_directions, atol=2e-4)
    joints = rest.joints[0].numpy()
    np.testing.assert_allclose(joints, joints[list(mirrored(SMPL24))] * MIRROR, atol=1e-4)


@pytest.mark.parametrize(("name", "names"), [("openpose25", OPENPOSE25), ("h36m17", H36M17), ("lsp14", LSP14)])
def test_keypoints_are_on_their_sides(body, rest, name, names):
    points = body.keypoints(rest, name)[0].numpy()
    for point, label in zip(points, names, strict=True):
        side = {"left": 1, "right": -1}.get(label.partition("_")[0], 0)
        assert np.sign(point[0]) == side if side else abs(point[0]) < 2e-3, label
    # The landmarks of the tiny mesh's two sides may lie on different triangles.
    np.testing.assert_allclose(points, points[list(mirrored(names))] * MIRROR, atol=2e-3)


def test_spin_keypoints_follow_from_the_files_own(body, rest):
    points = keypoints(body, rest, "spin24", SPIN24)
    heights = [points[n][0, 1] for n in ("head_top", "head_h36m", "nose", "jaw_h36m", "neck", "spine_h36m", "left_hip")]
    assert heights == sorted(heights, reverse=True)


def test_keypoints_are_in_anatomical_order(body, rest):
    points = {name: point[0] for name, point in keypoints(body, rest).items()}
    heights = [points[n][1] for n in ("left_eye", "nose", "neck", "mid_hip", "left_knee", "left_ankle", "left_heel")]
    assert heights == sorted(heights, reverse=True)
    np.testing.assert_allclose(points["mid_hip"], (points["left_hip"] + points["right_hip"]) / 2, atol=1e-4)
    np.testing.assert_allclose(points["neck"], (points["left_shoulder"] + points["right_shoulder"]) / 2, atol=1e-4)
    assert 0.055 < np.ptp([points["left_eye"][0], points["right_eye"][0]]) < 0.07
    assert points["left_small_toe"][0] > points["left_big_toe"][0] + 0.04
    reach = [points[n][0] for n in ("left_shoulder", "left_elbow", "left_wrist")]
    np.testing.assert_allclose(np.diff(reach), 0.25, atol=0.04)


def test_landmarks_are_points_of_the_surface(data, body, posed):
    _, mesh = posed
    points = body.keypoints(mesh, "openpose25")[:, LANDMARKS].numpy()
    triangles = mesh.vertices.numpy()[:, data.faces]
    for landmarks, person in zip(points[:4], triangles[:4], strict=True):
        for point in landmarks:
            nearest = trimesh.triangles.closest_point(person, np.broadcast_to(point, (len(person), 3)))
            # A point of a triangle remains one; float32 and thin triangles cost tenths of a millimetre.
            assert np.linalg.norm(nearest - point, axis=1).min() < 5e-4


def test_texture_coordinates():
    data = read_body_model(STAND_INS["standin"])
    layout = data.texture
    assert layout is not None
    assert layout.coordinates.shape == (21_334, 2)
    assert layout.coordinates.min() > 0
    assert layout.coordinates.max() < 1
    # A texture vertex belongs to one vertex of the body, a vertex at a seam has several. Some belong to none: Anny's
    # layout is that of MakeHuman's mesh, which has helpers for clothes.
    pairs = np.unique(np.stack([layout.faces.ravel(), data.faces.ravel()], axis=1), axis=0)
    assert len(data.template) < len(pairs) == len(np.unique(pairs[:, 0]))
    assert len(np.unique(pairs[:, 1])) == len(data.template)


def test_keypoints_stay_at_the_joints_of_posed_bodies(body, posed):
    _, mesh = posed
    points = keypoints(body, mesh)
    joints = {name: mesh.joints[:, index].numpy() for index, name in enumerate(SMPL24)}
    for side in ("left", "right"):
        for part in ("knee", "elbow", "wrist", "ankle"):
            distance = np.linalg.norm(points[f"{side}_{part}"] - joints[f"{side}_{part}"], axis=-1)
            assert distance.max() < 0.02, part
            assert distance.mean() < 0.01, part
        for part in ("hip", "shoulder"):  # OpenPose's lie beside SMPL's
            distance = np.linalg.norm(points[f"{side}_{part}"] - joints[f"{side}_{part}"], axis=-1)
            assert distance.max() < 0.07, part


def test_poses_deform_without_explosion(data, posed):
    shaped, mesh = posed
    edges = surface(data).edges_unique
    for rest_vertices, vertices in zip(shaped.vertices.numpy(), mesh.vertices.numpy(), strict=True):
        before, after = (np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1) for v in (rest_vertices, vertices))
        used = before > 1e-3
        stretch = after[used] / before[used]
        assert np.median(stretch) == pytest.approx(1, abs=0.01)
        assert np.quantile(stretch, 0.999) < 4
        volume = surface(data, vertices).volume / surface(data, rest_vertices).volume
        assert 0.85 < volume < 1.15  # blending shrinks bent limbs, folds count twice


def test_first_shape_component_is_size_and_all_are_bodies(data, body):
    betas = torch.cat([2 * torch.eye(10), -2 * torch.eye(10)])
    shaped = body.shape(betas)
    heights = np.ptp(shaped.vertices[..., 1].numpy(), axis=1)
    assert heights[0] - heights[10] > 0.3
    assert ((heights > 1.4) & (heights < 2.0)).all()
    volumes = np.array([surface(data, vertices).volume for vertices in shaped.vertices.numpy()])
    assert (volumes[:10] >= volumes[10:]).all()
    pelvis = shaped.joints[:, 0].numpy()
    np.testing.assert_allclose(pelvis, np.broadcast_to(REST_PELVIS_M, pelvis.shape), atol=5e-3)


def test_shape_components_have_unit_variance_and_do_not_overlap(data):
    flat = data.shape_directions.reshape(-1, 10).astype(np.float64)
    gram = flat.T @ flat
    scale = np.sqrt(np.diag(gram))
    correlation = gram / np.outer(scale, scale)
    np.testing.assert_allclose(correlation, np.eye(10), atol=2e-2)  # the rounding of the smallest components
    assert (np.diff(scale) <= 0).all()


def test_saved_body_reads_back_and_is_the_same_bytes_again(tmp_path, monkeypatch):
    data = read_body_model(STAND_INS["standin-tiny"])
    save_body(data, tmp_path / "first.npz")
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    save_body(data, tmp_path / "second.npz")
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    again = read_body_model(tmp_path / "first.npz")
    assert again.name == data.name
    for field in ("template", "shape_directions", "skin_weights", "faces", "parents"):
        np.testing.assert_array_equal(getattr(again, field), getattr(data, field))
    assert (again.joint_regressor != data.joint_regressor).nnz == 0
    for name in ("openpose25", "h36m17"):
        assert (again.keypoint_regressors[name] != data.keypoint_regressors[name]).nnz == 0


def test_round_rows_sum_to_one_and_stay_near():
    rows = np.random.default_rng(0).dirichlet(np.full(9, 0.3), size=500)
    rounded = round_rows(3.7 * rows, 1 << 11)
    assert (rounded.sum(axis=1) == 1).all()
    assert ((rounded * (1 << 11)) % 1 == 0).all()
    assert np.abs(rounded - rows).max() <= 1 / (1 << 11)
    np.testing.assert_array_equal(round_rows(rounded, 1 << 11), rounded)


def test_convex_regressor_finds_joints_inside_moving_points():
    rng = np.random.default_rng(2)
    half = rng.uniform(-1, 1, size=(200, 3)) + np.array([1.2, 0, 0])
    template = np.concatenate([half, half * MIRROR])
    mirror = np.concatenate([np.arange(200, 400), np.arange(200)])
    truth = rng.dirichlet(np.ones(40), size=24)
    truth = np.concatenate([truth, np.zeros((24, 360))], axis=1)
    truth = (truth + truth[list(mirrored(SMPL24))][:, mirror]) / 2
    moves = template * rng.normal(size=(4, 1, 3)) * 0.1 * np.array([1, 1, 1])
    bodies = np.concatenate([template[None], template + moves])
    allowed = np.arange(400) % 5 > 0
    matrix = convex_regressor(bodies, np.einsum("jv,bvc->bjc", truth, bodies), mirror, allowed)
    assert matrix[:, ~allowed].nnz == 0
    assert (matrix.toarray() >= 0).all()
    assert (matrix.sum(axis=1) == 1).all()
    for vertices in bodies:
        # The locality term gives up a little: some per cent of a metre-sized cloud's own millimetres.
        np.testing.assert_allclose(matrix @ vertices, truth @ vertices, atol=5e-3)


def test_skinning_agrees_with_the_body_model(data, body):
    rng = np.random.default_rng(3)
    local = Rotation.random(48, rng=rng).as_matrix().reshape(2, 24, 3, 3)
    local[:, 0] = np.eye(3)
    double = BodyModel(data).double()
    mesh = double(BodyParameters(torch.from_numpy(local), torch.zeros(2, 10).double(), torch.zeros(2, 3).double()))
    world = local.copy()
    for joint, parent in enumerate(SMPL24_PARENTS[1:], start=1):
        world[:, joint] = world[:, parent] @ local[:, joint]
    joints = np.repeat(double.joint_template.numpy()[None], 2, axis=0)
    vertices = np.repeat(double.template.numpy()[None], 2, axis=0)
    np.testing.assert_allclose(pose_joints(joints, world), mesh.joints.numpy(), atol=1e-9)
    np.testing.assert_allclose(
        skin(vertices, joints, double.skin_weights.numpy(), world), mesh.vertices.numpy(), atol=1e-9
    )


def test_rest_rotations_turn_any_limb_to_smpl(rest):
    joints = rest.joints.double().numpy() + np.random.default_rng(4).normal(scale=0.03, size=(6, 24, 3))
    joints[:, 1] = joints[:, 2] * MIRROR  # a bone that is already right needs no special case
    turned = pose_joints(joints, rest_rotations(joints))
    wanted = smpl_bone_directions()
    for joint, name in enumerate(SMPL24):
        if name.rpartition("_")[2] in LIMB_ENDS:
            bone = turned[:, joint] - turned[:, SMPL24_PARENTS[joint]]
            np.testing.assert_allclose(
                bone / np.linalg.norm(bone, axis=1, keepdims=True), wanted[[joint] * 6], atol=1e-9
            )


def test_joints_drift_with_the_skin():
    """Moving bones alone moves a joint by what its skin share leaves of that; moving everything moves it fully."""
    from bodies.standin_rig import _ANCHORS

    rng = np.random.default_rng(6)
    labels = sorted({bone + side for a in _ANCHORS.values() for bone, _ in a.bones for side in ("", ".L", ".R")})
    heads = np.repeat(rng.normal(scale=0.02, size=(1, len(labels), 3)), 2, axis=0)
    for index, label in enumerate(labels):  # a symmetric skeleton
        if label.endswith(".R"):
            heads[:, index] = heads[:, labels.index(label[:-1] + "L")] * MIRROR
        elif not label.endswith(".L"):
            heads[:, index, 0] = 0
    heads[:, labels.index("neck01")] = [0.0, 0.5, 0.0]
    cloud = rng.uniform(-1, 1, size=(300, 3))
    vertices = np.repeat(np.concatenate([cloud, cloud * MIRROR])[None], 2, axis=0)
    weights = np.full((600, 24), 1 / 24)
    lift = np.array([[0.01], [-0.01]]) * [0.0, 1.0, 0.0]
    joints = place_joints(heads + lift[:, None], labels, vertices, weights, np.ones(600))
    drift = (joints[0] - joints[1])[:, 1] / 0.02
    for name, anchor in _ANCHORS.items():
        joint = SMPL24.index(name if name in SMPL24 else f"left_{name}")
        assert drift[joint] == pytest.approx(1 - anchor.skin_share, abs=1e-6), name
    together = place_joints(heads + lift[:, None], labels, vertices + lift[:, None], weights, np.ones(600))
    np.testing.assert_allclose(together[0] - together[1], np.tile([0.0, 0.02, 0.0], (24, 1)), atol=1e-9)


def test_bake_without_its_extra_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("bodies.standin.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"anny.*pip install 'snugfit\[bake\]'"):
        body_command.bake(tmp_path)
    assert not list(tmp_path.iterdir())


def test_show_draws_body_on_background(tmp_path):
    body_command.show("standin-tiny", tmp_path / "body.png")
    picture = cv2.imread(str(tmp_path / "body.png"))
    assert picture.shape[0] > 1000
    assert picture.shape[1] > 1000
    blue = (picture[..., 0].astype(int) - picture[..., 2]) > 40
    assert 0.02 < blue.mean() < 0.5


def test_commands_refuse_what_they_cannot_do(tmp_path):
    with pytest.raises(InputError, match=r"body\.txt.*\.png"):
        body_command.show("standin-tiny", tmp_path / "body.txt")
    with pytest.raises(InputError, match="seed -1"):
        body_command.bake(tmp_path, seed=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("anny") is None, reason="needs the extra bake")
def test_baking_gives_the_committed_body(tmp_path):
    # In a process of its own: the backend of anny writes to standard output and warns.
    code = (
        "import sys; from pathlib import Path; from bodies.standin import *; "
        "save_body(*(lambda d, r: (d, Path(sys.argv[1]), r))(*bake_with_report('notoes_collapse10pc')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tiny.npz")], check=True, capture_output=True)
    with np.load(tmp_path / "tiny.npz") as baked, np.load(STAND_INS["standin-tiny"]) as committed:
        assert baked.files == committed.files
        for key in committed.files:
            if key.partition("_")[0] in ("J", "openpose25", "h36m17", "extra9"):
                continue
            if committed[key].dtype.kind == "f":
                # Other versions of the libraries may round the last step differently.
                np.testing.assert_allclose(baked[key], committed[key], atol=2e-4 if key != "joint_error_mm" else 0.02)
            else:
                np.testing.assert_array_equal(baked[key], committed[key])
    one, other = read_body_model(tmp_path / "tiny.npz"), read_body_model(STAND_INS["standin-tiny"])
    np.testing.assert_allclose(one.joint_regressor @ one.template, other.joint_regressor @ other.template, atol=2e-4)
