"""VPoser as a prior: its energy against the network layer by layer, its files, and fits with it."""

import copy
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from fit_cases import check_solvers_agree, disturbed, keypoints_of, people, tiny_body
from tiny_priors import Malicious, OracleVposer1, OracleVposer2, randomized, tiny_vposer, write_lightning, write_vposer

from bodies import InputError
from commands._refiners import keypoint_refiner
from fitting import Adam, FitStatus, KeypointTargets, LevenbergMarquardt, Smplify, VposerPrior
from fitting.priors import GmmPrior, PosePrior, load_prior
from fitting.priors.weight_files import Weights
from lightning_modules.fitting_settings import FittingSettings

ORACLES = {"v1": OracleVposer1, "v2": OracleVposer2}


@pytest.fixture(scope="module", params=ORACLES)
def oracle(request):
    """An autoencoder of the official size, random."""
    return randomized(ORACLES[request.param](), seed=3).double()


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vposer") / "experiment"
    write_vposer(folder, oracle.float())
    oracle.double()
    return folder


@pytest.fixture(scope="module")
def prior(folder):
    return VposerPrior.load(folder, torch.float64)


@pytest.fixture(scope="module")
def poses():
    return 0.4 * torch.randn(12, 69, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def rodrigues(rotvec):
    """Rotation of one axis-angle by the textbook."""
    angle = np.linalg.norm(rotvec)
    x, y, z = rotvec / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def decoded(six):
    """Rotation from six numbers, the rows of a 3x2 matrix, by QR with positive diagonal."""
    columns = np.asarray(six).reshape(3, 2)
    q, r = np.linalg.qr(columns)
    q = q * np.sign(np.diag(r))
    return np.column_stack([q, np.cross(q[:, 0], q[:, 1])])


def read_formula(pose, oracle, std):
    """Energy of one pose from the unmerged network, joint by joint in numpy."""
    latent = oracle.encode(pose[None, :63])
    six = oracle.six_numbers(latent)[0].detach().numpy().reshape(21, 6)
    energy = 0.5 * float(latent.square().sum())
    for joint, rotvec in enumerate(pose.numpy().reshape(23, 3)):
        target = decoded(six[joint]) if joint < 21 else np.eye(3)
        cosine = (np.trace(rodrigues(rotvec).T @ target) - 1) / 2
        # The chord: |R - R'|^2 / 2 = 2 (1 - cos), the angle squared to second order.
        energy += 0.5 * 2 * (1 - cosine) / std**2
    return energy


# Energy


def test_energy_is_the_formula(prior, oracle, poses):
    expected = [read_formula(pose, oracle, 0.1) for pose in poses]
    # Double precision over sums of 512 terms.
    np.testing.assert_allclose(prior.energy(poses).numpy(), expected, rtol=1e-9)


def test_single_precision_is_enough(prior, folder, poses):
    single = VposerPrior.load(folder).energy(poses.float())
    assert single.dtype == torch.float32
    # Three layers of 512 sums with 6e-8 each, divided by the decoder's noise of 0.1.
    np.testing.assert_allclose(single.numpy(), prior.energy(poses).numpy(), rtol=2e-5)


def test_a_pose_that_is_its_own_reconstruction_costs_its_latent_alone(folder, oracle):
    # With a decoder that says the same whatever it is asked, that pose is its own reconstruction.
    last = oracle.bodyprior_dec_out if isinstance(oracle, OracleVposer1) else oracle.decoder_net[5]
    constant = randomized(type(oracle)(), seed=3).double()
    twin = constant.bodyprior_dec_out if isinstance(oracle, OracleVposer1) else constant.decoder_net[5]
    twin.weight.data.zero_()
    twin.bias.data = torch.randn(last.bias.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prefix = "" if isinstance(oracle, OracleVposer1) else "vp_model."
    weights = Weights("constant", {prefix + key: value for key, value in constant.state_dict().items()})
    prior = VposerPrior(weights, dtype=torch.float64)
    pose = torch.zeros(1, 69, dtype=torch.float64)
    for joint, six in enumerate(twin.bias.detach().numpy().reshape(21, 6)):
        rotation = torch.from_numpy(decoded(six))
        angle = ((rotation.trace() - 1) / 2).acos()
        axis = torch.stack(
            [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
        )
        pose[0, 3 * joint : 3 * joint + 3] = axis / (2 * angle.sin()) * angle
    expected = 0.5 * constant.encode(pose[:, :63]).square().sum().item()
    assert prior.energy(pose).item() == pytest.approx(expected, rel=1e-9)
    pose[0, 66] = 0.2  # a hand, by two standard deviations; the chord is 2 sin(0.1)
    assert prior.energy(pose).item() == pytest.approx(expected + 0.5 * (2 * math.sin(0.1) / 0.1) ** 2, rel=1e-9)


def test_whole_turns_do_not_count(prior, poses):
    joints = poses.view(-1, 23, 3)
    angle = torch.linalg.vector_norm(joints, dim=-1, keepdim=True)
    for turns in (1, -1, 2):
        turned = (joints * (1 + 2 * math.pi * turns / angle)).flatten(1)
        torch.testing.assert_close(prior.energy(turned), prior.energy(poses), rtol=1e-9, atol=1e-9)


def test_batch_mates_do_not_matter(prior, poses):
    alone = torch.cat([prior.energy(pose[None]) for pose in poses])
    torch.testing.assert_close(prior.energy(poses), alone, rtol=1e-12, atol=0)
    lost = torch.cat([poses[:1], torch.full_like(poses[:1], torch.nan)])
    assert prior.energy(lost)[0].isfinite()
    assert prior.quadratic(lost).hessian[0].isfinite().all()
    assert prior.energy(poses[:0]).shape == (0,)


def test_gradients_by_finite_differences(prior, poses):
    some = torch.cat([poses[:2], torch.zeros_like(poses[:1])]).requires_grad_()
    assert torch.autograd.gradcheck(prior.energy, (some,), fast_mode=True)


def test_quadratic_holds_gradient_and_gauss_newton_curvature(prior, poses):
    some = torch.cat([poses[:3], torch.zeros_like(poses[:1])])
    model = prior.quadratic(some)
    moving = some.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.energy(moving).sum(), moving)
    torch.testing.assert_close(model.energy, prior.energy(some))
    torch.testing.assert_close(model.gradient, gradient, rtol=1e-8, atol=1e-8)
    for pose, hessian in zip(some, model.hessian, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda at: prior.residuals(at[None])[0], pose)
        torch.testing.assert_close(hessian, jacobian.T @ jacobian, rtol=1e-8, atol=1e-6)


def test_decoding_gives_rotations_with_hands_at_rest(prior):
    rotations = prior.decode(torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert rotations.shape == (5, 23, 3, 3)
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rotations.mT @ rotations, identity.expand(5, 23, 3, 3))
    assert torch.equal(rotations[:, 21:], identity.expand(5, 2, 3, 3))


def test_the_module_is_a_prior_and_keeps_nothing_in_checkpoints(prior):
    assert isinstance(prior, PosePrior)
    assert prior.state_dict() == {}
    assert copy.deepcopy(prior).float().energy(torch.zeros(1, 69)).dtype == torch.float32
    with pytest.raises(ValueError, match="reconstruction_std_rad must be positive"):
        VposerPrior(Weights("none", {}), reconstruction_std_rad=0.0)


# Files


def test_the_path_tells_the_kind(folder, poses, prior):
    (path,) = folder.glob("snapshots/*")
    for source in (folder, str(folder), path):
        loaded = load_prior(source)
        assert isinstance(loaded, VposerPrior)
        np.testing.assert_allclose(loaded.energy(poses.float()), prior.energy(poses), rtol=2e-5)
    assert isinstance(load_prior("standin"), GmmPrior)


def test_the_last_snapshot_is_taken(folder, tmp_path, poses, prior):
    (path,) = folder.glob("snapshots/*")
    (tmp_path / "snapshots").mkdir()
    for age, name in enumerate(("new", "middle", "old")):
        snapshot = tmp_path / "snapshots" / f"{name}{path.suffix}"
        snapshot.write_bytes(path.read_bytes() if name == "new" else b"not this one")
        os.utime(snapshot, (1e9 - age, 1e9 - age))
    loaded = VposerPrior.load(tmp_path, torch.float64)
    torch.testing.assert_close(loaded.energy(poses), prior.energy(poses), rtol=0, atol=0)


def resaved(folder, oracle, tmp_path, change):
    """The snapshot with a changed state dict."""
    (path,) = folder.glob("snapshots/*")
    prefix = "" if isinstance(oracle, OracleVposer1) else "vp_model."
    state = {prefix + key: value.float() for key, value in oracle.state_dict().items()}
    first = "bodyprior_enc_fc1" if prefix == "" else "vp_model.encoder_net.2"
    change(state, first)
    bad = tmp_path / path.name
    torch.save(state if prefix == "" else {"state_dict": state}, bad)
    return bad, first


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda state, first: state.pop(f"{first}.weight"), r"has no {}\.weight"),
        (
            lambda state, first: state.update({f"{first}.weight": torch.zeros(512, 69)}),
            r"{}\.weight has shape \(512, 69\), expected \(any, 63\)",
        ),
        (lambda state, first: state[f"{first}.bias"].fill_(torch.nan), r"{}\.bias holds numbers that are not finite"),
        (
            lambda state, first: state.update({f"{first}.bias": torch.zeros(512, dtype=torch.int64)}),
            r"{}\.bias does not hold real numbers but torch\.int64",
        ),
        (lambda state, first: state.clear(), "holds no weights by name"),
        (
            lambda state, first: [state.pop(key) for key in list(state) if "enc" in key],
            "not VPoser, it has neither",
        ),
    ],
)
def test_bad_weights_are_refused(folder, oracle, tmp_path, change, cause):
    bad, first = resaved(folder, oracle, tmp_path, change)
    with pytest.raises(InputError, match=cause.format(first.replace(".", r"\."))) as raised:
        VposerPrior.load(bad)
    assert str(bad) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_variance_below_zero_is_refused(folder, oracle, tmp_path):
    norm = "bodyprior_enc_bn1" if isinstance(oracle, OracleVposer1) else "vp_model.encoder_net.1"
    bad, _ = resaved(folder, oracle, tmp_path, lambda state, _: state[f"{norm}.running_var"].fill_(-1))
    with pytest.raises(InputError, match="running_var holds negative numbers"):
        load_prior(bad)


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    (path,) = folder.glob("snapshots/*")
    short = tmp_path / f"short{path.suffix}"
    short.write_bytes(path.read_bytes()[:-5000])
    noise = tmp_path / "noise.ckpt"
    noise.write_bytes(b"PK no archive")
    hollow = tmp_path / "hollow.ckpt"
    with zipfile.ZipFile(hollow, "w") as archive:
        archive.writestr("archive/version", "3")
    numbers = tmp_path / "list.pt"
    torch.save([1, 2], numbers)
    lists = tmp_path / "lists.pt"
    torch.save({"state_dict": [torch.zeros(2)]}, lists)
    (tmp_path / "empty").mkdir()
    for bad, cause in (
        (short, "not a whole file"),
        (noise, "not a whole file"),
        (hollow, "not a whole file"),
        (numbers, "holds no weights"),
        (lists, "holds no weights"),
        (tmp_path / "empty", "has no snapshot of VPoser"),
        (tmp_path / "gone.ckpt", r"no such file or folder; VPoser comes with SMPL-X.*standin"),
        (tmp_path / "vposer_v1_0", r"no such file or folder; VPoser comes with SMPL-X.*standin"),
        (tmp_path / "gone.pkl", r"no such file; gmm_08\.pkl comes with SMPLify"),
    ):
        with pytest.raises(InputError, match=cause) as raised:
            load_prior(bad)
        assert str(bad) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, archive):
    trace = tmp_path / "trace"
    path = tmp_path / "TR00_E096.pt"
    state = randomized(OracleVposer1(8, 4)).state_dict()
    torch.save(state | {"extra": Malicious(trace)}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(InputError, match=r"TR00_E096\.pt: (refused|not a whole file).*mkdir"):
        VposerPrior.load(path)
    assert not trace.exists()


def test_classes_of_a_training_run_are_passed_over_unless_they_are_unknown(tmp_path):
    path = tmp_path / "model.ckpt"
    state = {f"vp_model.{key}": value for key, value in randomized(OracleVposer2(8, 4)).state_dict().items()}
    write_lightning(path, state)
    with pytest.raises(pickle.UnpicklingError, match="pytorch_lightning"):
        torch.load(path, weights_only=True)
    assert VposerPrior.load(path).encode(torch.zeros(1, 69)).shape == (1, 4)
    write_lightning(path, state, extra=KeypointTargets)
    with pytest.raises(InputError, match=r"refused, it names fitting\.targets\.KeypointTargets"):
        VposerPrior.load(path)


# Fits


def test_settings_and_the_command_take_the_folder(folder, tmp_path):
    prior = FittingSettings(prior=str(folder)).load_prior()
    assert isinstance(prior, VposerPrior)
    refiner = keypoint_refiner("standin-tiny", str(folder), "lm")
    assert isinstance(refiner.fit.prior, VposerPrior)
    assert refiner.settings.prior == str(folder)
    with pytest.raises(InputError, match=r"V02_06\.ckpt: no such file or folder"):
        keypoint_refiner("standin-tiny", str(tmp_path / "V02_06.ckpt"), None)


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), Adam(steps=12)])
def test_fits_lower_the_objective_and_say_so(solver):
    prior = VposerPrior(Weights("tiny", tiny_vposer().state_dict()), dtype=torch.float64)
    body = tiny_body()
    truth, camera = people(3, spread=0.15)
    initial, targets = disturbed(truth), keypoints_of(body, truth, camera)
    fit = Smplify(body, prior, solver)
    result = fit(initial, camera, targets)
    assert result.accepted.all()
    assert (result.final_objective < result.initial_objective).all()
    problem = fit.problem(initial, camera, [targets])
    assert torch.allclose(result.final_objective, problem.objective(result.parameters))
    assert (prior.energy(result.parameters.pose[:, 3:]) < prior.energy(initial.pose[:, 3:])).all()
    alone = fit(initial[:1], camera[:1], targets[:1])
    assert torch.allclose(alone.final_objective, result.final_objective[:1], rtol=1e-6)
    lost = initial[:1]
    lost.betas[:] = torch.nan
    assert fit(lost, camera[:1], targets[:1]).status == (FitStatus.INITIAL_NOT_FINITE,)


def test_solvers_agree_on_the_minimum():
    check_solvers_agree(VposerPrior(Weights("tiny", tiny_vposer().state_dict()), dtype=torch.float64))
