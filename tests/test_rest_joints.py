"""`bodies.rest_joints` against the whole body model of the same file."""

from functools import partial

import numpy as np
import pytest
import tiny
import torch
from scipy.spatial.transform import Rotation

from bodies import InputError, load_body_model
from bodies.model_files import load_rest_joints, read_rest_joints

ARRAYS = tiny.model_arrays()
#: Both are in single precision, of metres; they may sum in another order.
ATOL_M = 1e-6


def any_betas(count, seed=0):
    return np.random.default_rng(seed).normal(size=(3, count)) * 2


def model_file(folder, kind):
    match kind:
        case "pkl":
            return tiny.write_pkl(folder / "SMPL_MALE.pkl", ARRAYS)
        case "npz":
            return tiny.write_npz(folder / "SMPL_MALE.npz", ARRAYS)
        case _:
            return kind


@pytest.mark.parametrize("kind", ["standin", "standin-tiny", "pkl", "npz"])
def test_joints_are_those_of_the_whole_body_model(tmp_path, kind):
    path = model_file(tmp_path, kind)
    body, joints = load_body_model(path), load_rest_joints(path)
    assert (joints.name, joints.parents) == (body.name, body.parents)
    np.testing.assert_array_equal(joints.template_m, body.joint_template)
    np.testing.assert_array_equal(joints.directions_m, body.joint_shape_directions)
    for count in (4, body.num_betas):
        betas = any_betas(count)
        rest = body.shape_joints(torch.tensor(betas, dtype=torch.float32))
        np.testing.assert_allclose(joints.at_rest(betas), rest, rtol=0, atol=ATOL_M)
        np.testing.assert_allclose(joints.pelvis(betas), rest[:, 0], rtol=0, atol=ATOL_M)
    turns = Rotation.random(3 * 24, rng=1).as_matrix().reshape(3, 24, 3, 3)
    posed = body.pose(rest, torch.tensor(turns, dtype=torch.float32)).joints
    # Nine levels of the chain, each with a rotation in single precision.
    np.testing.assert_allclose(joints.posed(joints.at_rest(betas), turns), posed, rtol=0, atol=10 * ATOL_M)


def test_posing_leaves_its_inputs_alone():
    joints, turns = load_rest_joints("standin-tiny"), Rotation.random(24, rng=2).as_matrix()[None]
    rest = joints.at_rest(any_betas(10)[:1])
    before = rest.copy(), turns.copy()
    joints.posed(rest, turns)
    np.testing.assert_array_equal(rest, before[0])
    np.testing.assert_array_equal(turns, before[1])


def test_of_many_coefficients_the_first_are_kept(tmp_path):
    arrays = ARRAYS | {"shapedirs": np.random.default_rng(3).normal(size=(240, 3, 300))}
    path = tiny.write_npz(tmp_path / "SMPL_NEUTRAL.npz", arrays)
    whole = load_body_model(path).joint_shape_directions
    np.testing.assert_array_equal(load_rest_joints(path).directions_m, whole)
    assert load_rest_joints(path, num_betas=20).directions_m.shape == (24, 3, 20)
    with pytest.raises(ValueError, match="has 10 shape coefficients, got 11"):
        load_rest_joints(path).at_rest(any_betas(11))
    with pytest.raises(ValueError, match="num_betas=0"):
        load_rest_joints(path, num_betas=0)


def spoiled(key, value):
    return {**ARRAYS, key: value}


@pytest.mark.parametrize("write", [partial(tiny.write_pkl, chumpy=False), tiny.write_npz], ids=["pkl", "npz"])
@pytest.mark.parametrize(
    "arrays",
    [
        {key: value for key, value in ARRAYS.items() if key != "weights"},
        {key: value for key, value in ARRAYS.items() if key != "shapedirs"},
        {key: value for key, value in ARRAYS.items() if key != "J_regressor"},
        spoiled("v_template", ARRAYS["v_template"] * np.nan),
        spoiled("v_template", ARRAYS["v_template"][:, :2]),
        spoiled("shapedirs", ARRAYS["shapedirs"][:7]),
        spoiled("kintree_table", ARRAYS["kintree_table"][:, :20]),
        spoiled("J_regressor", ARRAYS["J_regressor"][:, :100]),
    ],
    ids=["no weights", "no shapes", "no regressor", "not finite", "flat", "few shapes", "other tree", "few vertices"],
)
def test_a_bad_file_is_refused_in_the_words_of_the_whole_body_model(tmp_path, arrays, write):
    path = tmp_path / ("body.npz" if write is tiny.write_npz else "body.pkl")
    write(path, arrays)
    with pytest.raises(InputError) as whole:
        load_body_model(path)
    with pytest.raises(InputError) as joints:
        load_rest_joints(path)
    assert str(joints.value) == str(whole.value)


@pytest.mark.parametrize("name", ["gone.pkl", "cut.npz", "cut.pkl", "body.txt"])
def test_what_is_no_model_file_is_refused_in_the_same_words(tmp_path, name):
    path = tmp_path / name
    if name.startswith("cut"):
        (tiny.write_pkl if path.suffix == ".pkl" else tiny.write_npz)(path, ARRAYS)
        path.write_bytes(path.read_bytes()[:-100])
    elif name.startswith("body"):
        path.write_text("a body")
    with pytest.raises(InputError) as whole:
        load_body_model(path)
    with pytest.raises(InputError) as joints:
        read_rest_joints(path) if path.is_file() else load_rest_joints(path)
    assert str(joints.value) == str(whole.value)
