"""Estimates in .npz: every documented name is read, and what is written comes back."""

import numpy as np
import pytest
import roma
import torch

from bodies import BodyParameters, InputError, PinholeCamera
from datamodules.estimates import read_estimate, write_estimate

POSE = np.random.default_rng(0).normal(scale=0.4, size=(2, 72)).astype(np.float32)
BETAS = np.arange(20, dtype=np.float32).reshape(2, 10) / 10
TRANSL = np.float32([[0, 0, 4], [1, 0, 5]])


def test_written_file_comes_back(tmp_path):
    parameters = BodyParameters.from_axis_angle(*map(torch.from_numpy, (POSE, BETAS, TRANSL)))
    camera = PinholeCamera(
        torch.tensor([[900.0, 910.0]]), torch.tensor([[310.0, 250.0]]), torch.tensor([[640.0, 480.0]])
    )
    write_estimate(tmp_path / "a.npz", parameters, camera, "standin")
    back = read_estimate(tmp_path / "a.npz")
    assert torch.allclose(back.parameters.rotations, parameters.rotations, atol=1e-6)
    assert torch.equal(back.parameters.betas, parameters.betas)
    assert torch.equal(back.parameters.transl, parameters.transl)
    assert back.focal_px.tolist() == [900, 910]
    assert back.center_px.tolist() == [310, 250]
    with np.load(tmp_path / "a.npz") as amass:  # AMASS's names
        assert {"poses", "betas", "trans", "gender"} <= set(amass.files)


def test_every_documented_name_is_read(tmp_path):
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(POSE).view(2, 24, 3)).numpy()
    intrinsics = np.float32([[800, 0, 300], [0, 820, 200], [0, 0, 1]])
    layouts = [
        {"poses": POSE, "betas": BETAS, "trans": TRANSL, "intrinsics": intrinsics},
        {"pose": POSE, "shape": BETAS, "transl": TRANSL, "K": intrinsics},
        {"rotations": rotations, "betas": BETAS, "trans": TRANSL, "focal": [800, 820], "center_px": [300, 200]},
        {"rotmats": rotations, "betas": BETAS, "trans": TRANSL, "focal_px": [800, 820], "center_px": [300, 200]},
    ]
    for layout in layouts:
        np.savez(tmp_path / "a.npz", **layout)
        estimate = read_estimate(tmp_path / "a.npz")
        assert np.allclose(estimate.parameters.rotations, rotations, atol=1e-5)
        assert torch.equal(estimate.parameters.betas, torch.from_numpy(BETAS))
        assert estimate.focal_px.tolist() == [800, 820]
        assert estimate.center_px.tolist() == [300, 200]


def test_a_single_person_needs_no_first_axis_and_one_shape_serves_all(tmp_path):
    np.savez(tmp_path / "one.npz", poses=POSE[0], betas=BETAS[0], trans=TRANSL[0], focal=500.0)
    one = read_estimate(tmp_path / "one.npz")
    assert len(one.parameters) == 1
    assert one.focal_px.tolist() == [500, 500]
    assert one.center_px is None
    np.savez(tmp_path / "two.npz", poses=POSE, betas=BETAS[0], trans=TRANSL)
    two = read_estimate(tmp_path / "two.npz")
    assert torch.equal(two.parameters.betas[0], two.parameters.betas[1])
    assert two.focal_px is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trans": None}, "has no 'trans'"),
        ({"poses": None}, "has no 'poses'"),
        ({"poses": POSE[:1]}, "'poses' has shape (1, 72), expected (2, 72)"),
        ({"betas": np.zeros((3, 10))}, "'betas' has shape (3, 10)"),
        ({"betas": np.full((2, 10), np.inf)}, "'betas' holds numbers that are not finite"),
        ({"trans": np.array([["a", "b", "c"]] * 2)}, "'trans' does not hold numbers"),
        ({"focal_px": -3.0}, "the focal length must be positive"),
        ({"focal_px": [1.0, 2.0, 3.0]}, "'focal_px' has shape (3,)"),
        ({"intrinsics": np.eye(2)}, "'intrinsics' has shape (2, 2)"),
        ({"rotations": np.eye(3)[None].repeat(24, 0)[None].repeat(2, 0) * [1, 1, -1]}, "are no rotations"),
    ],
)
def test_bad_parts_are_named(tmp_path, changes, message):
    arrays = {"poses": POSE, "betas": BETAS, "trans": TRANSL} | changes
    path = tmp_path / "bad.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(InputError) as error:
        read_estimate(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_truncated_and_foreign_files_are_named(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, poses=POSE, betas=BETAS, trans=TRANSL)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "text.npz").write_text("poses")
    np.save(tmp_path / "array.npy", POSE)
    for name in ("cut.npz", "text.npz", "array.npy", "absent.npz"):
        with pytest.raises(InputError, match=name):
            read_estimate(tmp_path / name)
