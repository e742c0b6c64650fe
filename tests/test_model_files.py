"""`bodies.model_files` on files written in the official layouts, whole and damaged, and the keypoints they define."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import tiny
import torch

from bodies import InputError, load_body_model
from bodies.joints import (
    EXTRA9,
    H36M17,
    KEYPOINT_NAMES,
    LSP14,
    OPENPOSE25,
    SMPL24,
    SMPL24_PARENTS,
    SMPL_VERTEX_IDS,
    SPIN24,
)
from bodies.model_files import STAND_INS, find_body_model, read_body_model

ARRAYS = tiny.model_arrays()
#: smplx's 45 joints (24 of the chain, then vertices) by SPIN's indices; from 45 on J_regressor_extra (FORMATS 10.2).
SPIN_OPENPOSE25 = (
    24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
)  # fmt: skip
SPIN_GT24 = (8, 5, 45, 46, 4, 7, 21, 19, 17, 16, 18, 20, 47, 48, 49, 50, 51, 52, 53, 24, 26, 25, 28, 27)
SMPLX_VERTICES = (332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787)


def assert_same_body(data, arrays, num_betas=10):
    """Up to the rounding of float32, in which the model is kept."""
    np.testing.assert_allclose(data.template, arrays["v_template"], atol=1e-7)
    np.testing.assert_allclose(data.shape_directions, arrays["shapedirs"][..., :num_betas], atol=1e-8)
    np.testing.assert_allclose(data.pose_directions, arrays["posedirs"], atol=1e-8)
    np.testing.assert_allclose(data.skin_weights, arrays["weights"], atol=1e-7)
    np.testing.assert_allclose(data.joint_regressor.toarray(), arrays["J_regressor"].toarray(), atol=1e-7)
    np.testing.assert_array_equal(data.faces, arrays["f"])
    assert tuple(data.parents) == SMPL24_PARENTS


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("chumpy", [True, False])
def test_pkl_as_downloaded(tmp_path, chumpy, protocol):
    file = tiny.write_pkl(tmp_path / "SMPL_NEUTRAL.pkl", ARRAYS, chumpy=chumpy, protocol=protocol)
    data = read_body_model(file)
    assert_same_body(data, ARRAYS)
    assert data.name == "SMPL_NEUTRAL.pkl"
    assert data.texture is None


def test_pkl_with_chumpy_arrays_in_a_process_that_cannot_import_chumpy(tmp_path):
    file = tiny.write_pkl(tmp_path / "SMPL_NEUTRAL.pkl", ARRAYS)
    program = (
        "import importlib.util, bodies\n"
        f"print(bodies.load_body_model({str(file)!r}).num_vertices, importlib.util.find_spec('chumpy'))\n"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "240 None\n"


def test_npz(tmp_path):
    assert_same_body(read_body_model(tiny.write_npz(tmp_path / "SMPL_NEUTRAL.npz", ARRAYS)), ARRAYS)


def test_npz_with_sparse_parts_and_texture_and_its_own_name(tmp_path):
    matrix = scipy.sparse.coo_matrix(ARRAYS["J_regressor"])
    extra = {
        "J_regressor_rows": matrix.row,
        "J_regressor_cols": matrix.col,
        "J_regressor_values": matrix.data,
        "J_regressor_shape": np.array(matrix.shape),
        "vt": np.random.default_rng(0).uniform(size=(300, 2)),
        "ft": ARRAYS["f"] + 60,
        "name": "a body",
    }
    arrays = {key: value for key, value in ARRAYS.items() if key != "J_regressor"}
    data = read_body_model(tiny.write_npz(tmp_path / "body.npz", arrays | extra))
    assert_same_body(data, ARRAYS)
    assert data.name == "a body"
    np.testing.assert_allclose(data.texture.coordinates, extra["vt"], atol=1e-7)
    np.testing.assert_array_equal(data.texture.faces, extra["ft"])


def test_half_precision_weights_are_put_right(tmp_path):
    halved = ARRAYS | {"weights": ARRAYS["weights"].astype(np.float16)}
    weights = read_body_model(tiny.write_npz(tmp_path / "body.npz", halved)).skin_weights
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(weights, ARRAYS["weights"], atol=1e-3)  # 2^-11 of at most 1, twice


def test_no_pose_blend_shapes(tmp_path):
    arrays = tiny.model_arrays(pose_blend_shapes=False)
    assert read_body_model(tiny.write_npz(tmp_path / "body.npz", arrays)).pose_directions.shape == (240, 3, 0)


@pytest.mark.parametrize(("stored", "asked", "kept"), [(300, 10, 10), (300, 16, 16), (10, 16, 10), (10, 3, 3)])
def test_number_of_shape_coefficients(tmp_path, stored, asked, kept):
    arrays = tiny.model_arrays(72, stored)
    data = read_body_model(tiny.write_pkl(tmp_path / "SMPL_MALE.pkl", arrays), num_betas=asked)
    assert_same_body(data, arrays, kept)


def test_no_shape_coefficients_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_betas=0"):
        read_body_model(tiny.write_npz(tmp_path / "body.npz", ARRAYS), num_betas=0)


# Which file a name means


OFFICIAL = {
    "neutral": "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl",
    "male": "basicmodel_m_lbs_10_207_0_v1.1.0.pkl",
    "female": "basicmodel_f_lbs_10_207_0_v1.1.0.pkl",
}


@pytest.mark.parametrize("gender", OFFICIAL)
@pytest.mark.parametrize("subfolder", ["", "smpl", "models", "smpl/models"])
def test_files_of_a_folder(tmp_path, subfolder, gender):
    folder = tmp_path / subfolder
    folder.mkdir(parents=True, exist_ok=True)
    for original in OFFICIAL.values():
        (folder / original).touch()
    (folder / "basicModel_f_lbs_10_207_0_v1.0.0.pkl").touch()
    assert find_body_model(tmp_path, gender) == folder / OFFICIAL[gender]
    for word in OFFICIAL:
        (folder / f"SMPL_{word.upper()}.npz").touch()
    assert find_body_model(tmp_path, gender) == folder / f"SMPL_{gender.upper()}.npz"
    for word in OFFICIAL:
        (folder / f"SMPL_{word.upper()}.pkl").touch()
    assert find_body_model(tmp_path, gender) == folder / f"SMPL_{gender.upper()}.pkl"
    assert find_body_model(tmp_path) == folder / "SMPL_NEUTRAL.pkl"


def test_old_names_and_the_file_of_another_gender_beside(tmp_path):
    female = tmp_path / "basicModel_f_lbs_10_207_0_v1.0.0.pkl"
    male = tmp_path / "basicmodel_m_lbs_10_207_0_v1.0.0.pkl"
    for file in (female, male):
        file.touch()
    assert find_body_model(tmp_path, "female") == female
    assert find_body_model(female) == female
    assert find_body_model(female, "male") == male
    with pytest.raises(InputError, match="put its basicmodel_neutral_lbs"):
        find_body_model(female, "neutral")


@pytest.mark.parametrize(
    ("name", "original", "goal"),
    [
        ("SMPL_NEUTRAL.pkl", "basicmodel_neutral", "SMPL_NEUTRAL.pkl"),
        ("SMPL_MALE.pkl", "basicmodel_m", "SMPL_MALE.pkl"),
        ("SMPL_FEMALE.npz", "basicmodel_f", "SMPL_FEMALE.npz"),
        ("models", "basicmodel_neutral", "models/SMPL_NEUTRAL.pkl"),
        ("", "basicmodel_neutral", "SMPL_NEUTRAL.pkl"),
    ],
)
def test_missing_file_says_what_to_download_and_where_to_put_it(tmp_path, name, original, goal):
    with pytest.raises(InputError) as caught:
        load_body_model(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name))
    assert "https://smpl.is.tue.mpg.de" in message
    assert f"put its {original}_lbs_10_207_0_v1.1.0.pkl at {tmp_path / goal}, or" in message
    assert "standin, standin-tiny" in message
    assert "\n" not in message


def test_reading_a_missing_file_says_the_same(tmp_path):
    with pytest.raises(InputError, match="https://smpl"):
        read_body_model(tmp_path / "SMPL_NEUTRAL.pkl")


# What is refused


def changed(key: str, value: object) -> dict[str, object]:
    return {name: array for name, array in (ARRAYS | {key: value}).items() if array is not None}


def with_entry(key: str, place: object, value: float) -> dict[str, object]:
    array = ARRAYS[key].copy()
    array[place] = value
    return changed(key, array)


WRONG = {
    "no_template": (changed("v_template", None), "lacks v_template"),
    "no_regressor": (changed("J_regressor", None), "lacks J_regressor"),
    "flat_template": (changed("v_template", np.zeros((240, 2))), "v_template is float64 of shape"),
    "no_vertices": (changed("v_template", np.zeros((0, 3))), "v_template is"),
    "template_of_text": (changed("v_template", np.full((240, 3), "x")), "v_template is <U1"),
    "nan_template": (with_entry("v_template", (3, 1), np.nan), "v_template has entries that are not finite"),
    "infinite_shape": (with_entry("shapedirs", (3, 1, 0), np.inf), "shapedirs has entries"),
    "nan_pose": (with_entry("posedirs", (0, 0, 0), np.nan), "posedirs has entries"),
    "fewer_shape_vertices": (changed("shapedirs", ARRAYS["shapedirs"][1:]), r"shapedirs .* expected .*\(240, 3, any\)"),
    "fewer_pose_features": (changed("posedirs", ARRAYS["posedirs"][..., 1:]), r"expected numbers of \(240, 3, 207\)"),
    "fewer_weights": (changed("weights", ARRAYS["weights"][:, 1:]), "weights is"),
    "weights_sum": (with_entry("weights", (5, 0), 0.9), "weights of a vertex sum to one only within"),
    "integer_weights": (changed("weights", np.eye(24, dtype=int)[np.arange(240) % 24]), "weights is int64"),
    "face_too_high": (with_entry("f", (0, 0), 240), "f points at 0 to 240, there are 240"),
    "face_below_zero": (changed("f", ARRAYS["f"].astype(np.int64) - 1), "f points at -1"),
    "float_faces": (changed("f", ARRAYS["f"].astype(float)), "f is float64"),
    "quads": (changed("f", np.zeros((5, 4), int)), "f is int64 of shape"),
    "regressor_rows": (changed("J_regressor", ARRAYS["J_regressor"][:23]), "J_regressor"),
    "regressor_columns": (changed("J_regressor", ARRAYS["J_regressor"][:, :-1]), "J_regressor"),
    "nan_regressor": (changed("J_regressor", ARRAYS["J_regressor"] * np.nan), "J_regressor has entries"),
    "other_tree": (with_entry("kintree_table", (0, 5), 1), "kintree_table has 24 joints that are not SMPL's"),
    "root_is_not_first": (with_entry("kintree_table", (0, 0), 1), "kintree_table"),
    "joint_ids": (with_entry("kintree_table", (1, 0), 1), "kintree_table"),
    "smplx": (changed("kintree_table", np.zeros((2, 55), int)), "55 joints .* SMPL-X"),
    "texture_faces": (ARRAYS | {"vt": np.zeros((9, 2)), "ft": np.full((60, 3), 9)}, "ft points at 9"),
    "texture_count": (ARRAYS | {"vt": np.zeros((9, 2)), "ft": np.zeros((3, 3), int)}, "ft has 3 faces, f has 60"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_wrong_arrays_are_refused_by_file_and_name(tmp_path, kind, suffix):
    arrays, cause = WRONG[kind]
    file = tmp_path / f"body{suffix}"
    if suffix == ".npz":
        tiny.write_npz(file, arrays)
    else:
        tiny.write_pkl(file, arrays, chumpy=False)
    with pytest.raises(InputError, match=rf"body\{suffix}: .*{cause}"):
        read_body_model(file)


@pytest.mark.parametrize(
    ("part", "value"), [("rows", np.array([24])), ("cols", np.array([240])), ("shape", np.array([24, 241]))]
)
def test_wrong_sparse_parts_are_refused(tmp_path, part, value):
    parts = {"rows": np.array([0]), "cols": np.array([0]), "values": np.ones(1), "shape": np.array([24, 240])}
    parts[part] = value
    arrays = changed("J_regressor", None) | {f"J_regressor_{key}": array for key, array in parts.items()}
    with pytest.raises(InputError, match=r"body\.npz: J_regressor"):
        read_body_model(tiny.write_npz(tmp_path / "body.npz", arrays))


def test_other_files_are_refused(tmp_path):
    for name, content in {
        "body.npz": b"no zip archive",
        "list.pkl": b"]q\x00.",
        "html.pkl": b"<html>",
        "body.obj": b"v 0 0 0",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_body_model(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(InputError, match=r"array\.npz: not a whole"):
        load_body_model(tmp_path / "array.npz")


def test_object_arrays_in_npz_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "body.npz", **(ARRAYS | {"J_regressor": np.array(ARRAYS["J_regressor"], dtype=object)}))
    with pytest.raises(InputError, match=r"body\.npz: not a whole .npz file of plain arrays"):
        read_body_model(tmp_path / "body.npz")


def test_truncated_and_changed_npz_give_a_body_or_an_input_error(tmp_path):
    arrays = tiny.model_arrays(24, 1, pose_blend_shapes=False)
    np.savez_compressed(tmp_path / "whole.npz", **(arrays | {"J_regressor": arrays["J_regressor"].toarray()}))
    data = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    file = tmp_path / "body.npz"
    refused = 0
    for place in rng.integers(len(data), size=60):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]):
            file.write_bytes(damaged)
            try:
                read_body_model(file)
            except InputError:
                refused += 1
    assert refused > 100  # of 120: zip's checksums see all but changes of unused header fields


# Keypoints


def columns(regressor: scipy.sparse.csr_matrix) -> list[int]:
    """The one column that each row takes whole."""
    assert regressor.nnz == regressor.shape[0]
    assert (regressor.data == 1).all()
    return regressor.indices.tolist()


@pytest.fixture(scope="module")
def smpl_folder(tmp_path_factory):
    """A folder as users have it: SMPL's file in smpl/, SPIN's regressors in the folder above or beside it."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "smpl").mkdir()
    arrays = tiny.model_arrays(tiny.SMPL_VERTICES, 1, pose_blend_shapes=False)
    tiny.write_npz(folder / "smpl" / "SMPL_NEUTRAL.npz", arrays)
    template = arrays["v_template"]
    np.save(folder / "J_regressor_h36m.npy", tiny.joint_regressor_near(template, tiny.NEAR_H36M17))
    np.save(folder / "smpl" / "J_regressor_extra.npy", tiny.joint_regressor_near(template, tiny.NEAR_EXTRA9))
    return folder


