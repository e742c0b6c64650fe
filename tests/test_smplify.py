"""The fit as a whole: known bodies come back, bad samples are named, batch mates do not matter."""

import math

import pytest
import torch
from fit_cases import GaussianPrior, check_bodies_come_back, disturbed, people, tiny_body

from bodies import BodyParameters, PinholeCamera
from fitting import (
    FROM_REST_SCHEDULE,
    SPIN_WEIGHTS,
    Adam,
    FitStage,
    FitStatus,
    KeypointTargets,
    LevenbergMarquardt,
    Smplify,
    TermWeights,
    VertexTargets,
    solve_translation,
)
from fitting.levenberg_marquardt import damped_step
from fitting.problem import Stage
from fitting.solution import Solution
from fitting.targets import person_size_px
from fitting.terms import Quadratic

FREE = TermWeights(pose_prior=0.0, shape_prior=1e-3)


def vertex_targets(body, parameters, camera, **options):
    mesh = body(parameters)
    weight = torch.ones(len(parameters), body.num_vertices, dtype=mesh.vertices.dtype)
    return VertexTargets(camera.project(mesh.vertices), weight, **options)


def keypoint_targets(body, parameters, camera, **options):
    points = body.keypoints(body(parameters), "openpose25")
    return KeypointTargets(camera.project(points), torch.ones_like(points[..., 0]), **options)


@pytest.mark.parametrize("prior", [None, GaussianPrior()])
def test_displaced_body_comes_back(prior):
    check_bodies_come_back(prior, vertex_targets)


def test_nothing_moves_when_nothing_is_displaced():
    body = tiny_body()
    truth, camera = people(3)
    fit = Smplify(body, None, weights=TermWeights(0.0, 0.0))
    result = fit(truth, camera, vertex_targets(body, truth, camera))
    assert torch.allclose(body(result.parameters).vertices, body(truth).vertices, atol=1e-6)
    assert (result.initial_error_px < 1e-9).all()


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), Adam(steps=20)])
def test_hopeless_neighbours_change_nothing(solver):
    body = tiny_body()
    truth, camera = people(4)
    targets = vertex_targets(body, truth, camera)
    initial = disturbed(truth)
    hopeless = BodyParameters(
        initial.rotations.clone(), initial.betas.clone(), initial.transl * torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    )
    hopeless.betas[2] = float("nan")
    blind = VertexTargets(targets.position_px, targets.weight * torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
    alone = Smplify(body, GaussianPrior(), solver)(initial[:1], camera[:1], targets[:1])
    together = Smplify(body, GaussianPrior(), solver)(hopeless, camera, blind)
    # The same sums in another batch shape: rounding alone differs.
    assert torch.allclose(alone.parameters.pose, together.parameters.pose[:1], atol=1e-8)
    assert torch.allclose(alone.parameters.transl, together.parameters.transl[:1], atol=1e-8)
    assert together.status[1:] == (FitStatus.BEHIND_CAMERA, FitStatus.INITIAL_NOT_FINITE, FitStatus.NO_EVIDENCE)
    assert together.accepted.tolist() == [True, False, False, False]
    assert torch.equal(together.parameters.transl[1:], hopeless.transl[1:])
    assert together.initial_error_px[2:].isnan().all()


def test_chunks_change_nothing():
    body = tiny_body()
    truth, camera = people(5)
    targets, initial = vertex_targets(body, truth, camera), disturbed(truth)
    whole = Smplify(body, GaussianPrior())(initial, camera, targets)
    parts = Smplify(body, GaussianPrior(), chunk_size=2)(initial, camera, targets)
    assert torch.allclose(whole.parameters.transl, parts.parameters.transl, atol=1e-8)
    assert whole.status == parts.status


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), Adam(steps=2)])
def test_empty_batch_has_an_empty_result(solver):
    body = tiny_body()
    truth, camera = people(2)
    nobody = slice(0, 0)
    for targets in (vertex_targets(body, truth, camera), keypoint_targets(body, truth, camera)):
        result = Smplify(body, GaussianPrior(), solver)(truth[nobody], camera[nobody], targets[nobody])
        assert len(result.parameters) == 0
        assert result.status == ()
        assert result.accepted.shape == (0,)


def test_levenberg_marquardt_ends_lower_than_adam():
    body = tiny_body()
    truth, camera = people(4)
    targets, initial = vertex_targets(body, truth, camera), disturbed(truth)
    fits = [
        Smplify(body, GaussianPrior(), solver)(initial, camera, targets) for solver in (LevenbergMarquardt(), Adam())
    ]
    assert (fits[0].final_objective < fits[1].final_objective).all()
    assert (fits[1].final_objective < fits[1].initial_objective).all()


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), Adam(steps=10)])
def test_reported_numbers_are_those_of_the_returned_body(solver):
    body = tiny_body()
    truth, camera = people(2)
    targets, initial = keypoint_targets(body, truth, camera), disturbed(truth)
    result = Smplify(body, GaussianPrior(), solver)(initial, camera, targets)
    pixels = camera.project(body.keypoints(body(result.parameters), "openpose25"))
    error = torch.linalg.vector_norm(pixels - targets.position_px, dim=-1).mean(dim=1)
    assert torch.allclose(result.final_error_px, error, atol=1e-6)
    problem = Smplify(body, GaussianPrior()).problem(initial, camera, [targets])
    assert torch.allclose(result.final_objective, problem.objective(result.parameters))
    assert (result.final_objective <= result.initial_objective).all()


