"""Data made by code: a random body in SMPL's layout and the files that hold one.

The body is no person, but its joints lie where SMPL's lie, left is at x > 0, and nothing in it is zero: shape and pose
blend shapes move every vertex, each vertex hangs on several bones, and the rest pelvis is not the origin.
"""

import pickle
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import scipy.sparse

from bodies.body_model import BodyModel
from bodies.joints import SMPL24, SMPL24_PARENTS
from bodies.model_data import BodyModelData

#: Number of vertices of the real SMPL, which its keypoints' vertex ids and its regressors need.
SMPL_VERTICES = 6890
#: Rest pelvis of the male SMPL, and SMPL's rest offsets from parent, in metres (DESIGN section 5).
REST_PELVIS = (-0.0022, -0.2408, 0.0286)
REST_OFFSETS = (
    (0.0, 0.0, 0.0), (0.0695, -0.0914, -0.0068), (-0.0677, -0.0905, -0.0043), (-0.0025, 0.109, -0.0267),
    (0.0343, -0.3752, -0.0045), (-0.0383, -0.3826, -0.0089), (0.0055, 0.1352, 0.0011), (-0.0136, -0.398, -0.0437),
    (0.0158, -0.3984, -0.0423), (0.0015, 0.0529, 0.0254), (0.0264, -0.0558, 0.1193), (-0.0254, -0.0481, 0.1233),
    (-0.0028, 0.2139, -0.0429), (0.0788, 0.1217, -0.0341), (-0.0818, 0.1188, -0.0386), (0.0052, 0.065, 0.0513),
    (0.091, 0.0305, -0.0089), (-0.096, 0.0326, -0.0091), (0.2596, -0.0128, -0.0275), (-0.2537, -0.0133, -0.0214),
    (0.2492, 0.009, -0.0012), (-0.2553, 0.0078, -0.0056), (0.084, -0.0082, -0.0149), (-0.0846, -0.0061, -0.0103),
)  # fmt: skip
#: The joints of the chain nearest to the rows of J_regressor_h36m.npy in SPIN's order.
NEAR_H36M17 = (
    "pelvis", "left_hip", "left_knee", "left_ankle", "right_hip", "right_knee", "right_ankle", "spine2", "neck",
    "head", "head", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist",
)  # fmt: skip
#: The same for J_regressor_extra.npy.
NEAR_EXTRA9 = ("right_hip", "left_hip", "neck", "head", "pelvis", "spine3", "spine2", "neck", "head")


def rest_joints() -> np.ndarray:
    """Where SMPL's 24 joints lie at rest."""
    joints = np.zeros((24, 3))
    for joint, parent in enumerate(SMPL24_PARENTS):
        joints[joint] = REST_OFFSETS[joint] + (joints[parent] if parent >= 0 else np.array(REST_PELVIS))
    return joints


def model_arrays(
    num_vertices: int = 240, num_betas: int = 10, *, pose_blend_shapes: bool = True, seed: int = 0
) -> dict[str, object]:
    """A random body under the keys and dtypes of an official SMPL .pkl, without chumpy."""
    rng = np.random.default_rng(seed)
    joints = rest_joints()
    template = joints[np.arange(num_vertices) % 24] + rng.normal(scale=0.03, size=(num_vertices, 3))
    distance = np.linalg.norm(template[:, None] - joints, axis=-1)
    weights = np.where(
        distance <= np.sort(distance, axis=1)[:, 3:4], rng.uniform(0.1, 1, (num_vertices, 24)), 0
    )  # four bones a vertex
    kintree = np.array([SMPL24_PARENTS, range(24)], dtype=np.int64).astype(np.uint32)  # -1 wraps to 2^32 - 1
    arrays = {
        "v_template": template,
        "shapedirs": rng.normal(scale=0.01, size=(num_vertices, 3, num_betas)),
        "posedirs": rng.normal(scale=0.005, size=(num_vertices, 3, 207)),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "J_regressor": scipy.sparse.csc_matrix(near(template, joints, rng)),
        "kintree_table": kintree,
        "f": rng.permuted(np.tile(np.arange(num_vertices), (60, 1)), axis=1)[:, :3].astype(np.uint32),
        "bs_type": "lrotmin",
        "bs_style": "lbs",
    }
    return arrays if pose_blend_shapes else {key: value for key, value in arrays.items() if key != "posedirs"}


def near(template: np.ndarray, points: np.ndarray, rng: np.random.Generator, count: int = 6) -> np.ndarray:
    """A dense regressor whose rows weigh the few vertices nearest to each point; rows sum to one."""
    distance = np.linalg.norm(points[:, None] - template, axis=-1)
    rows = np.where(distance <= np.sort(distance, axis=1)[:, count - 1 : count], rng.uniform(0.1, 1, distance.shape), 0)
    return rows / rows.sum(axis=1, keepdims=True)


