"""Reads body models: SMPL as downloaded (.pkl of versions 1.0 and 1.1, .npz) and the stand-in that ships with snugfit.

A .pkl is read through `bodies.safe_pickle`, so neither chumpy nor trust in the file is needed. An .npz has the same
names; sparse matrices are dense there, or four arrays `<name>_rows`, `_cols`, `_values` and `_shape`. It may also hold
UV coordinates (`vt`, `ft`) and keypoint regressors, as the stand-in does (see `bodies.standin`).

Source of names and shapes: the official files' keys as read by vchoutas/smplx `body_models.py`.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from scipy.sparse import csr_matrix, issparse

from bodies.body_model import BodyModel
from bodies.errors import InputError, one_line
from bodies.joints import EXTRA9, H36M17, OPENPOSE25, SMPL24_PARENTS
from bodies.keypoint_regressors import complete_keypoint_sets, read_regressors_beside, remedies
from bodies.model_data import BodyModelData, TextureLayout
from bodies.rest_joints import RestJoints
from bodies.safe_pickle import load_pickle

Gender = Literal["neutral", "male", "female"]

_DATA: Final = Path(__file__).parent / "data"
STAND_INS: Final = {"standin": _DATA / "standin.npz", "standin-tiny": _DATA / "standin_tiny.npz"}

#: Official names hold these; the rest of the name is the version.
_GENDER_LETTER: Final[dict[Gender, str]] = {"neutral": "neutral", "male": "m", "female": "f"}
#: Where models lie below the folder that a user names: itself, smplx's layout, the official archives.
_SUBFOLDERS: Final = ("", "smpl", "models", "smpl/models")
_REQUIRED: Final = ("v_template", "shapedirs", "weights", "kintree_table", "f")
_OPTIONAL: Final = ("name", "posedirs", "vt", "ft")
_KEYPOINT_ROWS: Final = {"openpose25": len(OPENPOSE25), "h36m17": len(H36M17), "extra9": len(EXTRA9)}
_SPARSE_PARTS: Final = ("rows", "cols", "values", "shape")
_SPARSE_NAMES: Final = {
    name: (name, *(f"{name}_{part}" for part in _SPARSE_PARTS)) for name in ("J_regressor", *_KEYPOINT_ROWS)
}
#: What a whole body is made of, and what its joints alone are.
_BODY_ARRAYS: Final = {*_REQUIRED, *_OPTIONAL, *(part for names in _SPARSE_NAMES.values() for part in names)}
_JOINT_ARRAYS: Final = {"name", "v_template", "shapedirs", "kintree_table", *_SPARSE_NAMES["J_regressor"]}
#: What the file stores for the parent of the root, as an unsigned 32-bit number.
_NO_PARENT: Final = 2**32 - 1
#: How far the skinning weights of a vertex may sum from one: what storing them in half precision costs.
WEIGHT_SUM_TOLERANCE: Final = 2e-3


def load_body_model(name_or_path: str | Path, gender: Gender | None = None, num_betas: int = 10) -> BodyModel:
    """Loads a body by name, file or folder.

    Args:
        name_or_path: "standin" or "standin-tiny"; an SMPL .pkl or .npz; or a folder that holds SMPL_NEUTRAL.pkl,
            SMPL_MALE.pkl, SMPL_FEMALE.pkl or the files under their original names (basicModel_..., basicmodel_...),
            also in `smpl/` or `models/` below it.
        gender: Which of the files of a folder, neutral by default; with the path of a file, the file of that gender
            beside it. The stand-in is one body for all.
        num_betas: How many shape coefficients to keep, if the file has more.

    Raises:
        InputError: If there is no such model or its file is damaged.
    """
    return BodyModel(read_body_model(_named_file(name_or_path, gender), num_betas))


def load_rest_joints(name_or_path: str | Path, gender: Gender | None = None, num_betas: int = 10) -> RestJoints:
    """Loads the joints of a body without its surface; of an .npz nothing else is unpacked.

    Args:
        name_or_path: As for `load_body_model`.
        gender: As for `load_body_model`.
        num_betas: As for `load_body_model`.

    Raises:
        InputError: If there is no such model, or what is read of its file is damaged.
    """
    return read_rest_joints(_named_file(name_or_path, gender), num_betas)


def _named_file(name_or_path: str | Path, gender: Gender | None) -> Path:
    if str(name_or_path) not in STAND_INS:
        return find_body_model(Path(name_or_path).expanduser(), gender)
    file = STAND_INS[str(name_or_path)]
    assert file.is_file(), f"{file} belongs to this package and is missing"
    return file


def find_body_model(path: Path, gender: Gender | None = None) -> Path:
    """The file that a path and a gender mean, see `load_body_model`.

    Raises:
        InputError: If there is none; the message says what to download and where to put it.
    """
    if path.is_file() and gender is None:
        return path
    folder = path.parent if path.is_file() else path
    wanted = gender or "neutral"
    letter = _GENDER_LETTER[wanted]
    patterns = (rf"smpl_{wanted}\.(pkl|npz)", rf"basicmodel_{letter}_lbs_10_207_0_v[\d.]+\.pkl")
    places = [place for place in (folder / name for name in _SUBFOLDERS) if place.is_dir()]
    for place in places:
        # Backwards in the alphabet: .pkl before .npz, newer versions before older ones.
        files = sorted((file for file in place.iterdir() if file.is_file()), key=_lower_name, reverse=True)
        for pattern in patterns:
            for file in files:
                if re.fullmatch(pattern, _lower_name(file)):
                    return file
    raise _missing(folder / f"SMPL_{wanted.upper()}.pkl" if folder.is_dir() else path, gender)


def _lower_name(file: Path) -> str:
    return file.name.lower()


def _missing(path: Path, gender: Gender | None) -> InputError:
    name = _lower_name(path)
    guess: Gender = "female" if "female" in name else "male" if "male" in name else "neutral"
    meant = gender or guess
    original = f"basicmodel_{_GENDER_LETTER[meant]}_lbs_10_207_0_v1.1.0.pkl"
    goal = path if path.suffix else path / f"SMPL_{meant.upper()}.pkl"
    return InputError(
        f"{path}: no such body model; download SMPL for Python, version 1.1.0, from https://smpl.is.tue.mpg.de (after "
        f"registration) and put its {original} at {goal}, or use a body that needs no download: {', '.join(STAND_INS)}"
    )


def read_body_model(path: Path, num_betas: int = 10) -> BodyModelData:
    """Reads and checks a model file of SMPL's layout, with any number of vertices.

    Args:
        path: A .pkl or .npz file.
        num_betas: How many shape coefficients to keep, if the file has more.

    Raises:
        InputError: If the file is missing, damaged, or not SMPL's layout.
        ValueError: If `num_betas` is not positive.
    """
    arrays = _read_arrays(path, _BODY_ARRAYS, num_betas)
    parents = _parents(arrays, path)
    template = _numbers(arrays, "v_template", (None, 3), path)
    vertices = len(template)
    shape_directions = _numbers(arrays, "shapedirs", (vertices, 3, None), path)
    pose_directions = np.zeros((vertices, 3, 0), np.float32)
    if "posedirs" in arrays:
        pose_directions = _numbers(arrays, "posedirs", (vertices, 3, 9 * (len(parents) - 1)), path)
    own = {
        name: _sparse(arrays, name, (rows, vertices), path)
        for name, rows in _KEYPOINT_ROWS.items()
        if name in arrays or f"{name}_{_SPARSE_PARTS[0]}" in arrays
    }
    sets = complete_keypoint_sets(read_regressors_beside(path, template) | own, vertices)
    return BodyModelData(
        name=str(arrays.get("name", path.name)),
        template=template,
        shape_directions=np.ascontiguousarray(shape_directions[..., :num_betas]),
        pose_directions=pose_directions,
        joint_regressor=_sparse(arrays, "J_regressor", (len(parents), vertices), path),
        skin_weights=_skin_weights(arrays, (vertices, len(parents)), path),
        parents=parents,
        faces=_indices(arrays, "f", vertices, path),
        texture=_texture(arrays, path),
        keypoint_regressors=sets,
        missing_keypoints=remedies(sets, path, vertices),
    )


def read_rest_joints(path: Path, num_betas: int = 10) -> RestJoints:
    """Reads and checks of a model file what its joints depend on.

    Args:
        path: As for `read_body_model`.
        num_betas: As for `read_body_model`.

    Raises:
        InputError: If the file is missing, not SMPL's layout, or what is read of it is damaged.
        ValueError: If `num_betas` is not positive.
    """
    arrays = _read_arrays(path, _JOINT_ARRAYS, num_betas)
    parents = _parents(arrays, path)
    template = _checked(arrays, "v_template", (None, 3), "fiu", path)
    directions = _checked(arrays, "shapedirs", (len(template), 3, None), "fiu", path)[..., :num_betas]
    regressor = _sparse(arrays, "J_regressor", (len(parents), len(template)), path)
    name = str(arrays.get("name", path.name))
    # Rounded as a body model's arrays are, so that the joints are the same.
    template, directions = template.astype(np.float32), directions.astype(np.float32)
    return RestJoints.regressed(name, regressor, template, directions, tuple(parents.tolist()))


def _read_arrays(path: Path, wanted: Collection[str], num_betas: int) -> Mapping[str, Any]:
    """Those of the wanted arrays that the file has, of a .pkl all; any body model has those of `_REQUIRED`."""
    if num_betas < 1:
        raise ValueError(f"a body needs at least one shape coefficient, got num_betas={num_betas}")
    if not path.is_file():
        raise _missing(path, None)
    match path.suffix.lower():
        case ".pkl":
            content = load_pickle(path)
            if not isinstance(content, dict):
                raise InputError(f"{path}: not a body model, it holds a {type(content).__name__} in place of a dict")
            names, arrays = list(content), content
        case ".npz":
            names, arrays = _read_npz(path, wanted)
        case suffix:
            raise InputError(f"{path}: a body model is a .pkl or .npz file, not {suffix or 'one without suffix'}")
    if missing := [key for key in _REQUIRED if key not in names]:
        raise InputError(f"{path}: not a body model in SMPL's layout, it lacks {', '.join(missing)}")
    return arrays


def _read_npz(path: Path, wanted: Collection[str]) -> tuple[list[str], dict[str, Any]]:
    """Names of all arrays, and the wanted ones."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return list(archive.files), {key: archive[key] for key in archive.files if key in wanted}
    except Exception as error:  # numpy lets through what zipfile, zlib and Python's tokenizer raise
        raise InputError(f"{path}: not a whole .npz file of plain arrays ({one_line(error)})") from error