@pytest.fixture(scope="module")
def smpl_data(smpl_folder):
    return read_body_model(smpl_folder / "smpl" / "SMPL_NEUTRAL.npz")


def test_smpl_openpose25_takes_the_joints_and_vertices_that_smplx_and_spin_list(smpl_data):
    smplx_45 = [*(tiny.SMPL_VERTICES + np.arange(24)), *SMPLX_VERTICES]
    assert columns(smpl_data.keypoint_regressors["openpose25"]) == [smplx_45[k] for k in SPIN_OPENPOSE25]


def test_vertex_ids_are_those_of_smplx():
    from smplx.vertex_ids import vertex_ids

    short = {"big_toe": "BigToe", "small_toe": "SmallToe", "heel": "Heel"}
    for name, vertex in SMPL_VERTEX_IDS.items():
        side, _, part = name.partition("_")
        theirs = name if not part else side[0].upper() + short[part] if part in short else side[0] + part
        assert vertex_ids["smplh"][theirs] == vertex


def test_smpl_h36m17_lsp14_and_spin24_come_from_the_files_beside(smpl_folder, smpl_data):
    sets = smpl_data.keypoint_regressors
    assert set(sets) == {"openpose25", "h36m17", "lsp14", "spin24"}
    assert smpl_data.missing_keypoints == {}
    h36m = np.load(smpl_folder / "J_regressor_h36m.npy")
    extra = np.load(smpl_folder / "smpl" / "J_regressor_extra.npy")
    np.testing.assert_allclose(sets["h36m17"].toarray()[:, :-24], h36m, atol=1e-7)
    assert not sets["h36m17"].toarray()[:, -24:].any()
    np.testing.assert_array_equal(
        sets["lsp14"].toarray(), sets["h36m17"].toarray()[[6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10]]
    )
    # SPIN's own way: smplx's joints, then the nine, then its list of indices.
    identity = np.eye(tiny.SMPL_VERTICES + 24, dtype=np.float32)
    stacked = [*identity[-24:], *identity[list(SMPLX_VERTICES)], *np.pad(extra, ((0, 0), (0, 24)))]
    stacked[35:35] = [None] * 10  # the finger tips
    np.testing.assert_allclose(sets["spin24"].toarray(), [stacked[k] for k in SPIN_GT24], atol=1e-7)


