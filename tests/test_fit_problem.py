"""The closed-form derivatives of the fit, against autograd in float64."""

import pytest
import roma
import torch
from fit_cases import GaussianPrior, people, tiny_body

from bodies import BodyParameters
from fitting import TermWeights
from fitting.body_points import KeypointPoints, TrianglePoints, VertexPoints, pose_bones
from fitting.problem import FitProblem, free_unknowns, retract
from fitting.terms import (
    PointEvidence,
    axis_angle_jacobian,
    geman_mcclure,
    reprojection_quadratic,
    reprojection_quadratic_tensors,
    reprojection_value,
    turned_gradient,
    turned_value,
)

ALL = torch.ones(85, dtype=torch.bool)


def evidence_for(body, batch, kind, dtype=torch.float64, sigma=30.0):
    generator = torch.Generator().manual_seed(7)
    if kind == "keypoints":
        points, count = KeypointPoints.gather(body, "openpose25"), 25
    elif kind == "surface":
        triangles = torch.randint(len(body.faces), (batch, 40), generator=generator)
        shares = torch.rand(batch, 40, 3, generator=generator, dtype=torch.float64) + 0.05
        shares[:, 1::4, 0] = 0  # on an edge
        shares[:, 2::4, 1:] = 0  # in a corner
        shares = shares / shares.sum(dim=-1, keepdim=True)
        points, count = TrianglePoints.gather(body, triangles, shares.to(dtype)), 40
    else:
        ids = torch.randint(body.num_vertices, (batch, 40), generator=generator)
        points, count = VertexPoints.gather(body, ids), 40
    target = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64) * 480
    weight = torch.rand(batch, count, generator=generator, dtype=torch.float64)
    weight[:, ::5] = 0
    return PointEvidence(points, target.to(dtype), weight.to(dtype), sigma)


def disturbed(parameters):
    """An initial estimate near, but not at, the given bodies."""
    generator = torch.Generator().manual_seed(4)
    turn = 0.3 * torch.randn(*parameters.rotations.shape[:2], 3, generator=generator, dtype=torch.float64)
    rotations = parameters.rotations @ roma.rotvec_to_rotmat(turn).to(parameters.rotations.dtype)
    return BodyParameters(rotations, parameters.betas + 0.2, parameters.transl + 0.1)


def problem_for(body, parameters, camera, kinds, prior=None, weights=None):
    batch = len(parameters)
    return FitProblem(
        body=body,
        camera=camera,
        evidence=tuple(evidence_for(body, batch, kind, parameters.betas.dtype) for kind in kinds),
        scale=torch.linspace(0.5, 1.5, batch, dtype=parameters.betas.dtype),
        initial=disturbed(parameters),
        prior=prior,
        weights=weights if weights is not None else TermWeights(0, 0),
    )


def moved(body, parameters, step):
    return retract(parameters, pose_bones(body, parameters).rotations, step)


def test_points_are_those_of_the_mesh():
    body = tiny_body()
    parameters, _ = people(3)
    mesh, bones = body(parameters), pose_bones(body, parameters)
    ids = torch.tensor([[0, 5, 17], [3, 3, 9], [100, 200, 239]])
    vertices = VertexPoints.gather(body, ids).positions(bones, parameters.betas) + parameters.transl[:, None]
    assert torch.allclose(vertices, mesh.vertices[torch.arange(3)[:, None], ids], atol=1e-12)
    surface = evidence_for(body, 3, "surface").points
    corners = mesh.vertices.gather(1, surface.corners.vertex_ids[..., None].expand(-1, -1, 3)).unflatten(1, (40, 3))
    expected = (corners * surface.shares[..., None]).sum(dim=2)
    found = surface.positions(bones, parameters.betas) + parameters.transl[:, None]
    assert torch.allclose(found, expected, atol=1e-12)
    for name in ("openpose25", "smpl24", "h36m17"):
        keypoints = KeypointPoints.gather(body, name).positions(bones, parameters.betas) + parameters.transl[:, None]
        assert torch.allclose(keypoints, body.keypoints(mesh, name), atol=1e-12)


@pytest.mark.parametrize("kind", ["vertices", "keypoints", "surface"])
def test_what_the_bones_carry_adds_up_to_the_point(kind):
    body = tiny_body()
    parameters, _ = people(2)
    bones = pose_bones(body, parameters)
    points = evidence_for(body, 2, kind).points
    summed = points.contributions(bones, parameters.betas).sum(-1)
    assert torch.allclose(summed, points.positions(bones, parameters.betas), atol=1e-12)


