"""The keypoint sets that a model's files define, each as a regressor on posed vertices and posed joints.

SMPL gets openpose25 from joints of its chain and from vertices that smplx lists; h36m17 and lsp14 need
J_regressor_h36m.npy and spin24 needs J_regressor_extra.npy, which do not come with SMPL. A model file may also hold
regressors of its own, as the stand-in does.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from scipy.sparse import csr_matrix, hstack, vstack

from bodies.errors import InputError, one_line
from bodies.joints import (
    EXTRA9,
    H36M17,
    H36M17_FROM_RIGHT_LEG_FIRST,
    LSP14_FROM_H36M17,
    OPENPOSE25,
    OPENPOSE25_CHAIN_ALIAS,
    SMPL24,
    SMPL_VERTEX_IDS,
    SMPL_VERTICES,
    SPIN24,
)

H36M_FILES: Final = ("J_regressor_h36m.npy", "J_regressor_h36m_correct.npy")
EXTRA_FILES: Final = ("J_regressor_extra.npy",)
#: How far a regressor's row may sum from one: the public J_regressor files are rounded.
ROW_SUM_TOLERANCE: Final = 1e-2


def complete_keypoint_sets(vertex_regressors: dict[str, csr_matrix], vertices: int) -> dict[str, csr_matrix]:
    """All sets that follow from what is there.

    Args:
        vertex_regressors: Any of openpose25, h36m17 and extra9 (the rows of J_regressor_extra.npy), on vertices alone.
        vertices: Number of vertices of the body; with SMPL's own number openpose25 follows without a regressor.

    Returns:
        Any of openpose25, h36m17, lsp14 and spin24, with a column for each vertex, then for each joint of the chain.
    """
    padding = csr_matrix((1, len(SMPL24)))
    on_vertices = {
        name: hstack([regressor, vstack([padding] * regressor.shape[0])], format="csr")
        for name, regressor in vertex_regressors.items()
    }
    sets = {}
    if "openpose25" in on_vertices:
        sets["openpose25"] = on_vertices["openpose25"]
    elif vertices == SMPL_VERTICES:
        sets["openpose25"] = _selection(map(_smpl_openpose_column, OPENPOSE25), vertices)
    if "h36m17" in on_vertices:
        sets["h36m17"] = on_vertices["h36m17"]
        sets["lsp14"] = on_vertices["h36m17"][list(LSP14_FROM_H36M17)]
    if "extra9" in on_vertices and "openpose25" in sets:
        sets["spin24"] = _spin24(on_vertices["extra9"], sets["openpose25"], vertices)
    return sets


def _selection(columns: Iterable[int], vertices: int) -> csr_matrix:
    """A regressor that takes one vertex or joint for each keypoint."""
    chosen = list(columns)
    rows, ones = np.arange(len(chosen)), np.ones(len(chosen), dtype=np.float32)
    return csr_matrix((ones, (rows, chosen)), shape=(len(chosen), vertices + len(SMPL24)))


def _smpl_openpose_column(name: str) -> int:
    if name in SMPL_VERTEX_IDS:
        return SMPL_VERTEX_IDS[name]
    return SMPL_VERTICES + SMPL24.index(OPENPOSE25_CHAIN_ALIAS.get(name, name))


def _spin24(extra9: csr_matrix, openpose25: csr_matrix, vertices: int) -> csr_matrix:
    """SPIN's joints: those of J_regressor_extra first, then joints of the chain, the face as openpose25 has it."""
    rows = []
    for name in SPIN24:
        if name in EXTRA9:
            rows.append(extra9[EXTRA9.index(name)])
        elif name in SMPL24:
            rows.append(_selection([vertices + SMPL24.index(name)], vertices))
        else:
            rows.append(openpose25[OPENPOSE25.index(name)])
    return vstack(rows, format="csr")


def read_regressors_beside(model_file: Path, template: Float32[ndarray, "vertices 3"]) -> dict[str, csr_matrix]:
    """h36m17 and extra9 from the .npy files in the model's folder or the one above, as far as they are there.

    The two public copies of the Human3.6M regressor differ in which leg comes first; where the rows lie on the
    template (left is at x > 0) decides which copy it is.

    Raises:
        InputError: If a file is no regressor for this body.
    """
    sources: dict[str, tuple[tuple[str, ...], int, Callable[..., csr_matrix]]] = {
        "h36m17": (H36M_FILES, len(H36M17), _in_left_leg_first_order),
        "extra9": (EXTRA_FILES, len(EXTRA9), _checked_sides),
    }
    regressors: dict[str, csr_matrix] = {}
    for name, (files, rows, ordered) in sources.items():
        for file in (folder / file for folder in (model_file.parent, model_file.parent.parent) for file in files):
            if name in regressors or not file.is_file():
                continue
            regressor = _read_regressor(file, rows)
            if regressor.shape[1] == len(template):
                regressors[name] = ordered(regressor, template, file)
            elif len(template) == SMPL_VERTICES:  # beside a body of another mesh the file may be meant for SMPL
                raise InputError(f"{file}: it has {regressor.shape[1]} columns, SMPL has {SMPL_VERTICES} vertices")
    return regressors


def _read_regressor(file: Path, rows: int) -> csr_matrix:
    try:
        with file.open("rb") as stream:
            dense = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # numpy lets through what Python's tokenizer raises
        raise InputError(f"{file}: not a whole .npy file of numbers ({one_line(error)})") from error
    if dense.ndim != 2 or len(dense) != rows or dense.dtype.kind != "f":
        found = f"{dense.dtype} of shape {dense.shape}"
        raise InputError(f"{file}: expected floats of {rows} rows and a column for each vertex, found {found}")
    if not np.allclose(dense.sum(axis=1), 1, rtol=0, atol=ROW_SUM_TOLERANCE):
        raise InputError(f"{file}: its rows do not sum to one")
    return csr_matrix(dense.astype(np.float32))


def _in_left_leg_first_order(regressor: csr_matrix, template: ndarray, file: Path) -> csr_matrix:
    left = regressor @ template[:, 0] > (regressor[0] @ template[:, 0])[0]
    arms = left[11:14].all() and not left[14:17].any()
    if arms and left[1:4].all() and not left[4:7].any():
        return regressor
    if arms and left[4:7].all() and not left[1:4].any():
        return regressor[list(H36M17_FROM_RIGHT_LEG_FIRST)]
    raise InputError(f"{file}: rows 1 to 6 are neither left leg and right leg on this body, nor the reverse")


def _checked_sides(regressor: csr_matrix, template: ndarray, file: Path) -> csr_matrix:
    right_hip, left_hip = (regressor[:2] @ template)[:, 0]
    if not right_hip < left_hip:
        raise InputError(f"{file}: row 0 is not the right hip and row 1 not the left one on this body")
    return regressor


def remedies(sets: Iterable[str], model_file: Path, vertices: int) -> dict[str, str]:
    """For each set that is not among `sets`, what the user can do to get it."""
    told = f"from the data of github.com/nkolot/SPIN into {model_file.parent}"
    if vertices != SMPL_VERTICES:
        told = f"with a column for each of its {vertices} vertices into {model_file.parent}"
    face = "SMPL's vertex ids for face and feet hold for its own 6890 vertices alone"
    texts = {
        "openpose25": face,
        "h36m17": f"put {H36M_FILES[0]} {told}",
        "lsp14": f"put {H36M_FILES[0]} {told}",
        "spin24": f"put {EXTRA_FILES[0]} {told}" if "openpose25" in sets else face,
    }
    return {name: text for name, text in texts.items() if name not in sets}