@pytest.mark.parametrize("name", ["J_regressor_h36m.npy", "J_regressor_h36m_correct.npy"])
def test_both_copies_of_the_h36m_regressor_give_the_same_keypoints(tmp_path, smpl_folder, smpl_data, name):
    (tmp_path / "SMPL_NEUTRAL.npz").symlink_to(smpl_folder / "smpl" / "SMPL_NEUTRAL.npz")
    left_first = np.load(smpl_folder / "J_regressor_h36m.npy")
    right_first = left_first[[0, 4, 5, 6, 1, 2, 3, *range(7, 17)]]
    for copy in (left_first, right_first):
        np.save(tmp_path / name, copy)
        regressor = read_body_model(tmp_path / "SMPL_NEUTRAL.npz").keypoint_regressors["h36m17"]
        assert (regressor != smpl_data.keypoint_regressors["h36m17"]).nnz == 0


def spoilt(regressor: np.ndarray, kind: str) -> np.ndarray:
    match kind:
        case "one leg swapped":
            return regressor[[0, 4, 2, 3, 1, *range(5, 17)]]
        case "arms swapped":
            return regressor[[*range(11), 14, 15, 16, 11, 12, 13]]
        case "rows do not sum to one":
            return regressor * 1.1
        case "too few rows":
            return regressor[:14]
        case "columns of another body":
            return regressor[:, :-1]
        case "integers":
            return regressor.astype(int)
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "one leg swapped",
        "arms swapped",
        "rows do not sum to one",
        "too few rows",
        "columns of another body",
        "integers",
    ],
)
def test_a_wrong_h36m_regressor_is_refused(tmp_path, smpl_folder, kind):
    (tmp_path / "SMPL_NEUTRAL.npz").symlink_to(smpl_folder / "smpl" / "SMPL_NEUTRAL.npz")
    np.save(tmp_path / "J_regressor_h36m.npy", spoilt(np.load(smpl_folder / "J_regressor_h36m.npy"), kind))
    with pytest.raises(InputError, match=r"J_regressor_h36m\.npy: "):
        read_body_model(tmp_path / "SMPL_NEUTRAL.npz")


