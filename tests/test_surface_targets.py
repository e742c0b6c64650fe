"""Points of the surface as targets of the fit: against vertices, the posed mesh and the rasterizer."""

import dataclasses

import pytest
import torch
from fit_cases import (
    GaussianPrior,
    check_bodies_come_back,
    check_solvers_agree,
    disturbed,
    keypoints_of,
    people,
    surface_of,
    tiny_body,
)

from bodies import BodyParameters, InputError, load_body_model
from commands._fit_cases import IMAGE_PX, make_fit_cases
from fitting import Adam, FitStatus, LevenbergMarquardt, Smplify, SurfaceTargets, TermWeights, VertexTargets
from renderers import make_rasterizer

FREE = TermWeights(pose_prior=0.0, shape_prior=1e-3)
SOLVERS = [LevenbergMarquardt(), Adam(steps=20)]


def corner_pair(body, truth, camera, count):
    """The same evidence twice: vertices, and points in that corner of a triangle where the vertex is."""
    batch = len(truth)
    first = body.faces.new_full((body.num_vertices,), -1)
    first[body.faces[:, 1]] = torch.arange(len(body.faces))
    vertex = (first >= 0).nonzero().squeeze(-1)[:count]
    seen = camera.project(body(truth).vertices)
    weight = torch.linspace(0.2, 1, len(vertex), dtype=seen.dtype).expand(batch, -1)
    everywhere = torch.zeros(batch, body.num_vertices, dtype=seen.dtype)
    everywhere[:, vertex] = weight
    shares = torch.tensor([0.0, 1.0, 0.0], dtype=seen.dtype).expand(batch, len(vertex), 3)
    # Vertices count by how many there may be, which is how many the body has if these are fewer than 600.
    points = SurfaceTargets(
        seen[:, vertex], first[vertex].expand(batch, -1), shares, weight, max_points=body.num_vertices
    )
    return VertexTargets(seen, everywhere), points


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_point_in_a_corner_is_a_vertex(solver):
    body = tiny_body()
    truth, camera = people(3)
    fits = [
        Smplify(body, GaussianPrior(), solver)(disturbed(truth), camera, targets)
        for targets in corner_pair(body, truth, camera, 30)
    ]
    # The same sums in another order, and for the second three times as many vertices.
    for name in ("initial_objective", "final_objective", "initial_error_px", "final_error_px"):
        assert torch.allclose(getattr(fits[0], name), getattr(fits[1], name), rtol=1e-9), name
    assert torch.allclose(fits[0].parameters.pose, fits[1].parameters.pose, atol=1e-7)


def test_the_objective_is_that_of_means_of_the_posed_vertices():
    body = tiny_body()
    truth, camera = people(3)
    start = disturbed(truth)
    targets = surface_of(body, truth, camera, points=40, factor=30.0, sigma_px=15.0, max_points=80)
    weight = torch.rand(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = dataclasses.replace(targets, weight=weight)
    problem = Smplify(body, weights=TermWeights(0.0, 0.0)).problem(start, camera, [targets])
    mesh, expected = body(start), torch.zeros(3, dtype=torch.float64)
    for b in range(3):
        extent = (targets.position_px[b].amax(dim=0) - targets.position_px[b].amin(dim=0)).max()
        for p in range(40):
            point = targets.barycentric[b, p] @ mesh.vertices[b, body.faces[targets.triangle[b, p]]]
            pixel = point[:2] / point[2] * camera.focal_px[b] + camera.center_px[b]
            squared = ((pixel - targets.position_px[b, p]) * 200 / extent).square().sum()
            expected[b] += 30 / 80 * weight[b, p] * 15**2 * squared / (15**2 + squared)
    assert torch.allclose(problem.objective(start), expected, rtol=1e-10)


def test_exact_points_bring_the_body_back():
    check_bodies_come_back(None, surface_of)


def test_what_the_rasterizer_shows_of_the_true_body_places_the_initial_one():
    """Points as DensePose would have them without error: pixel centres of the photo with what is seen there."""
    body = load_body_model("standin-tiny")
    cases = make_fit_cases(body, 3, seed=3, max_vertices=600)
    fragments = make_rasterizer("cpu")(body(cases.truth).vertices, body.faces, cases.camera, IMAGE_PX, IMAGE_PX)
    room = int(fragments.mask.sum(dim=(1, 2)).max())
    shape = (3, room)
    targets = SurfaceTargets(
        torch.zeros(*shape, 2), torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, 3), torch.zeros(shape)
    )
    for b in range(3):
        row, column = fragments.mask[b].nonzero(as_tuple=True)
        targets.position_px[b, : len(row)] = torch.stack([column, row], dim=1) + 0.5
        targets.triangle[b, : len(row)] = fragments.triangle_id[b, row, column]
        targets.barycentric[b, : len(row)] = fragments.barycentric[b, row, column]
        targets.weight[b, : len(row)] = 1
    assert room > targets.max_points
    at_truth = Smplify(body).problem(cases.truth, cases.camera, [targets])
    # The rasterizer's float32 barycentric coordinates are those of the pixel's centre.
    points = at_truth.points(cases.truth)[0]
    assert (cases.camera.project(points) - at_truth.evidence[0].target_px)[
        at_truth.evidence[0].weight > 0
    ].abs().max() < 0.01
    result = Smplify(body, weights=FREE)(cases.initial, cases.camera, targets)
    assert (result.final_error_px < 0.1 * result.initial_error_px).all()

    def error(parameters: BodyParameters) -> torch.Tensor:
        return torch.linalg.vector_norm(body(parameters).vertices - body(cases.truth).vertices, dim=-1).mean(dim=1)

    assert (error(result.parameters) < 0.6 * error(cases.initial)).all()


