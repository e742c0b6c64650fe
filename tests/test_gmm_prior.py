"""The Gaussian mixture prior: its energy against a plain reading of the formula, its files, and the stand-in."""

import pickle

import numpy as np
import pytest
import torch
from tiny_priors import Malicious

from bodies import InputError
from commands.prior import SMALLEST_STD_RAD, bake
from datamodules.poses import sample_poses
from datamodules.posture import mirrored_pose
from fitting.priors.gmm import STANDIN_PATH, GmmPrior

COMPONENTS = 5


@pytest.fixture(scope="module")
def arrays():
    """A random mixture whose components overlap, so that each is best somewhere."""
    rng = np.random.default_rng(0)
    roots = rng.normal(0, 0.06, (COMPONENTS, 69, 69)) + 0.3 * np.eye(69)
    weights = rng.uniform(0.2, 1, COMPONENTS)
    return {
        "means": rng.normal(0, 0.4, (COMPONENTS, 69)),
        "covars": roots @ roots.transpose(0, 2, 1),
        "weights": weights / weights.sum(),
    }


@pytest.fixture(scope="module")
def prior(arrays):
    return GmmPrior(**arrays, dtype=torch.float64)


@pytest.fixture(scope="module")
def poses(arrays):
    rng = np.random.default_rng(1)
    near = arrays["means"][rng.integers(COMPONENTS, size=40)]
    return torch.from_numpy(near + rng.normal(0, 0.3, (40, 69)))


@pytest.fixture(scope="module")
def standin():
    return GmmPrior.load("standin")


@pytest.fixture(scope="module")
def plausible():
    return sample_poses(3000, seed=99)


def read_formula(pose, means, covars, weights):
    """Energy of one pose and the component that gives it, straight from the formula in numpy."""
    roots = [np.sqrt(np.linalg.det(covar)) for covar in covars]
    energies = []
    for mean, covar, weight, root in zip(means, covars, weights, roots, strict=True):
        deviation = pose - mean
        share = weight / ((2 * np.pi) ** (69 / 2) * (root / min(roots)))
        energies.append(0.5 * deviation @ np.linalg.solve(covar, deviation) - np.log(share))
    return min(energies), int(np.argmin(energies))


# Energy


def test_energy_is_the_formula(prior, arrays, poses):
    expected = [read_formula(pose, **arrays) for pose in poses.numpy()]
    # Double precision; the covariances' condition numbers stay under 1e4.
    np.testing.assert_allclose(prior.energy(poses).numpy(), [energy for energy, _ in expected], rtol=1e-9)
    assert prior.components(poses).tolist() == [component for _, component in expected]
    assert len(set(prior.components(poses).tolist())) == COMPONENTS


def test_single_precision_is_enough(arrays, prior, poses):
    single = GmmPrior(**arrays).energy(poses.float())
    assert single.dtype == torch.float32
    # sums of 69 squares with a relative error of 6e-8 each, through a matrix of condition 1e2
    np.testing.assert_allclose(single.numpy(), prior.energy(poses).numpy(), rtol=2e-5)


def test_standin_energy_is_the_formula_on_its_file(plausible):
    with np.load(STANDIN_PATH) as file:
        mixture = {key: file[key].astype(np.float64) for key in ("means", "covars", "weights")}
    poses = torch.from_numpy(plausible.body_pose[:50]).double()
    expected = [read_formula(pose, **mixture)[0] for pose in poses.numpy()]
    actual = GmmPrior.load("standin", torch.float64).energy(poses)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)


def test_energy_at_a_mean_is_the_weight_term():
    one = GmmPrior(np.zeros((1, 69)), np.eye(69)[None] * 0.04, np.ones(1), dtype=torch.float64)
    constant = 69 / 2 * np.log(2 * np.pi)
    steps = torch.zeros(2, 69, dtype=torch.float64)
    steps[1, 3] = 0.2  # one standard deviation
    np.testing.assert_allclose(one.energy(steps).numpy(), [constant, constant + 0.5], rtol=1e-12)


def test_extreme_determinants_stay_finite():
    # sqrt|C| of the second is (1e-10)^69, far below what a float64 holds.
    covars = np.stack([np.eye(69), np.eye(69) * 1e-20])
    prior = GmmPrior(np.zeros((2, 69)), covars, np.array([0.5, 0.5]))
    energy = prior.energy(torch.ones(1, 69))
    constant = 69 / 2 * np.log(2 * np.pi) + np.log(2)
    assert energy.item() == pytest.approx(69 / 2 + constant + 69 * 10 * np.log(10), rel=1e-5)