def test_descendants_follow_the_tree():
    below = tiny_body().descendants
    assert below[0].eq(1).all()
    assert below[13].nonzero().squeeze(-1).tolist() == [13, 16, 18, 20, 22]  # the left arm, from its collar
    assert below[22].nonzero().squeeze(-1).tolist() == [22]


@pytest.mark.parametrize("blend_shapes", [True, False])
@pytest.mark.parametrize("kinds", [("vertices",), ("keypoints",), ("surface",), ("vertices", "keypoints", "surface")])
def test_gradient_matches_autograd(kinds, blend_shapes):
    body = tiny_body(blend_shapes=blend_shapes)
    parameters, camera = people(3)
    problem = problem_for(body, parameters, camera, kinds, GaussianPrior(), TermWeights(2.0, 3.0, 4.0, 5.0, 6.0, 7.0))
    step = torch.zeros(3, 85, dtype=torch.float64, requires_grad=True)
    value = problem.objective(moved(body, parameters, step))
    (expected,) = torch.autograd.grad(value.sum(), step)
    model = problem.linearize(parameters, ALL)
    # Both are exact derivatives in float64; what is left is rounding of sums of about 1e4.
    assert torch.allclose(model.value, value, rtol=1e-10)
    assert torch.allclose(model.gradient, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["vertices", "keypoints", "surface"])
def test_hessian_is_that_of_gauss_newton(kind):
    """With a robustifier too wide to matter, H = 2 J^T W J, J by autograd."""
    body = tiny_body()
    parameters, camera = people(2)
    evidence = evidence_for(body, 2, kind, sigma=1e9)
    scale = torch.ones(2, dtype=torch.float64)
    bones = pose_bones(body, parameters)
    model = reprojection_quadratic(evidence, body, bones, parameters, camera, scale, ALL)

    def pixels(step):
        there = moved(body, parameters, step)
        points = evidence.points.positions(pose_bones(body, there), there.betas) + there.transl[:, None]
        return camera.project(points) * evidence.weight.sqrt()[..., None]

    jacobian = torch.autograd.functional.jacobian(pixels, torch.zeros(2, 85, dtype=torch.float64))
    own = torch.stack([jacobian[b, :, :, b].flatten(0, 1) for b in range(2)])
    assert torch.allclose(model.hessian, 2 * own.transpose(1, 2) @ own, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", ["vertices", "surface"])
@pytest.mark.parametrize("blend_shapes", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_compiled_pass_equals_its_tensor_twin(kind, blend_shapes, dtype, rtol):
    body = tiny_body(blend_shapes=blend_shapes, dtype=dtype)
    parameters, camera = people(4, dtype=dtype)
    evidence = evidence_for(body, 4, kind, dtype)
    bones, scale = pose_bones(body, parameters), torch.linspace(0.5, 1, 4, dtype=dtype)
    fast = reprojection_quadratic(evidence, body, bones, parameters, camera, scale, ALL)
    slow = reprojection_quadratic_tensors(evidence, body, bones, parameters, camera, scale)
    for ours, theirs in zip(
        (fast.value, fast.gradient, fast.hessian), (slow.value, slow.gradient, slow.hessian), strict=True
    ):
        # Float32 sums of terms of either sign: relative to the largest entry.
        assert (ours - theirs).abs().max() <= rtol * theirs.abs().max()


@pytest.mark.parametrize("kind", ["vertices", "surface"])
def test_camera_stage_needs_its_block_alone(kind):
    body = tiny_body()
    parameters, camera = people(2)
    problem = problem_for(body, parameters, camera, (kind,))
    free = free_unknowns(24, 10, "camera", parameters.betas)
    assert free.nonzero().squeeze(-1).tolist() == [0, 1, 2, 82, 83, 84]
    part, whole = problem.linearize(parameters, free), problem.linearize(parameters, ALL)
    assert torch.allclose(part.hessian[:, free][:, :, free], whole.hessian[:, free][:, :, free])
    assert torch.allclose(part.gradient[:, free], whole.gradient[:, free])


def test_step_of_world_rotation_turns_everything_below_about_the_joint():
    body = tiny_body(blend_shapes=False)
    parameters, _ = people(1)
    step = torch.zeros(1, 85, dtype=torch.float64)
    step[0, 3 * 16 : 3 * 16 + 3] = torch.tensor([0.2, -0.5, 0.3])
    before, after = body(parameters).joints[0], body(moved(body, parameters, step)).joints[0]
    assert torch.allclose(before[:17], after[:17], atol=1e-12)  # the left shoulder and what is not below it
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.3, -0.5], [0.3, 0, -0.2], [0.5, 0.2, 0]], dtype=torch.float64))
    below = [18, 20, 22]
    assert torch.allclose(after[below] - after[16], (before[below] - before[16]) @ turn.T, atol=1e-12)