class _Worsening:
    """A solver that returns something worse, or nothing finite."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def minimize(self, problem, initial: BodyParameters, stage: Stage) -> Solution:
        moved = BodyParameters(initial.rotations, initial.betas, initial.transl + self.shift)
        ones = torch.ones(len(initial))
        return Solution(moved, problem.objective(moved), ones.long(), ones.bool())


@pytest.mark.parametrize(
    ("shift", "status"),
    [(0.5, FitStatus.REJECTED_WORSE), (math.nan, FitStatus.REJECTED_NOT_FINITE), (-9, FitStatus.REJECTED_NOT_FINITE)],
)
def test_guard_returns_the_initial_estimate_and_says_why(shift, status):
    body = tiny_body()
    truth, camera = people(2)
    result = Smplify(body, None, _Worsening(shift))(truth, camera, vertex_targets(body, truth, camera))
    assert result.status == (status, status)
    assert torch.equal(result.parameters.transl, truth.transl)
    assert torch.equal(result.final_objective, result.initial_objective)
    assert torch.equal(result.final_error_px, result.initial_error_px)
    assert "initial estimate is returned" in status.value


def test_non_finite_detections_are_left_out():
    body = tiny_body()
    truth, camera = people(1)
    whole = keypoint_targets(body, truth, camera)
    position, confidence = whole.position_px.clone(), whole.confidence.clone()
    position[0, 3], confidence[0, 7] = float("nan"), float("nan")
    result = Smplify(body, GaussianPrior())(disturbed(truth), camera, KeypointTargets(position, confidence))
    confidence[0, [3, 7]] = 0
    same = Smplify(body, GaussianPrior())(
        disturbed(truth), camera, KeypointTargets(torch.nan_to_num(position), confidence)
    )
    assert result.status[0].accepted
    assert torch.equal(result.parameters.transl, same.parameters.transl)


def test_robustifier_shrugs_off_an_outlier():
    body = tiny_body()
    truth, camera = people(1)
    targets = keypoint_targets(body, truth, camera)
    position = targets.position_px.clone()
    position[0, 4] += 300
    fit = Smplify(body, None, LevenbergMarquardt(max_steps=60), FREE)
    robust = fit(disturbed(truth, radians=0.05), camera, KeypointTargets(position, targets.confidence, sigma_px=10.0))
    pixels = camera.project(body.keypoints(body(robust.parameters), "openpose25"))
    error = torch.linalg.vector_norm(pixels - targets.position_px, dim=-1)[0]
    assert error[torch.arange(25) != 4].mean() < 2.0


def test_size_in_the_image_does_not_change_the_fit():
    """Twice the focal length and twice the pixels: the same body, the same objective."""
    body = tiny_body()
    truth, camera = people(2)
    double = PinholeCamera(2 * camera.focal_px, 2 * camera.center_px, 2 * camera.size_px)
    near, far = (
        Smplify(body, GaussianPrior())(disturbed(truth), c, keypoint_targets(body, truth, c)) for c in (camera, double)
    )
    assert torch.allclose(near.final_objective, far.final_objective, rtol=1e-6)
    assert torch.allclose(near.parameters.transl, far.parameters.transl, atol=1e-6)
    assert torch.allclose(2 * near.final_error_px, far.final_error_px, rtol=1e-5)


def test_spin_baseline_runs_with_bending_and_depth_terms():
    body = tiny_body()
    truth, camera = people(2, spread=0.1)
    baseline = Smplify(body, GaussianPrior(), Adam(steps=30), SPIN_WEIGHTS)
    result = baseline(disturbed(truth), camera, keypoint_targets(body, truth, camera))
    assert (result.final_objective < result.initial_objective).all()


@pytest.mark.parametrize("solver", [LevenbergMarquardt(), Adam(steps=50)])
def test_terms_of_the_initial_estimate_hold_pose_and_shape_not_place(solver):
    body = tiny_body()
    truth, camera = people(2)
    initial = BodyParameters(disturbed(truth).rotations, truth.betas + 0.5, truth.transl + 0.05)
    targets = vertex_targets(body, truth, camera)

    def turned_and_reshaped(weight):
        weights = TermWeights(0.0, 0.0, initial_pose=weight, initial_shape=weight)
        fitted = Smplify(body, None, solver, weights)(initial, camera, targets).parameters
        turn = (fitted.rotations - initial.rotations).abs().amax()
        return turn, (fitted.betas - initial.betas).abs().amax(), (fitted.transl - initial.transl).abs().amax()

    free, held = turned_and_reshaped(0.0), turned_and_reshaped(1e7)
    assert held[0] < 0.01 * free[0]
    assert held[1] < 0.01 * free[1]
    assert held[2] > 0.01


def test_from_rest_schedule_ends_at_the_final_weights():
    body = tiny_body()
    truth, camera = people(2, spread=0.2)
    fit = Smplify(body, GaussianPrior(), schedule=FROM_REST_SCHEDULE)
    result = fit(disturbed(truth), camera, keypoint_targets(body, truth, camera))
    problem = fit.problem(disturbed(truth), camera, [keypoint_targets(body, truth, camera)])
    assert torch.allclose(result.final_objective, problem.objective(result.parameters))


def test_thinning_takes_the_same_even_sample_for_everyone():
    body = tiny_body()
    truth, camera = people(2)
    targets = vertex_targets(body, truth, camera, max_vertices=50)
    evidence = targets.evidence(body)
    assert evidence.weight.shape == (2, 50)
    assert torch.equal(evidence.points.template[0], evidence.points.template[1])
    assert evidence.weight.sum(dim=1).tolist() == pytest.approx([targets.factor] * 2)
    few = VertexTargets(targets.position_px, (torch.arange(body.num_vertices) < 20).double().expand(2, -1))
    assert (few.evidence(body).weight > 0).sum(dim=1).tolist() == [20, 20]


def test_targets_of_another_body_are_refused():
    body = tiny_body()
    truth, camera = people(1)
    with pytest.raises(ValueError, match="240 vertices, the targets have 7"):
        Smplify(body)(truth, camera, VertexTargets(torch.zeros(1, 7, 2), torch.ones(1, 7)))


def test_settings_out_of_range_are_refused():
    for make in (
        lambda: LevenbergMarquardt(max_steps=0),
        lambda: LevenbergMarquardt(initial_damping=0.0),
        lambda: Adam(steps=0),
        lambda: Adam(learning_rate=0.0),
        lambda: Smplify(tiny_body(), chunk_size=0),
        lambda: Smplify(tiny_body(), schedule=()),
        lambda: Smplify(tiny_body())(*people(1), []),
    ):
        with pytest.raises(ValueError, match=r"must|needs"):
            make()


def test_camera_stage_moves_root_and_translation_only():
    body = tiny_body()
    truth, camera = people(2)
    for solver in (LevenbergMarquardt(), Adam(steps=10)):
        fit = Smplify(body, None, solver, schedule=(FitStage("camera"),))
        initial = disturbed(truth)
        result = fit(initial, camera, vertex_targets(body, truth, camera))
        assert torch.allclose(result.parameters.rotations[:, 1:], initial.rotations[:, 1:], atol=1e-12)
        assert torch.equal(result.parameters.betas, initial.betas)
        assert (result.parameters.rotations[:, 0] - initial.rotations[:, 0]).abs().max() > 1e-3


def test_damped_step_solves_the_damped_system():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    model = Quadratic(torch.ones(2), torch.randn(2, 6, generator=generator, dtype=torch.float64), root @ root.mT)
    free = torch.tensor([True, True, False, True, True, True])
    damping = torch.tensor([0.1, 2.0], dtype=torch.float64)
    step, predicted = damped_step(model, damping, free)
    for b in range(2):
        hessian = model.hessian[b][free][:, free].numpy()
        matrix = hessian + damping[b].item() * torch.diag(model.hessian[b].diagonal()[free]).numpy()
        expected = torch.linalg.solve(torch.from_numpy(matrix), -model.gradient[b][free])
        assert torch.allclose(step[b][free], expected)
        assert step[b][2] == 0
        assert predicted[b] == pytest.approx(
            (-model.gradient[b] @ step[b] - step[b] @ model.hessian[b] @ step[b] / 2).item()
        )


def test_singular_matrix_gives_a_nan_step_not_a_crash():
    model = Quadratic(torch.ones(1), torch.ones(1, 3), -torch.eye(3)[None])
    step, _ = damped_step(model, torch.tensor([0.01]), torch.ones(3, dtype=torch.bool))
    assert step.isnan().all()


def test_translation_in_closed_form_is_exact_and_ignores_unseen_points():
    body = tiny_body()
    truth, camera = people(3)
    points = body.keypoints(body(truth), "openpose25") - truth.transl[:, None]
    seen = camera.project(points + truth.transl[:, None])
    seen[:, 5] = float("nan")
    weight = torch.ones(3, 25, dtype=torch.float64)
    weight[:, 5] = 0
    assert torch.allclose(solve_translation(points, seen, weight, camera), truth.transl, atol=1e-6)


def test_person_size_is_the_larger_extent_of_what_was_seen():
    position = torch.tensor([[[0.0, 0.0], [10.0, 30.0], [500.0, 500.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    assert person_size_px(position, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [30.0, 1.0]
