"""Bakes the stand-in body from Anny into SMPL's own layout, for those without a licensed SMPL file.

The file (`save_body`) is an .npz without pickled objects, with V vertices, F faces, 24 joints, 10 betas:

    name            ()          str      "standin" or "standin-tiny"
    v_template      (V, 3)      float32  rest pose, mean shape: metres, x left, y up, z forward
    shapedirs       (V, 3, 10)  float16  multiples of 2^-14 m
    weights         (V, 24)     float16  multiples of 2^-11; rows sum to exactly one
    kintree_table   (2, 24)     int64    row 0 the parents, root -1; row 1 the joints
    f               (F, 3)      int32    counter-clockwise seen from outside
    vt              (T, 2)      float32  u right, v up (absent in the tiny body)
    ft              (F, 3)      int32    rows of vt at the corners of each face (absent in the tiny body)
    J_regressor_*, openpose25_*, h36m17_*, extra9_*   sparse matrices of shape (24 | 25 | 17 | 9, V), each as
        <name>_rows, <name>_cols (int32), <name>_values (float32), <name>_shape (2,) int64
    joint_error_mm  (24,)       float32  mean distance of the regressed joints from their targets over the persons
    explained_variance (10,)    float32  of the persons' vertices, by each shape coefficient

There is no `posedirs`: the stand-in has no pose blend shapes. Keypoint regressors weigh posed vertices only. Rows of
openpose25, h36m17 and extra9 follow `bodies.joints`. The regressors are fitted to the rounded arrays.

Shape coefficients are principal components of adults drawn at random (`bodies.standin_persons`), with unit variance.
The first is made positive for tall, the others for stout bodies.
"""

import io
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray
from scipy.sparse import coo_matrix, csr_matrix, diags_array, hstack
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from bodies.errors import InputError
from bodies.joints import SMPL24, SMPL24_PARENTS
from bodies.model_data import BodyModelData
from bodies.safe_write import whole_file
from bodies.standin_keypoints import landmark_points, mix_keypoints, surface_points
from bodies.standin_persons import Persons, Topology, draw_persons
from bodies.standin_regressors import convex_regressor, pose_bodies, round_rows
from bodies.standin_rig import MIRROR, MIRRORED_JOINTS, merge_bones, place_joints, pose_joints, rest_rotations, skin

#: The mesh of each body: full with UV coordinates, and one of 1,229 vertices for fast tests.
TOPOLOGIES: Final[dict[str, Topology]] = {"standin": "anny", "standin-tiny": "notoes_collapse10pc"}

BETAS: Final = 10
#: Bodies in random poses on which the keypoints' joints are fitted.
POSED_BODIES: Final = 64
#: Where SMPL's rest pelvis is, between its male and female mean shapes; SMPL's translations are relative to it.
REST_PELVIS_M: Final = np.array([0.0, -0.226, 0.028])
#: Steps of the skin weights' diffusion along edges, half of the way to the neighbours' mean each. Merging bones leaves
#: seams about an edge wide, which fold when elbows and knees bend; on the tiny mesh an edge is long enough.
SMOOTHING_STEPS: Final[dict[Topology, int]] = {"anny": 8, "notoes_collapse10pc": 1}
#: Resolution of what is stored: half precision holds multiples of 2^-14 m up to 0.125 m and of 2^-11 up to 1 exactly.
SHAPE_STEPS_PER_M: Final = 1 << 14
WEIGHT_STEPS: Final = 1 << 11
#: Rounding of the template, so that the last bits of a machine's arithmetic do not show: 2^-20 m, a micrometre.
TEMPLATE_STEPS_PER_M: Final = 1 << 20


@dataclass(frozen=True)
class BakeReport:
    """How well the baked body stands for the persons it was made from."""

    joint_error_mm: Float32[ndarray, " joints"]
    """Mean distance between a joint regressed from the stored model and its target, over the persons."""
    explained_variance: Float32[ndarray, " betas"]
    """Share of the persons' vertex variance that each shape coefficient explains."""