def _checked(arrays: Mapping[str, Any], key: str, shape: tuple[int | None, ...], kinds: str, path: Path) -> ndarray:
    """An array of the expected kind of number and shape, where None stands for any positive length."""
    array = np.asarray(arrays[key])
    fits = array.ndim == len(shape) and all(
        have > 0 if want is None else have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype.kind not in kinds:
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(f"{path}: {key} is {array.dtype} of shape {array.shape}, expected numbers of ({expected})")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{path}: {key} has entries that are not finite")
    return array


def _numbers(arrays: Mapping[str, Any], key: str, shape: tuple[int | None, ...], path: Path) -> Float32[ndarray, "..."]:
    return np.ascontiguousarray(_checked(arrays, key, shape, "fiu", path), dtype=np.float32)


def _indices(arrays: Mapping[str, Any], key: str, count: int, path: Path) -> Int64[ndarray, "faces 3"]:
    indices = _checked(arrays, key, (None, 3), "iu", path).astype(np.int64)
    if indices.min() < 0 or indices.max() >= count:
        raise InputError(f"{path}: {key} points at {indices.min()} to {indices.max()}, there are {count} to point at")
    return indices


def _parents(arrays: Mapping[str, Any], path: Path) -> Int64[ndarray, " joints"]:
    """The kinematic tree. Poses are meaningful for SMPL's own tree alone, so no other is accepted."""
    table = _checked(arrays, "kintree_table", (2, None), "fiu", path).astype(np.int64)
    parents = np.where(table[0] == _NO_PARENT, -1, table[0])
    if not np.array_equal(parents, SMPL24_PARENTS) or not np.array_equal(table[1], range(len(parents))):
        raise InputError(
            f"{path}: kintree_table has {len(parents)} joints that are not SMPL's tree of {len(SMPL24_PARENTS)}; "
            "SMPL-H, SMPL-X and MANO files are not supported"
        )
    return parents


def _skin_weights(arrays: Mapping[str, Any], shape: tuple[int, int], path: Path) -> Float32[ndarray, "vertices joints"]:
    stored = _checked(arrays, "weights", shape, "f", path)
    weights = stored.astype(np.float64)
    sums = weights.sum(axis=1, keepdims=True)
    if (worst := np.abs(sums - 1).max()) > WEIGHT_SUM_TOLERANCE:
        raise InputError(f"{path}: weights of a vertex sum to one only within {worst:.2g}")
    # Only what half precision has rounded is put right: other files are taken at their word, as smplx does.
    return (weights / sums if stored.dtype == np.float16 else weights).astype(np.float32)


def _sparse(arrays: Mapping[str, Any], key: str, shape: tuple[int, int], path: Path) -> csr_matrix:
    """A regressor on vertices: a scipy matrix, a dense array, or the four arrays of an .npz."""
    if key in arrays:
        stored = arrays[key]
        matrix = csr_matrix(stored if issparse(stored) else _checked(arrays, key, shape, "f", path))
        size = matrix.shape
    else:
        if lacking := [f"{key}_{part}" for part in _SPARSE_PARTS if f"{key}_{part}" not in arrays]:
            raise InputError(f"{path}: it lacks {key}, or in its place {', '.join(lacking)}")
        row, col, values, stored_size = (arrays[f"{key}_{part}"] for part in _SPARSE_PARTS)
        size = tuple(stored_size.ravel().tolist())
        try:
            matrix = csr_matrix((values, (row, col)), shape=shape)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {key} is not a sparse matrix ({one_line(error)})") from error
    if size != shape:
        raise InputError(f"{path}: {key} has shape {size}, expected {shape}")
    _checked({key: matrix.data}, key, (None,), "f", path)
    return matrix.astype(np.float32)


def _texture(arrays: Mapping[str, Any], path: Path) -> TextureLayout | None:
    if "vt" not in arrays or "ft" not in arrays:
        return None
    coordinates = _numbers(arrays, "vt", (None, 2), path)
    faces = _indices(arrays, "ft", len(coordinates), path)
    if len(faces) != len(arrays["f"]):
        raise InputError(f"{path}: ft has {len(faces)} faces, f has {len(arrays['f'])}")
    return TextureLayout(coordinates, faces)
