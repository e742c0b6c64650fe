"""ProHMR's flow as a prior: its density against the flow layer by layer, its files, and fits with it."""

import math

import numpy as np
import pytest
import torch
from fit_cases import check_solvers_agree, disturbed, keypoints_of, people, tiny_body
from roma import rotmat_to_rotvec
from scipy.spatial.transform import Rotation
from tiny_priors import Malicious, OracleFlow, randomized, tiny_flow, write_prohmr

from bodies import BodyParameters, InputError
from fitting import (
    FROM_REST_SCHEDULE,
    SPIN_WEIGHTS,
    Adam,
    FlowPrior,
    LevenbergMarquardt,
    Smplify,
    fit_from_rest,
)
from fitting.body_points import pose_bones
from fitting.priors import ImagePrior, load_prior
from fitting.priors.duals import skew_symmetric
from fitting.priors.weight_files import Weights
from fitting.terms import axis_angle_jacobian

FEATURES = 16
PARTS = "flow.flow._transform._transforms"


@pytest.fixture(scope="module")
def oracle():
    return tiny_flow()


@pytest.fixture(scope="module")
def flow(oracle):
    return FlowPrior(Weights("tiny", oracle.state_dict()), torch.float64)


@pytest.fixture(scope="module")
def features():
    return torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture(scope="module")