def test_a_damaged_regressor_or_one_with_swapped_hips_is_refused(tmp_path, smpl_folder):
    (tmp_path / "SMPL_NEUTRAL.npz").symlink_to(smpl_folder / "smpl" / "SMPL_NEUTRAL.npz")
    extra = np.load(smpl_folder / "smpl" / "J_regressor_extra.npy")
    np.save(tmp_path / "J_regressor_extra.npy", extra[[1, 0, *range(2, 9)]])
    with pytest.raises(InputError, match=r"J_regressor_extra\.npy: row 0 is not the right hip"):
        read_body_model(tmp_path / "SMPL_NEUTRAL.npz")
    (tmp_path / "J_regressor_extra.npy").write_bytes(b"version https://git-lfs")
    with pytest.raises(InputError, match=r"J_regressor_extra\.npy: not a whole"):
        read_body_model(tmp_path / "SMPL_NEUTRAL.npz")


def test_missing_regressors_are_named_when_their_keypoints_are_asked_for(tmp_path, smpl_folder):
    (tmp_path / "SMPL_NEUTRAL.npz").symlink_to(smpl_folder / "smpl" / "SMPL_NEUTRAL.npz")
    body = load_body_model(tmp_path)
    mesh = body(body.rest_parameters())
    assert body.keypoints(mesh, "openpose25").shape == (1, 25, 3)
    for name, file in {
        "h36m17": "J_regressor_h36m.npy",
        "lsp14": "J_regressor_h36m.npy",
        "spin24": "J_regressor_extra.npy",
    }.items():
        with pytest.raises(InputError) as caught:
            body.keypoints(mesh, name)
        message = str(caught.value)
        assert message.startswith("SMPL_NEUTRAL.npz: ")
        assert f"put {file} from the data of github.com/nkolot/SPIN into {tmp_path}" in message