def test_axis_angle_jacobian_matches_autograd_up_to_a_half_turn():
    angles = torch.tensor([0.0, 1e-6, 5e-3, 1.1e-2, 0.5, 2.0, 3.1], dtype=torch.float64)
    axis = torch.nn.functional.normalize(torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64), dim=0)
    parameters, _ = people(1)
    for angle in angles:
        pose = parameters.pose.clone()
        pose[0, 15:18] = angle * axis
        there = BodyParameters.from_axis_angle(pose, parameters.betas, parameters.transl)
        body = tiny_body()
        step = torch.zeros(1, 85, dtype=torch.float64, requires_grad=True)
        turned = moved(body, there, step).pose[0, 15:18]
        expected = torch.stack([torch.autograd.grad(part, step, retain_graph=True)[0][0, 15:18] for part in turned])
        ours = axis_angle_jacobian(pose[:, 15:18, None].transpose(1, 2), pose_bones(body, there).rotations[:, 5:6])
        # The rotation library's own logarithm loses digits close to zero and to a half turn.
        assert torch.allclose(ours[0, 0], expected, atol=1e-5)


def test_geman_mcclure_saturates_and_its_weight_is_its_slope():
    squared = torch.tensor([[0.0, 1.0, 100.0, 1e8]], dtype=torch.float64, requires_grad=True)
    value, weight = geman_mcclure(squared, 10.0)
    (slope,) = torch.autograd.grad(value.sum(), squared)
    assert torch.allclose(slope, weight)
    assert value[0].tolist() == pytest.approx([0.0, 100 / 101, 50.0, 100.0], rel=1e-4)


def test_point_behind_the_camera_makes_the_objective_infinite_unless_unseen():
    body = tiny_body()
    parameters, camera = people(1)
    behind = BodyParameters(parameters.rotations, parameters.betas, parameters.transl - 8)
    scale = torch.ones(1, dtype=torch.float64)
    for kind in ("vertices", "keypoints", "surface"):
        evidence = evidence_for(body, 1, kind)
        bones = pose_bones(body, behind)
        points = evidence.points.positions(bones, behind.betas) + behind.transl[:, None]
        assert reprojection_value(evidence, points, camera, scale).isinf().all()
        assert reprojection_quadratic(evidence, body, bones, behind, camera, scale, ALL).value.isinf().all()
        unseen = PointEvidence(evidence.points, evidence.target_px, torch.zeros_like(evidence.weight), 30.0)
        assert reprojection_value(unseen, points, camera, scale).eq(0).all()


def test_unseen_points_do_not_count_even_with_nan_targets():
    body = tiny_body()
    parameters, camera = people(2)
    scale = torch.ones(2, dtype=torch.float64)
    bones = pose_bones(body, parameters)
    for kind in ("vertices", "keypoints", "surface"):
        evidence = evidence_for(body, 2, kind)
        target = torch.where(evidence.weight[..., None] > 0, evidence.target_px, float("nan"))
        holed = PointEvidence(evidence.points, target, evidence.weight, evidence.sigma)
        whole = reprojection_quadratic(evidence, body, bones, parameters, camera, scale, ALL)
        same = reprojection_quadratic(holed, body, bones, parameters, camera, scale, ALL)
        assert torch.equal(whole.value, same.value)
        assert torch.equal(whole.hessian, same.hessian)


def test_the_model_of_the_turn_from_the_initial_estimate_is_above_it_everywhere():
    """2 I is the second derivative at no turn at all and at least it elsewhere, so no step overshoots."""
    generator = torch.Generator().manual_seed(2)
    rotations = roma.random_rotmat((3, 24), dtype=torch.float64)
    for size in (1e-3, 0.3, 3.0):
        turned = rotations @ roma.rotvec_to_rotmat(size * torch.randn(3, 24, 3, generator=generator).double())
        step = torch.randn(3, 24, 3, generator=generator).double()
        world = roma.random_rotmat((3, 24), dtype=torch.float64)
        moved_on = turned @ roma.rotvec_to_rotmat((world.mT @ step[..., None]).squeeze(-1))
        slope = (turned_gradient(rotations, turned, world) * step).sum(dim=(1, 2))
        model = turned_value(rotations, turned) + slope + step.square().sum(dim=(1, 2))
        assert (turned_value(rotations, moved_on) <= model + 1e-9).all()
    small = roma.rotvec_to_rotmat(torch.full((1, 1, 3), 1e-3, dtype=torch.float64))
    assert turned_value(torch.eye(3, dtype=torch.float64)[None, None], small).item() == pytest.approx(3e-6, rel=1e-5)