def poses():
    pose = 0.4 * torch.randn(6, 72, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pose[:, 0] += math.pi  # upright in front of a camera
    pose[5, 3:] = 0  # and one at rest
    return pose


def six_numbers(pose):
    """First column, then second column of each joint's rotation, by scipy."""
    matrices = Rotation.from_rotvec(pose.numpy().reshape(-1, 3)).as_matrix()
    return torch.from_numpy(np.concatenate([matrices[:, :, 0], matrices[:, :, 1]], axis=1).reshape(len(pose), 144))


# Density


def test_latents_are_those_of_the_flow_layer_by_layer(flow, oracle, features, poses):
    expected = oracle(six_numbers(poses), features)
    prior = flow.conditioned_on(features)
    # Double precision over sums of some hundred terms, twelve times in a row.
    torch.testing.assert_close(prior.latent(poses), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prior.energy(poses), 0.5 * expected.square().sum(dim=1), rtol=1e-9, atol=0)


def test_log_prob_is_the_change_of_variables(flow, oracle, features, poses):
    """The determinant of the whole flow's Jacobian by autograd, wherever it is taken, is the one number."""
    logarithms = []
    for x, given in zip(six_numbers(poses[:2]), features[:2], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda at, given=given: oracle(at[None], given[None])[0], x)
        logarithms.append(torch.linalg.slogdet(jacobian).logabsdet)
        assert flow.log_volume == pytest.approx(logarithms[-1].item(), rel=1e-9)
    assert abs(flow.log_volume) > 1
    normal = torch.distributions.Normal(0.0, 1.0)
    z = oracle(six_numbers(poses), features)
    expected = normal.log_prob(z).sum(dim=1) + logarithms[0]
    prior = flow.conditioned_on(features)
    torch.testing.assert_close(prior.log_prob(poses), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        prior.log_prob(poses)[0] - prior.log_prob(poses)[1], prior.energy(poses)[1] - prior.energy(poses)[0]
    )


def test_the_official_size_in_the_official_file(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = randomized(OracleFlow())
    flow = FlowPrior.load(write_prohmr(tmp_path / "checkpoint.pt", oracle))
    assert flow.num_features == 2048
    assert len(flow.layers) == 4
    pose = 0.4 * torch.randn(2, 72)
    features = torch.rand(2, 2048)
    expected = oracle(six_numbers(pose.double()).float(), features)
    # Single precision both, summed in another order: 2120 terms of 6e-8 each.
    torch.testing.assert_close(flow.conditioned_on(features).latent(pose), expected, rtol=1e-3, atol=1e-3)


def test_images_matter_and_batch_mates_do_not(flow, features, poses):
    prior = flow.conditioned_on(features)
    alone = torch.cat([flow.conditioned_on(features[i : i + 1]).energy(poses[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(prior.energy(poses), alone, rtol=1e-12, atol=0)
    other = flow.conditioned_on(features.flip(0)).energy(poses)
    assert ((other - prior.energy(poses)).abs() > 1e-3).all()
    some = torch.tensor([4, 1, 1])
    torch.testing.assert_close(prior.select(some).energy(poses[some]), prior.energy(poses)[some], rtol=1e-12, atol=0)
    assert len(prior.select(slice(2, 4))) == 2
    assert prior.select(slice(0, 0)).energy(poses[:0]).shape == (0,)
    lost = poses.clone()
    lost[1] = torch.nan
    assert prior.energy(lost)[0].isfinite()
    torch.testing.assert_close(
        prior.quadratic(lost).hessian[2:], prior.quadratic(poses).hessian[2:], rtol=1e-12, atol=1e-9
    )
    assert prior.quadratic(lost).energy[1].isnan()


def test_whole_turns_do_not_count(flow, features, poses):
    prior = flow.conditioned_on(features[:5])
    joints = poses[:5].view(5, 24, 3)
    for turns in (1, -1):
        turned = joints * (1 + 2 * math.pi * turns / torch.linalg.vector_norm(joints, dim=-1, keepdim=True))
        torch.testing.assert_close(prior.energy(turned.flatten(1)), prior.energy(poses[:5]), rtol=1e-9, atol=1e-9)


def test_gradients_by_finite_differences(flow, features, poses):
    prior = flow.conditioned_on(features[4:])
    assert torch.autograd.gradcheck(prior.energy, (poses[4:].clone().requires_grad_(),), fast_mode=True)


def test_quadratic_holds_the_gradient(flow, features, poses):
    prior = flow.conditioned_on(features)
    model = prior.quadratic(poses)
    moving = poses.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior.energy(moving).sum(), moving)
    torch.testing.assert_close(model.energy, prior.energy(poses))
    torch.testing.assert_close(model.gradient, gradient, rtol=1e-8, atol=1e-6)


def test_curvature_is_the_whole_second_derivative_but_for_what_is_negative(flow, features, poses):
    """Against autograd's second derivative by a turn d of each joint, R exp([d]x), which is how the fit steps."""
    for index in (0, 4):
        prior, pose = flow.conditioned_on(features[index : index + 1]), poses[index]
        matrices = torch.from_numpy(Rotation.from_rotvec(pose.numpy().reshape(-1, 3)).as_matrix())

        def latent(turn, prior=prior, matrices=matrices):
            turned = matrices @ torch.linalg.matrix_exp(skew_symmetric(turn.view(24, 3)))
            return prior.latent(rotmat_to_rotvec(turned).view(1, 72))[0]

        start = torch.zeros(72, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(latent, start)
        whole = torch.autograd.functional.hessian(lambda turn, latent=latent: 0.5 * latent(turn).square().sum(), start)
        rest = (whole - jacobian.T @ jacobian).view(24, 3, 24, 3)
        expected = jacobian.T @ jacobian
        for joint in range(24):
            values, vectors = np.linalg.eigh(rest[joint, :, joint].numpy())
            at = slice(3 * joint, 3 * joint + 3)
            expected[at, at] += torch.from_numpy(vectors * values.clip(min=0) @ vectors.T)
            rest[joint, :, joint] = 0
        assert rest.abs().max() < 1e-6 * whole.abs().max()
        # From turns to axis-angle, which is what a prior speaks of.
        inverse = torch.block_diag(
            *axis_angle_jacobian(pose.view(1, 24, 3), torch.eye(3).double().expand(1, 24, 3, 3))[0]
        )
        actual = inverse.T @ prior.quadratic(pose[None]).hessian[0] @ inverse
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * whole.abs().max().item())


def test_it_is_a_prior_of_images_and_keeps_nothing_in_checkpoints(flow, features):
    assert isinstance(flow.conditioned_on(features), ImagePrior)
    assert not isinstance(flow, ImagePrior)
    assert flow.state_dict() == {}
    for bad, cause in ((features[:, :-1], "have 15 numbers, the flow takes 16"), (features / 0, "not finite")):
        with pytest.raises(InputError, match=cause):
            flow.conditioned_on(bad)


# Files


def test_a_checkpoint_of_training_is_read(tmp_path, oracle, flow, features, poses):
    path = write_prohmr(tmp_path / "checkpoint.pt", oracle)
    loaded = FlowPrior.load(path, torch.float64)
    assert torch.equal(loaded.conditioned_on(features).latent(poses), flow.conditioned_on(features).latent(poses))
    with pytest.raises(InputError, match=r"checkpoint\.pt: ProHMR's flow needs features of each image"):
        load_prior(path)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda state: state.pop(f"{PARTS}.1.lower_entries"), rf"has no {PARTS}\.1\.lower_entries"),
        (
            lambda state: state.update({f"{PARTS}.3.log_scale": torch.zeros(138)}),
            rf"{PARTS}\.3\.log_scale has shape \(138,\), expected \(144\)",
        ),
        (lambda state: state[f"{PARTS}.4.bias"].fill_(torch.inf), rf"{PARTS}\.4\.bias holds numbers that are not"),
        (
            lambda state: state[f"{PARTS}.2.identity_features"].fill_(3),
            rf"{PARTS}\.2 does not part the 144 features",
        ),
        (
            lambda state: state.update({f"{PARTS}.2.identity_features": torch.zeros(72)}),
            rf"{PARTS}\.2\.identity_features does not hold whole numbers",
        ),
        (
            lambda state: state.update({f"{PARTS}.2.transform_net.initial_layer.weight": torch.zeros(24, 72)}),
            r"has no place for an image's features",
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith(f"{PARTS}.11.")],
            "not ProHMR, it has 11 parts of a flow",
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith(PARTS)],
            "not ProHMR, it has 0 parts of a flow",
        ),
    ],
)
def test_bad_weights_are_refused(tmp_path, oracle, change, cause):
    state = {key: value.clone() for key, value in oracle.state_dict().items()}
    change(state)
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": state, "epoch": 1}, path)
    with pytest.raises(InputError, match=cause) as raised:
        FlowPrior.load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_damaged_and_malicious_files_are_named(tmp_path, oracle):
    trace, path = tmp_path / "trace", tmp_path / "checkpoint.pt"
    with pytest.raises(InputError, match=r"checkpoint\.pt: no such file.*nkolot/ProHMR"):
        FlowPrior.load(path)
    torch.save({"state_dict": oracle.state_dict(), "callbacks": Malicious(trace)}, path)
    with pytest.raises(InputError, match=r"checkpoint\.pt: .*mkdir"):
        FlowPrior.load(path)
    assert not trace.exists()
    path.write_bytes(write_prohmr(path, oracle).read_bytes()[:-100])
    with pytest.raises(InputError, match=r"checkpoint\.pt: not a whole file"):
        FlowPrior.load(path)