def test_a_body_of_another_mesh_has_no_vertex_id_keypoints(tmp_path, smpl_folder):
    tiny.write_pkl(tmp_path / "SMPL_NEUTRAL.pkl", ARRAYS)
    # SMPL's own regressor lies there too; it is not meant for this body.
    np.save(tmp_path / "J_regressor_h36m.npy", np.load(smpl_folder / "J_regressor_h36m.npy"))
    body = load_body_model(tmp_path)
    assert body.keypoint_sets == ("smpl24",)
    with pytest.raises(InputError, match="6890 vertices alone"):
        body.keypoint_regressor("openpose25")
    with pytest.raises(InputError, match=r"put J_regressor_h36m\.npy with a column for each of its 240 vertices"):
        body.keypoint_regressor("lsp14")
    np.save(tmp_path / "J_regressor_h36m.npy", tiny.joint_regressor_near(ARRAYS["v_template"], tiny.NEAR_H36M17))
    assert load_body_model(tmp_path).keypoint_sets == ("smpl24", "h36m17", "lsp14")


def test_regressors_within_a_file_win_and_complete_the_sets(tmp_path):
    rng = np.random.default_rng(4)
    own = {
        name: rng.dirichlet(np.ones(240), size) for name, size in (("openpose25", 25), ("h36m17", 17), ("extra9", 9))
    }
    arrays = dict(ARRAYS)
    for name, dense in own.items():
        matrix = scipy.sparse.coo_matrix(dense)
        parts = {"rows": matrix.row, "cols": matrix.col, "values": matrix.data, "shape": np.array(matrix.shape)}
        arrays |= {f"{name}_{part}": array for part, array in parts.items()}
    np.save(tmp_path / "J_regressor_h36m.npy", tiny.joint_regressor_near(ARRAYS["v_template"], tiny.NEAR_H36M17))
    data = read_body_model(tiny.write_npz(tmp_path / "body.npz", arrays))
    sets = {name: matrix.toarray() for name, matrix in data.keypoint_regressors.items()}
    assert set(sets) == {"openpose25", "h36m17", "lsp14", "spin24"}
    assert data.missing_keypoints == {}
    for name in ("openpose25", "h36m17"):
        np.testing.assert_allclose(sets[name][:, :240], own[name], atol=1e-7)
    np.testing.assert_allclose(sets["lsp14"][0, :240], own["h36m17"][H36M17.index("right_ankle")], atol=1e-7)
    np.testing.assert_allclose(sets["spin24"][2, :240], own["extra9"][0], atol=1e-7)  # LSP's right hip, not the chain's
    np.testing.assert_allclose(sets["spin24"][19, :240], own["openpose25"][0], atol=1e-7)
    assert sets["spin24"][0, 240 + SMPL24.index("right_ankle")] == 1
    arrays["openpose25_shape"] = np.array([24, 240])
    with pytest.raises(InputError, match=r"body\.npz: openpose25"):
        read_body_model(tiny.write_npz(tmp_path / "body.npz", arrays))