class _Surface(NamedTuple):
    """What follows from a mesh's connections and its mean shape."""

    mirror: Int64[ndarray, " vertices"]
    outer: Bool[ndarray, " vertices"]
    areas: Float64[ndarray, " vertices"]
    neighbours: csr_matrix


class _Shapes(NamedTuple):
    """The shape space, rounded as it is stored, and the persons in it."""

    template: Float64[ndarray, "vertices 3"]
    directions: Float64[ndarray, "vertices 3 betas"]
    betas: Float64[ndarray, "batch betas"]
    explained: Float64[ndarray, " betas"]

    def bodies(self, betas: Float64[ndarray, "samples betas"]) -> Float64[ndarray, "samples vertices 3"]:
        """Rest vertices."""
        return self.template + np.einsum("vck,bk->bvc", self.directions, betas, optimize=True)


def bake(topology: Topology, seed: int = 0) -> BodyModelData:
    """The stand-in body on one of Anny's meshes. See `bake_with_report`."""
    return bake_with_report(topology, seed)[0]


def bake_with_report(topology: Topology, seed: int = 0) -> tuple[BodyModelData, BakeReport]:
    """Bakes the stand-in body. The first run of a version of Anny builds its cache, for one or two minutes.

    Args:
        topology: Anny's name of the mesh.
        seed: Of the persons and poses drawn.

    Returns:
        The body, with the keypoint sets openpose25, h36m17 and extra9, and how good it is.

    Raises:
        InputError: If the extra `bake` is not installed.
    """
    if missing := [name for name in ("anny", "threadpoolctl") if find_spec(name) is None]:
        raise InputError(f"baking the stand-in body needs {' and '.join(missing)}: pip install 'snugfit[bake]'")
    from threadpoolctl import threadpool_limits

    # One thread: the order of sums, and with it the last digits, would depend on how many there are.
    with threadpool_limits(1):
        return _bake(topology, np.random.default_rng(seed))


def _bake(topology: Topology, rng: np.random.Generator) -> tuple[BodyModelData, BakeReport]:
    persons = draw_persons(topology, rng)
    surface = _surface(persons.vertices.mean(axis=0), persons.faces)
    weights = _skin_weights(persons, surface, SMOOTHING_STEPS[topology])
    vertices, joints, heads = _to_smpl_rest(persons, surface, weights)
    shapes = _principal_shapes(vertices, persons.faces)
    regressor = _joint_regressor(shapes, joints, surface)
    points = landmark_points(shapes.template, weights, heads)
    keypoints = mix_keypoints(
        _chain_regressor(shapes, regressor, weights, surface, rng),
        surface_points(np.stack(list(points.values())), shapes.template, persons.faces),
        tuple(points),
    )
    data = BodyModelData(
        name=next(name for name, mesh in TOPOLOGIES.items() if mesh == topology),
        template=shapes.template.astype(np.float32),
        shape_directions=shapes.directions.astype(np.float32),
        pose_directions=np.zeros((len(shapes.template), 3, 0), np.float32),
        joint_regressor=regressor.astype(np.float32),
        skin_weights=weights.astype(np.float32),
        parents=np.array(SMPL24_PARENTS, dtype=np.int64),
        faces=persons.faces,
        texture=persons.texture,
        keypoint_regressors={name: _with_joint_columns(matrix) for name, matrix in keypoints.items()},
    )
    regressed = np.stack([regressor @ body for body in shapes.bodies(shapes.betas)])
    error_mm = 1000 * np.linalg.norm(regressed - joints, axis=-1).mean(axis=0)
    return data, BakeReport(error_mm.astype(np.float32), shapes.explained.astype(np.float32))