# Fits


@pytest.mark.parametrize("solver", [LevenbergMarquardt(max_steps=5), Adam(steps=8)])
def test_fits_lower_the_objective_and_keep_images_with_their_samples(flow, features, solver):
    body = tiny_body()
    truth, camera = people(3, spread=0.15)
    initial, targets = disturbed(truth), keypoints_of(body, truth, camera)
    prior = flow.conditioned_on(features[:3])
    fit = Smplify(body, prior, solver)
    result = fit(initial, camera, targets)
    assert result.accepted.all()
    assert (result.final_objective < result.initial_objective).all()
    problem = fit.problem(initial, camera, [targets])
    assert torch.allclose(result.final_objective, problem.objective(result.parameters))
    chunks = Smplify(body, prior, solver, chunk_size=2)(initial, camera, targets)
    assert torch.allclose(chunks.final_objective, result.final_objective, rtol=1e-6)
    last = torch.tensor([2])
    alone = fit.select(last)(initial[last], camera[last], targets[last])
    assert torch.allclose(alone.final_objective, result.final_objective[last], rtol=1e-6)
    with pytest.raises(ValueError, match="the prior has 3 images, the initial estimate 1 samples"):
        fit(initial[last], camera[last], targets[last])


def test_the_quadratic_of_the_problem_has_the_root_in_it(flow, features):
    body = tiny_body()
    truth, camera = people(2)
    fit = Smplify(body, flow.conditioned_on(features[:2]), weights=SPIN_WEIGHTS)
    problem = fit.problem(truth, camera, [keypoints_of(body, disturbed(truth), camera)])
    free = torch.ones(85, dtype=torch.bool)
    model = problem.linearize(truth, free)
    assert torch.allclose(model.value, problem.objective(truth))
    moving = [t.clone().requires_grad_() for t in (truth.pose, truth.betas, truth.transl)]
    by_pose, by_shape, by_place = torch.autograd.grad(
        problem.objective(BodyParameters.from_axis_angle(*moving)).sum(), moving
    )
    turn = axis_angle_jacobian(truth.pose.view(2, 24, 3), pose_bones(body, truth).rotations)
    by_omega = torch.einsum("bjc,bjca->bja", by_pose.view(2, 24, 3), turn).flatten(1)
    torch.testing.assert_close(model.gradient, torch.cat([by_omega, by_shape, by_place], 1), rtol=1e-7, atol=1e-5)


def test_from_rest_each_heading_has_its_person_s_image(oracle, features):
    flow = FlowPrior(Weights("tiny", oracle.state_dict()))
    body = tiny_body(dtype=torch.float32)
    truth, camera = people(2, dtype=torch.float32, spread=0.05)
    targets = keypoints_of(body, truth, camera)
    prior = flow.conditioned_on(features[:2].float())
    fit = Smplify(body, prior, LevenbergMarquardt(max_steps=3), schedule=FROM_REST_SCHEDULE)
    both = fit_from_rest(fit, camera, targets, headings=2).fit
    second = slice(1, 2)
    alone = fit_from_rest(fit.select(second), camera[second], targets[second], headings=2).fit
    # Single precision, a dozen steps.
    torch.testing.assert_close(both.final_objective[second], alone.final_objective, rtol=1e-3, atol=0)


def test_solvers_agree_on_the_minimum(features):
    calm = FlowPrior(Weights("calm", tiny_flow(calm=True).state_dict()), torch.float64)
    check_solvers_agree(calm.conditioned_on(features[:2]))