# The stand-in


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_in(name):
    body = load_body_model(name)
    assert body.name == name
    assert body.num_betas == 10
    assert load_body_model(name, "female").num_vertices == body.num_vertices
    assert load_body_model(name, num_betas=4).num_betas == 4
    mesh = body(body.rest_parameters())
    places = {
        kind: dict(zip(names, body.keypoints(mesh, kind)[0], strict=True)) for kind, names in KEYPOINT_NAMES.items()
    }
    for kind, points in places.items():
        for point, position in points.items():
            side = point.partition("_")[0]
            if side in ("left", "right"):  # left of the body is at x > 0, by more than an eye's offset from the middle
                assert position[0] > 0.01 if side == "left" else position[0] < -0.01, f"{kind}: {point}"
    for point in ("left_knee", "right_ankle", "left_elbow", "right_wrist", "left_shoulder"):
        for kind in ("openpose25", "h36m17", "lsp14", "spin24"):
            # Annotators' joints, not SMPL's: a few centimetres apart at most.
            torch.testing.assert_close(places[kind][point], places["smpl24"][point], atol=0.06, rtol=0)
    assert places["openpose25"]["nose"][2] > places["openpose25"]["left_ear"][2]  # the face looks along z
    assert places["h36m17"]["head_top"][1] > places["openpose25"]["nose"][1] > places["smpl24"]["neck"][1]
    assert places["openpose25"]["left_heel"][2] < places["openpose25"]["left_big_toe"][2]


def test_the_full_stand_in_has_a_texture_layout():
    texture = load_body_model("standin").texture
    assert texture.faces.shape == load_body_model("standin").faces.shape
    assert texture.coordinates.min() >= 0
    assert texture.coordinates.max() <= 1


def test_names_count_the_keypoints():
    assert [len(names) for names in (SMPL24, OPENPOSE25, H36M17, LSP14, SPIN24, EXTRA9)] == [24, 25, 17, 14, 24, 9]