def save_body(data: BodyModelData, path: Path, report: BakeReport | None = None) -> None:
    """Writes a body without pose blend shapes in SMPL's layout (see the module's text).

    The same data gives the same bytes.
    """
    assert data.pose_directions.shape[-1] == 0, "the format of the stand-in has no pose blend shapes"
    directions, weights = data.shape_directions.astype(np.float16), data.skin_weights.astype(np.float16)
    assert (directions == data.shape_directions).all(), "the regressors were fitted to what is stored"
    assert (weights == data.skin_weights).all()
    arrays: dict[str, ndarray] = {
        "name": np.array(data.name),
        "v_template": data.template,
        "shapedirs": directions,
        "weights": weights,
        "kintree_table": np.stack([data.parents, np.arange(len(data.parents))]),
        "f": data.faces.astype(np.int32),
    }
    if data.texture is not None:
        arrays |= {"vt": data.texture.coordinates, "ft": data.texture.faces.astype(np.int32)}
    vertices = len(data.template)
    regressors = {name: matrix[:, :vertices] for name, matrix in data.keypoint_regressors.items()}
    for name, matrix in {"J_regressor": data.joint_regressor, **regressors}.items():
        triplets = coo_matrix(matrix)
        arrays |= {
            f"{name}_rows": triplets.row.astype(np.int32),
            f"{name}_cols": triplets.col.astype(np.int32),
            f"{name}_values": triplets.data.astype(np.float32),
            f"{name}_shape": np.array(triplets.shape, dtype=np.int64),
        }
    if report is not None:
        arrays |= {"joint_error_mm": report.joint_error_mm, "explained_variance": report.explained_variance}
    with whole_file(path) as temporary:
        _write_npz(temporary, arrays)