def test_gradients_by_finite_differences(prior, poses):
    assert torch.autograd.gradcheck(prior.energy, (poses[:3].clone().requires_grad_(),))


def test_quadratic_holds_the_derivatives_of_the_energy(prior, poses):
    model = prior.quadratic(poses)
    moving = poses.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.energy(moving).sum(), moving)
    torch.testing.assert_close(model.energy, prior.energy(poses))
    torch.testing.assert_close(model.gradient, gradient)
    hessian = torch.autograd.functional.hessian(lambda pose: prior.energy(pose[None])[0], poses[0])
    torch.testing.assert_close(model.hessian[0], hessian)


def test_quadratic_predicts_a_step(prior, poses):
    model = prior.quadratic(poses)
    step = 1e-3 * torch.randn(poses.shape, dtype=torch.float64)
    predicted = (
        model.energy + (model.gradient * step).sum(1) + 0.5 * torch.einsum("bi,bij,bj->b", step, model.hessian, step)
    )
    same = prior.components(poses) == prior.components(poses + step)
    assert same.sum() > 30
    torch.testing.assert_close(predicted[same], prior.energy(poses + step)[same], rtol=1e-10, atol=1e-10)


def test_batch_mates_do_not_matter(prior, poses):
    alone = torch.cat([prior.energy(pose[None]) for pose in poses])
    torch.testing.assert_close(prior.energy(poses), alone, rtol=1e-12, atol=0)
    lost = torch.cat([poses[:1], torch.full_like(poses[:1], torch.nan)])
    assert prior.energy(lost)[0].isfinite()
    assert prior.energy(poses[:0]).shape == (0,)


def test_module_moves_and_keeps_nothing_in_checkpoints(prior):
    assert prior.state_dict() == {}
    assert prior.num_components == COMPONENTS
    assert GmmPrior.load("standin").double().means.dtype == torch.float64


# Files


def test_npz_and_pickle_hold_the_same_mixture(tmp_path, arrays, poses, prior):
    np.savez(tmp_path / "mixture.npz", **arrays)
    for protocol in (0, 2):
        with (tmp_path / f"gmm_08_{protocol}.pkl").open("wb") as file:
            pickle.dump(arrays, file, protocol=protocol)
    for path in tmp_path.iterdir():
        torch.testing.assert_close(GmmPrior.load(path, torch.float64).energy(poses), prior.energy(poses))


def changed(arrays, key, change):
    copy = {name: array.copy() for name, array in arrays.items()}
    copy[key] = change(copy[key])
    return copy