def test_solvers_agree():
    check_solvers_agree(GaussianPrior(), surface_of)


@pytest.mark.parametrize("solver", SOLVERS)
def test_padding_does_nothing_whatever_it_holds(solver):
    body = tiny_body()
    truth, camera = people(2)
    targets = surface_of(body, truth, camera, points=30)
    nothing = torch.full((2, 6), float("nan"), dtype=torch.float64)
    padded = dataclasses.replace(
        targets,
        position_px=torch.cat([nothing[..., None].expand(-1, -1, 2), targets.position_px], dim=1),
        triangle=torch.cat([torch.tensor([[-7, 10**6]]).repeat(2, 3), targets.triangle], dim=1),
        barycentric=torch.cat([nothing[..., None].expand(-1, -1, 3), targets.barycentric], dim=1),
        weight=torch.cat([torch.zeros_like(nothing), targets.weight], dim=1),
    )
    fits = [Smplify(body, GaussianPrior(), solver)(disturbed(truth), camera, each) for each in (targets, padded)]
    assert torch.allclose(fits[0].final_objective, fits[1].final_objective, rtol=1e-12)
    assert torch.allclose(fits[0].parameters.pose, fits[1].parameters.pose, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_hopeless_neighbours_change_nothing(solver):
    body = tiny_body()
    truth, camera = people(4)
    targets, initial = surface_of(body, truth, camera, points=50), disturbed(truth)
    initial.transl[1] *= -1
    initial.betas[2] = float("nan")
    blind = dataclasses.replace(targets, weight=targets.weight * torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
    alone = Smplify(body, GaussianPrior(), solver)(initial[:1], camera[:1], blind[:1])
    together = Smplify(body, GaussianPrior(), solver)(initial, camera, blind)
    # The same sums in another batch shape: rounding alone differs.
    assert torch.allclose(alone.parameters.pose, together.parameters.pose[:1], atol=1e-8)
    assert together.status[1:] == (FitStatus.BEHIND_CAMERA, FitStatus.INITIAL_NOT_FINITE, FitStatus.NO_EVIDENCE)


def test_samples_that_finish_early_leave_the_others_their_own_points():
    """Levenberg-Marquardt drops finished samples from the batch; here the first is done at once."""
    body = tiny_body()
    truth, camera = people(3)
    start = disturbed(truth)
    start = BodyParameters(*(torch.cat([a[:1], b[1:]]) for a, b in zip(*map(_parts, (truth, start)), strict=True)))
    targets = surface_of(body, truth, camera)
    fit = Smplify(body, None, LevenbergMarquardt(max_steps=60), FREE)
    whole = fit(start, camera, targets)
    for b in range(3):
        alone = fit(start[b : b + 1], camera[b : b + 1], targets[b : b + 1])
        assert torch.allclose(whole.parameters.pose[b], alone.parameters.pose[0], atol=1e-6)


def _parts(parameters):
    return parameters.rotations, parameters.betas, parameters.transl


def test_all_kinds_of_targets_go_together():
    body = tiny_body()
    truth, camera = people(2)
    vertices, _ = corner_pair(body, truth, camera, 30)
    kinds = (keypoints_of(body, truth, camera), vertices, surface_of(body, truth, camera))
    fit = Smplify(body, None, LevenbergMarquardt(max_steps=60, tolerance=1e-9), FREE)
    result = fit(disturbed(truth), camera, kinds)
    assert result.accepted.all()
    assert (result.final_error_px < 0.01).all()
    problem = fit.problem(truth, camera, kinds)
    assert [e.weight.shape[1] for e in problem.evidence] == [25, 240, 200]


def test_of_too_many_points_some_are_taken_at_even_steps():
    body = tiny_body()
    targets = surface_of(body, *people(3), points=13, max_points=5)
    targets.weight[1, ::2] = 0
    targets.weight[2, 4:] = 0
    evidence = targets.evidence(body)
    # 13 seen: floor(k 13 / 5). Six seen, the odd ones: the first five steps of 6 / 5. Four seen: all.
    places = [[0, 2, 5, 7, 10], [1, 3, 5, 7, 9], [0, 1, 2, 3]]
    for b, expected in enumerate(places):
        assert torch.equal(evidence.target_px[b, : len(expected)], targets.position_px[b, expected])
        assert torch.equal(
            evidence.points.shares[b, : len(expected)].argmax(1), targets.barycentric[b, expected].argmax(1)
        )
        corners = body.faces[targets.triangle[b, expected]].flatten()
        assert torch.equal(evidence.points.corners.vertex_ids[b, : len(corners)], corners)
    assert evidence.weight[0].tolist() == [20.0] * 5
    assert evidence.weight[2].tolist() == [20.0] * 4 + [0.0]


def test_a_point_counts_the_same_however_many_there_are():
    body = tiny_body()
    truth, camera = people(1)
    some = surface_of(body, truth, camera, points=9)
    assert some.evidence(body).weight.unique().tolist() == [100 / 500]


def test_no_points_at_all_are_no_evidence():
    body = tiny_body()
    truth, camera = people(2)
    for solver in (LevenbergMarquardt(), Adam(steps=2)):
        result = Smplify(body, GaussianPrior(), solver)(truth, camera, surface_of(body, truth, camera, points=0))
        assert result.status == (FitStatus.NO_EVIDENCE,) * 2
        assert torch.equal(result.parameters.transl, truth.transl)
    nobody = slice(0, 0)
    result = Smplify(body, GaussianPrior())(truth[nobody], camera[nobody], surface_of(body, truth, camera)[nobody])
    assert result.status == ()


def test_shares_a_little_outside_of_the_triangle_are_moved_to_its_edge():
    body = tiny_body()
    targets = surface_of(body, *people(1), points=1)
    targets.barycentric[0, 0] = torch.tensor([-5e-4, 0.5, 0.5005])
    shares = targets.evidence(body).points.shares[0, 0]
    assert shares[0] == 0
    assert shares.sum().item() == pytest.approx(1, abs=1e-12)


def test_precision_is_that_of_positions_not_of_triangles():
    body = tiny_body()
    targets = surface_of(body, *people(2), points=3).to(torch.float32).to("cpu")
    assert (targets.position_px.dtype, targets.barycentric.dtype, targets.weight.dtype) == (torch.float32,) * 3
    assert targets.triangle.dtype == torch.int64
    assert targets[1:].triangle.shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "triangle",
            torch.tensor([[0, 60]]),
            "in triangle 60, the body model tiny has 60: the points are of another body",
        ),
        ("triangle", torch.tensor([[0, -1]]), "in triangle -1"),
        ("barycentric", torch.tensor([[[0.2, 0.3, 0.5], [0.5, 0.5, 0.5]]]), r"shares .* \[0.5, 0.5, 0.5\]: not a mean"),
        ("barycentric", torch.tensor([[[0.2, 0.3, 0.5], [1.1, -0.1, 0.0]]]), "not a mean"),
    ],
)
def test_points_that_are_not_on_the_body_are_refused(name, value, message):
    body = tiny_body()
    truth, camera = people(1)
    targets = surface_of(body, truth, camera, points=2)
    wrong = dataclasses.replace(targets, **{name: value.to(getattr(targets, name).dtype)})
    with pytest.raises(InputError, match=message):
        Smplify(body)(truth, camera, wrong)
    # What has no weight may hold anything.
    unseen = dataclasses.replace(wrong, weight=torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert unseen.evidence(body).weight[0, 1] == 0


def test_there_is_room_for_a_point():
    with pytest.raises(ValueError, match="max_points must be at least 1, got 0"):
        surface_of(tiny_body(), *people(1), max_points=0)