def _write_npz(path: Path, arrays: dict[str, ndarray]) -> None:
    """`np.savez_compressed` without the time of writing."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, stream.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _surface(template: Float64[ndarray, "vertices 3"], faces: Int64[ndarray, "faces 3"]) -> _Surface:
    distances, mirror = cKDTree(template).query(template * MIRROR)
    # Some of MakeHuman's shapes are symmetric only within a tenth of a millimetre.
    assert distances.max() < 5e-4, "Anny's meshes are symmetric"
    assert (mirror[mirror] == np.arange(len(mirror))).all(), "each vertex has one mirror image"
    starts, ends = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    # Closed and oriented: each edge is met once in each direction, so this is symmetric.
    neighbours = csr_matrix((np.ones(len(starts)), (starts, ends)), shape=(len(template), len(template)))
    _, part = connected_components(neighbours, directed=False)
    # Eyeballs and tongue are parts of their own, inside the head.
    outer = part == np.bincount(part).argmax()
    sides = template[faces[:, 1:]] - template[faces[:, :1]]
    thirds = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1) / 6
    areas = np.bincount(faces.ravel(), np.repeat(thirds, 3), minlength=len(template)) * outer
    return _Surface(mirror.astype(np.int64), outer, areas, neighbours)


def _skin_weights(persons: Persons, surface: _Surface, steps: int) -> Float64[ndarray, "vertices joints"]:
    weights = np.zeros((len(persons.bone_weights), len(SMPL24)))
    np.add.at(weights.T, merge_bones(persons.labels, persons.parents), persons.bone_weights.T)
    means = diags_array(1 / np.asarray(surface.neighbours.sum(axis=1)).ravel()) @ surface.neighbours
    for _ in range(steps):
        weights = (weights + means @ weights) / 2
    weights = round_rows((weights + weights[surface.mirror][:, list(MIRRORED_JOINTS)]) / 2, WEIGHT_STEPS)
    # The last step of rounding may break a tie differently on either side.
    right = persons.vertices.mean(axis=0)[:, 0] < 0
    weights[right] = weights[surface.mirror[right]][:, list(MIRRORED_JOINTS)]
    return weights


def _to_smpl_rest(
    persons: Persons, surface: _Surface, weights: Float64[ndarray, "vertices joints"]
) -> tuple[Float64[ndarray, "batch vertices 3"], Float64[ndarray, "batch joints 3"], dict[str, Float64[ndarray, "3"]]]:
    """Vertices and joints in SMPL's rest pose, and where Anny's bones start in the mean person."""
    joints = place_joints(persons.heads, persons.labels, persons.vertices, weights, surface.areas)
    world = rest_rotations(joints)
    owners = np.eye(len(SMPL24))[merge_bones(persons.labels, persons.parents)]
    carried = np.concatenate([persons.vertices, persons.heads], axis=1)
    posed = skin(carried, joints, np.concatenate([weights, owners]), world)
    rest_joints = pose_joints(joints, world)
    shift = REST_PELVIS_M - rest_joints[:, :1]
    vertices, heads = np.split(posed + shift, [persons.vertices.shape[1]], axis=1)
    vertices = (vertices + MIRROR * vertices[:, surface.mirror]) / 2
    return vertices, rest_joints + shift, dict(zip(persons.labels, heads.mean(axis=0), strict=True))


def _principal_shapes(vertices: Float64[ndarray, "batch vertices 3"], faces: Int64[ndarray, "faces 3"]) -> _Shapes:
    persons = len(vertices)
    mean = vertices.mean(axis=0)
    left, singular, right = np.linalg.svd((vertices - mean).reshape(persons, -1), full_matrices=False)
    directions = (right[:BETAS] * singular[:BETAS, None] / np.sqrt(persons)).reshape(BETAS, -1, 3)
    growth = _volume_changes(mean, directions, faces)
    growth[0] = directions[0, mean[:, 1].argmax(), 1] - directions[0, mean[:, 1].argmin(), 1]
    signs = np.sign(growth)
    directions = np.round(signs[:, None, None] * directions * SHAPE_STEPS_PER_M) / SHAPE_STEPS_PER_M
    return _Shapes(
        template=np.round(mean * TEMPLATE_STEPS_PER_M) / TEMPLATE_STEPS_PER_M,
        directions=np.ascontiguousarray(directions.transpose(1, 2, 0)),
        betas=left[:, :BETAS] * np.sqrt(persons) * signs,
        explained=singular[:BETAS] ** 2 / (singular**2).sum(),
    )


def _volume_changes(
    template: Float64[ndarray, "vertices 3"],
    directions: Float64[ndarray, "betas vertices 3"],
    faces: Int64[ndarray, "faces 3"],
) -> Float64[ndarray, " betas"]:
    """Derivative of the enclosed volume: area vectors of the triangles times the mean displacement of their corners."""
    corners = template[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    return np.einsum("fc,kfc->k", areas, directions[:, faces].mean(axis=2))


def _joint_regressor(shapes: _Shapes, joints: Float64[ndarray, "batch joints 3"], surface: _Surface) -> csr_matrix:
    """J_regressor. Vertices are linear in the betas, so joints need to be right for the template and each direction."""
    vertices = np.concatenate([shapes.template[None], shapes.directions.transpose(2, 0, 1)])
    slopes = np.einsum("bk,bjc->kjc", shapes.betas, joints) / len(joints)
    return convex_regressor(
        vertices, np.concatenate([joints.mean(axis=0)[None], slopes]), surface.mirror, surface.outer
    )


def _chain_regressor(
    shapes: _Shapes,
    regressor: csr_matrix,
    weights: Float64[ndarray, "vertices joints"],
    surface: _Surface,
    rng: np.random.Generator,
) -> csr_matrix:
    """From posed vertices to the posed joints of the chain."""
    rest = shapes.bodies(rng.normal(size=(POSED_BODIES, BETAS)))
    posed, chain = pose_bodies(rest, regressor, weights, rng)
    vertices = np.concatenate([shapes.template[None], posed])
    joints = np.concatenate([(regressor @ shapes.template)[None], chain])
    return convex_regressor(vertices, joints, surface.mirror, surface.outer)


def _with_joint_columns(regressor: csr_matrix) -> csr_matrix:
    none = csr_matrix((regressor.shape[0], len(SMPL24)))
    return hstack([regressor, none], format="csr").astype(np.float32)