def poked(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("key", "change", "cause"),
    [
        ("means", lambda array: array[:, :-3], r"means has shape \(5, 66\)"),
        ("means", poked((1, 4), np.nan), "means holds numbers that are not finite"),
        ("means", lambda array: array.astype(str), "means does not hold numbers"),
        ("covars", lambda array: array[:-1], "covars has shape"),
        ("covars", poked((2, 5, 5), np.inf), "covars holds numbers that are not finite"),
        ("covars", poked((2, 5, 6), 0.9), "covariance of component 2 is not symmetric"),
        ("covars", poked((3, 7, 7), -1.0), "covariance of component 3 is not positive definite"),
        ("weights", lambda array: array * 2, "sum to 1"),
        ("weights", poked(0, -0.2), "must be positive"),
        ("weights", lambda array: array[None], "weights has shape"),
        ("weights", lambda array: array[:0], "weights has shape"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_bad_mixtures_are_refused(tmp_path, arrays, key, change, cause, suffix):
    path = tmp_path / f"bad{suffix}"
    bad = changed(arrays, key, change)
    if suffix == ".npz":
        np.savez(path, **bad)
    else:
        path.write_bytes(pickle.dumps(bad, protocol=2))
    with pytest.raises(InputError, match=cause) as raised:
        GmmPrior.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_mixture_are_refused(tmp_path, arrays):
    (tmp_path / "noise.npz").write_bytes(b"PK not really")
    (tmp_path / "noise.pkl").write_bytes(b"neither this")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    np.savez(tmp_path / "part.npz", means=arrays["means"])
    np.savez(tmp_path / "objects.npz", **(arrays | {"means": np.array([{}], dtype=object)}))
    for name in ("noise.npz", "noise.pkl", "list.pkl", "part.npz", "objects.npz"):
        with pytest.raises(InputError, match=name):
            GmmPrior.load(tmp_path / name)
    with pytest.raises(InputError, match="it has no covars, weights"):
        GmmPrior.load(tmp_path / "part.npz")


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"gmm_08\.pkl comes with SMPLify.*standin"):
        GmmPrior.load(tmp_path / "gmm_08.pkl")


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, arrays):
    trace = tmp_path / "trace"
    path = tmp_path / "gmm_08.pkl"
    path.write_bytes(pickle.dumps(arrays | {"extra": Malicious(trace)}))
    with pytest.raises(InputError, match=r"gmm_08\.pkl: refused"):
        GmmPrior.load(path)
    assert not trace.exists()


# The stand-in


def test_standin_has_the_shape_of_the_real_one(standin):
    assert standin.num_components == 8
    assert standin.means.shape == (8, 69)
    with np.load(STANDIN_PATH) as file:
        assert str(file["provenance"]) == "snugfit prior bake --samples 20000 --seed 0"
        assert np.sqrt(np.linalg.eigvalsh(file["covars"].astype(np.float64)).min()) > SMALLEST_STD_RAD


def test_standin_prefers_no_side(standin, plausible):
    mirrored = mirrored_pose(plausible.body_pose.reshape(-1, 23, 3)).reshape(-1, 69)
    energies = standin.energy(torch.from_numpy(plausible.body_pose))
    torch.testing.assert_close(standin.energy(torch.from_numpy(mirrored)), energies, rtol=1e-4, atol=1e-3)


def test_standin_tells_postures_from_shuffled_ones(standin, plausible):
    rng = np.random.default_rng(0)
    joints = plausible.body_pose.reshape(-1, 23, 3)
    # Joints swapped within a body, and bodies put together from joints of others, where every joint is plausible.
    swapped = rng.permuted(joints, axis=1).reshape(-1, 69)
    mixed = np.stack([joints[rng.permutation(len(joints)), joint] for joint in range(23)], axis=1).reshape(-1, 69)
    energy = {
        name: standin.energy(torch.from_numpy(poses)).numpy()
        for name, poses in (("real", plausible.body_pose), ("mixed", mixed), ("swapped", swapped))
    }
    assert (energy["swapped"] > energy["real"]).mean() > 0.999
    assert (energy["mixed"] > energy["real"]).mean() > 0.85
    assert energy["mixed"].mean() > energy["real"].mean() + 15


def test_standin_walls_nobody_in(standin, plausible):
    energies = standin.energy(torch.from_numpy(plausible.body_pose)).numpy()
    means = [energies[plausible.kinds == kind].mean() for kind in np.unique(plausible.kinds)]
    # 69 unit normals alone spread by sqrt(69 / 2) = 5.9 about 34.5; no kind of posture is far above the others.
    assert max(means) - min(means) < 25
    assert energies.max() - np.median(energies) < 60


@pytest.mark.parametrize(("joint", "axis", "sign"), [(4, 0, 1), (5, 0, 1), (18, 1, -1), (19, 1, 1)])
def test_knees_and_elbows_bend_one_way(standin, joint, axis, sign):
    # Flexion of the knees is about +x, of the left elbow about -y, of the right one about +y.
    pose = torch.zeros(3, 69)
    pose[0, 3 * (joint - 1) + axis] = sign
    pose[2, 3 * (joint - 1) + axis] = -sign
    flexed, straight, broken = standin.energy(pose)
    assert broken > flexed + 3
    assert broken > straight + 3


# Baking


def test_baking_is_reproducible(tmp_path):
    for name in ("one", "two"):
        bake(tmp_path / f"{name}.npz", samples=1000, seed=4)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert GmmPrior.load(tmp_path / "one.npz").num_components == 8


def test_the_committed_file_is_what_baking_gives(tmp_path):
    bake(tmp_path / "again.npz")
    with np.load(STANDIN_PATH) as committed, np.load(tmp_path / "again.npz") as again:
        for key in ("means", "covars", "weights"):
            # Single precision on file; the fit itself is deterministic but for the order of sums.
            np.testing.assert_allclose(again[key], committed[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "samples", "cause"), [("prior.npz", 10, "samples 10"), ("prior.pkl", 2000, "is written as .npz")]
)
def test_bad_requests_to_bake_write_nothing(tmp_path, name, samples, cause):
    with pytest.raises(InputError, match=cause):
        bake(tmp_path / name, samples=samples)
    assert not list(tmp_path.iterdir())