def joint_regressor_near(template: np.ndarray, names: tuple[str, ...], seed: int = 1) -> np.ndarray:
    """A dense regressor to places near the named joints of the chain."""
    joints = rest_joints()[[SMPL24.index(name) for name in names]]
    return near(template, joints, np.random.default_rng(seed))


def body_data(
    num_vertices: int = 240, num_betas: int = 10, *, pose_blend_shapes: bool = True, seed: int = 0
) -> BodyModelData:
    """The same body as plain data, with random regressors for openpose25 and h36m17."""
    arrays = model_arrays(num_vertices, num_betas, seed=seed)
    rng = np.random.default_rng(seed + 1)
    regressors = {}
    for name, count in (("openpose25", 25), ("h36m17", 17)):
        points = rest_joints()[rng.integers(24, size=count)] + rng.normal(scale=0.02, size=(count, 3))
        rows = near(arrays["v_template"], points, rng)
        regressors[name] = scipy.sparse.csr_matrix(np.concatenate([rows, np.zeros((count, 24))], axis=1))
    pose_columns = 207 if pose_blend_shapes else 0
    return BodyModelData(
        name="tiny",
        template=arrays["v_template"].astype(np.float32),
        shape_directions=arrays["shapedirs"].astype(np.float32),
        pose_directions=arrays["posedirs"][..., :pose_columns].astype(np.float32),
        joint_regressor=arrays["J_regressor"].tocsr(),
        skin_weights=arrays["weights"].astype(np.float32),
        parents=np.array(SMPL24_PARENTS),
        faces=arrays["f"].astype(np.int64),
        keypoint_regressors=regressors,
    )


def body_model(num_vertices: int = 240, *, pose_blend_shapes: bool = True, seed: int = 0) -> BodyModel:
    """The same body, ready to pose."""
    return BodyModel(body_data(num_vertices, pose_blend_shapes=pose_blend_shapes, seed=seed))


def write_npz(path: Path, arrays: dict[str, object]) -> Path:
    """Writes the model as .npz, with a dense joint regressor as SMPL's successors have it."""
    dense = {key: value.toarray() if scipy.sparse.issparse(value) else value for key, value in arrays.items()}
    np.savez(path, **dense)
    return path


def write_pkl(path: Path, arrays: dict[str, object], *, chumpy: bool = True, protocol: int = 2) -> Path:
    """Writes the model as the official downloads have it: a dict with chumpy arrays among numpy and scipy ones."""
    content = dict(arrays)
    if not chumpy:
        path.write_bytes(pickle.dumps(content, protocol))
        return path
    with fake_chumpy() as ch:
        for key in ("v_template", "posedirs", "weights"):
            content[key] = ch.Ch(content[key]) if key in content else None
        # The ten components of version 1.0 are a selection, flattened, out of an array of more.
        shape = content["shapedirs"].shape
        more = np.concatenate([content["shapedirs"], np.ones((*shape[:2], 2))], axis=2)
        chosen = np.arange(more.size).reshape(more.shape)[..., : shape[2]].ravel()
        content["shapedirs"] = ch.Select(ch.Ch(more), chosen, shape)
        path.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}, protocol))
    return path


@contextmanager
def fake_chumpy() -> Iterator[SimpleNamespace]:
    """Classes that pickle as chumpy's `Ch` and `Select` do (mattloper/chumpy `ch.py`, `__new__`, `__getstate__`).

    They can be imported, as pickling demands, only within the `with` block: chumpy itself is not installed.
    """
    classes = _chumpy_classes()
    modules = {"chumpy": ModuleType("chumpy")}
    for kind in vars(classes).values():
        modules.setdefault(kind.__module__, ModuleType(kind.__module__)).__dict__[kind.__name__] = kind
    assert not modules.keys() & sys.modules.keys()
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name in modules:
            del sys.modules[name]


def _chumpy_classes() -> SimpleNamespace:
    class Ch:
        def __init__(self, x=None):
            caches = {"_parents": weakref.WeakKeyDictionary(), "_cache": {"drs": weakref.WeakKeyDictionary()}}
            tracking = {"_dirty_vars": {"x"}, "_itr": None, "_depends_on_deps": {"p": {"deps": ("x",), "value": None}}}
            self.__dict__.update(caches, **tracking, _make_dense=False, _make_sparse=False)
            if x is not None:
                self.x = np.asarray(x, np.float64)

        def __getstate__(self):
            return {key: value for key, value in self.__dict__.items() if key not in ("_parents", "_cache")}

    class Select(Ch):
        def __init__(self, a, idxs, preferred_shape=None):
            super().__init__()
            self.a, self.idxs = a, idxs
            # What the class keeps once a derivative has been asked for.
            self._dr_cached = scipy.sparse.csc_matrix((1, 1))
            if preferred_shape is not None:
                self.preferred_shape = preferred_shape

    for kind, module in ((Ch, "chumpy.ch"), (Select, "chumpy.reordering")):
        kind.__module__, kind.__qualname__ = module, kind.__name__
    return SimpleNamespace(Ch=Ch, Select=Select)
