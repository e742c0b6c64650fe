"""Pose errors against scipy and numpy written anew, and accumulators in one process and in two."""

import math

import numpy as np
import pytest
import roma
import torch
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from bodies import BodyMesh, BodyModel, BodyModelData
from bodies.joints import H36M17, LSP14, LSP14_FROM_H36M17
from lightning_modules.metrics import (
    POSE_ERROR_NAMES,
    EvaluationPoints,
    align_root,
    evaluation_points,
    mpjpe_mm,
    n_mpjpe_mm,
    pa_mpjpe_mm,
    pose_errors,
    procrustes_align,
)

#: Errors are of order 100 mm and computed in float64 from numbers of order one.
EXACT_MM = 1e-8


def _bodies(batch=5, points=14):
    target = torch.randn(batch, points, 3, dtype=torch.float64) * 0.4
    return target + torch.randn_like(target) * 0.1, target


def _similar(points):
    """The same points turned, scaled and moved, differently for each sample."""
    rotation = roma.random_rotmat(len(points), dtype=points.dtype)
    scale = torch.empty(len(points), 1, 1, dtype=points.dtype).uniform_(0.3, 3.0)
    return scale * points @ rotation.mT + torch.randn(len(points), 1, 3, dtype=points.dtype)


def _mean_distance_mm(a, b):
    return 1000.0 * np.mean([math.dist(p, q) for p, q in zip(a, b, strict=True)])


# ---- functions


def test_a_known_offset_has_the_known_error():
    target = torch.randn(3, 14, 3)
    offset = torch.tensor([0.003, -0.004, 0.0])
    # Float32 points of order one, so micrometres.
    torch.testing.assert_close(mpjpe_mm(target + offset, target), torch.full((3,), 5.0).double(), atol=1e-3, rtol=0.0)


def test_align_root_moves_the_root_to_the_origin():
    points = torch.randn(3, 14, 3)
    assert not align_root(points, points[:, 2])[:, 2].any()


def test_mpjpe_is_the_mean_distance():
    predicted, target = _bodies()
    expected = [_mean_distance_mm(p, t) for p, t in zip(predicted.tolist(), target.tolist(), strict=True)]
    np.testing.assert_allclose(mpjpe_mm(predicted, target), expected, atol=EXACT_MM)


def test_pa_mpjpe_agrees_with_scipys_rotation():
    predicted, target = _bodies(batch=20)
    errors = pa_mpjpe_mm(predicted, target)
    for error, p, t in zip(errors, predicted.numpy(), target.numpy(), strict=True):
        p, t = p - p.mean(0), t - t.mean(0)
        turned = Rotation.align_vectors(t, p)[0].apply(p)
        scale = np.vdot(turned, t) / np.vdot(turned, turned)
        assert float(error) == pytest.approx(_mean_distance_mm(scale * turned, t), abs=1e-6)  # scipy's own accuracy


def test_no_nearby_similarity_fits_better_than_procrustes():
    predicted, target = _bodies(batch=1)
    aligned = procrustes_align(predicted, target)
    best = (aligned - target).square().sum()
    for _ in range(200):
        turn = roma.rotvec_to_rotmat(torch.randn(3, dtype=torch.float64) * 0.01)
        scale = 1 + torch.randn((), dtype=torch.float64) * 0.01
        moved = scale * aligned @ turn.mT + torch.randn(3, dtype=torch.float64) * 0.001
        assert (moved - target).square().sum() > best


def test_n_mpjpe_has_the_best_scale():
    predicted, target = _bodies()
    for error, p, t in zip(n_mpjpe_mm(predicted, target), predicted.numpy(), target.numpy(), strict=True):
        scale = minimize_scalar(lambda s, p=p, t=t: np.square(s * p - t).sum()).x
        # The search finds the scale to about 1e-8 of itself.
        assert float(error) == pytest.approx(_mean_distance_mm(scale * p, t), abs=1e-4)


def test_pa_mpjpe_ignores_similarities_of_the_prediction():
    predicted, target = _bodies()
    torch.testing.assert_close(
        pa_mpjpe_mm(_similar(predicted), target), pa_mpjpe_mm(predicted, target), atol=EXACT_MM, rtol=0.0
    )
    assert pa_mpjpe_mm(_similar(target), target).max() < EXACT_MM


def test_pa_mpjpe_does_not_forgive_a_reflection():
    _, target = _bodies()
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0])
    assert pa_mpjpe_mm(mirrored, target).min() > 50.0
    # A flat figure's mirror image is that figure turned over.
    flat = target * torch.tensor([1.0, 1.0, 0.0])
    assert pa_mpjpe_mm(flat * torch.tensor([-1.0, 1.0, 1.0]), flat).max() < EXACT_MM


def test_n_mpjpe_ignores_scale_but_not_rotation_or_reflection():
    predicted, target = _bodies()
    torch.testing.assert_close(n_mpjpe_mm(7.0 * predicted, target), n_mpjpe_mm(predicted, target))
    assert n_mpjpe_mm(0.1 * target, target).max() < EXACT_MM
    turned = target @ roma.rotvec_to_rotmat(torch.tensor([0.0, 0.5, 0.0]).double()).mT
    assert n_mpjpe_mm(turned, target).min() > 50.0
    # A negative factor would undo this one.
    torch.testing.assert_close(n_mpjpe_mm(-target, target), mpjpe_mm(torch.zeros_like(target), target))


def test_alignment_never_raises_the_squared_error():
    predicted, target = _bodies(batch=50)
    aligned = procrustes_align(predicted, target)
    assert ((aligned - target).square().sum((1, 2)) <= (predicted - target).square().sum((1, 2))).all()


@pytest.mark.parametrize("points", [1, 2, 14])
def test_points_in_one_place_are_scored_as_the_targets_centre(points):
    target = torch.randn(2, points, 3, dtype=torch.float64)
    collapsed = torch.full_like(target, 0.7)
    expected = mpjpe_mm(target.mean(dim=1, keepdim=True).expand_as(target), target)
    torch.testing.assert_close(pa_mpjpe_mm(collapsed, target), expected, atol=EXACT_MM, rtol=0.0)
    zero = torch.zeros_like(target)
    torch.testing.assert_close(n_mpjpe_mm(zero, target), mpjpe_mm(zero, target))


def test_points_on_a_line_are_aligned():
    steps = torch.linspace(-1, 1, 9, dtype=torch.float64)[None, :, None]
    line = steps * torch.tensor([0.0, 1.0, 0.0]).double()
    other = 2.0 * steps * torch.tensor([0.6, 0.0, 0.8]).double() + 3.0
    assert pa_mpjpe_mm(line, other).max() < EXACT_MM
    # Against a body it is the best line through the body: what is left is the spread off the principal axis.
    target = _bodies(batch=1, points=9)[1]
    aligned = procrustes_align(line, target)
    assert torch.linalg.matrix_rank(aligned[0] - aligned[0].mean(0), atol=1e-9) == 1
    assert aligned.isfinite().all()


@pytest.mark.parametrize("error_mm", [mpjpe_mm, n_mpjpe_mm, pa_mpjpe_mm])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_spoils_its_own_sample_alone(error_mm, bad):
    predicted, target = _bodies()
    clean = error_mm(predicted, target)
    predicted[1, 3, 2] = bad
    target[3, 0, 0] = bad
    errors = error_mm(predicted, target)
    assert errors.isnan().tolist() == [False, True, False, True, False]
    torch.testing.assert_close(errors[[0, 2, 4]], clean[[0, 2, 4]], atol=EXACT_MM, rtol=0.0)


@pytest.mark.parametrize("error_mm", [mpjpe_mm, n_mpjpe_mm, pa_mpjpe_mm])
def test_autocast_and_batch_mates_do_not_matter(error_mm):
    predicted, target = (x.float() for x in _bodies())
    reference = error_mm(predicted, target)
    with torch.autocast("cpu", torch.bfloat16):
        inside = error_mm(predicted, target)
    alone = torch.cat([error_mm(predicted[i : i + 1], target[i : i + 1]) for i in range(5)])
    assert reference.dtype == inside.dtype == torch.float64
    torch.testing.assert_close(inside, reference, atol=EXACT_MM, rtol=0.0)
    torch.testing.assert_close(alone, reference, atol=EXACT_MM, rtol=0.0)


# ---- the record


def _body():
    """40 vertices, 24 joints; the regressors pick single vertices, so that the expected points are known."""
    vertices = 40

    def picks(rows, columns):
        return csr_matrix((np.ones(len(rows)), (np.arange(len(rows)), rows)), shape=(len(rows), columns))

    h36m = np.arange(10, 10 + len(H36M17))
    return BodyModel(
        BodyModelData(
            name="test",
            template=np.random.default_rng(0).normal(size=(vertices, 3)).astype(np.float32),
            shape_directions=np.zeros((vertices, 3, 10), np.float32),
            pose_directions=np.zeros((vertices, 3, 0), np.float32),
            joint_regressor=picks(np.arange(24), vertices),
            skin_weights=np.eye(vertices, 24, dtype=np.float32),
            parents=np.arange(-1, 23),
            faces=np.array([[0, 1, 2]]),
            keypoint_regressors={
                "h36m17": picks(h36m, vertices + 24),
                "lsp14": picks(h36m[list(LSP14_FROM_H36M17)], vertices + 24),
            },
        )
    )


def test_the_lsp14_protocol_scores_the_regressed_joints_from_regressor_row_0():
    mesh = BodyMesh(torch.randn(2, 40, 3), torch.randn(2, 24, 3))
    points = evaluation_points(_body(), mesh)
    assert torch.equal(points.pelvis, mesh.vertices[:, 10])
    assert points.joints.shape == (2, len(LSP14), 3)
    right_ankle = mesh.vertices[:, 10 + H36M17.index("right_ankle")]
    assert torch.equal(points.joints[:, LSP14.index("right_ankle")], right_ankle)


def test_the_smpl24_protocol_aligns_at_the_middle_of_the_hips():
    mesh = BodyMesh(torch.randn(2, 40, 3), torch.randn(2, 24, 3))
    points = evaluation_points(_body(), mesh, "smpl24")
    assert torch.equal(points.joints, mesh.joints)
    torch.testing.assert_close(points.pelvis, (mesh.joints[:, 1] + mesh.joints[:, 2]) / 2)


def _points(batch=3):
    return EvaluationPoints(torch.randn(batch, 14, 3), torch.randn(batch, 40, 3), torch.randn(batch, 3))


def test_joints_and_vertices_are_aligned_at_the_same_pelvis():
    target = _points()
    shift = torch.tensor([0.0, 0.0, 0.03])
    predicted = EvaluationPoints(target.joints + shift, target.vertices - shift, target.pelvis)
    errors = pose_errors(predicted, target)
    expected = torch.full((3,), 30.0, dtype=torch.float64)
    torch.testing.assert_close(errors.mpjpe_mm, expected, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(errors.pve_mm, expected, atol=1e-3, rtol=0.0)
    assert max(errors.pa_mpjpe_mm.max(), errors.pa_pve_mm.max()) < 1e-3


def test_a_common_translation_of_the_prediction_does_not_matter():
    predicted, target = _points(), _points()
    shift = torch.tensor([1.0, -2.0, 3.0])
    moved = EvaluationPoints(predicted.joints + shift, predicted.vertices + shift, predicted.pelvis + shift)
    # Float32 points of order one.
    torch.testing.assert_close(
        pose_errors(moved, target).stack(), pose_errors(predicted, target).stack(), atol=2e-3, rtol=0.0
    )


def test_the_columns_of_the_record_are_its_fields():
    predicted, target = _points(), _points()
    errors = pose_errors(predicted, target)
    assert POSE_ERROR_NAMES == ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "pve_mm", "pa_pve_mm", "n_pve_mm")
    assert torch.equal(errors.stack()[:, 4], errors.pa_pve_mm)
    joints = predicted.joints - predicted.pelvis[:, None], target.joints - target.pelvis[:, None]
    vertices = predicted.vertices - predicted.pelvis[:, None], target.vertices - target.pelvis[:, None]
    assert torch.equal(errors.n_mpjpe_mm, n_mpjpe_mm(*joints))
    assert torch.equal(errors.n_pve_mm, n_mpjpe_mm(*vertices))
    assert torch.equal(errors.pa_pve_mm, pa_mpjpe_mm(*vertices))


def test_without_a_true_mesh_the_vertex_errors_alone_are_nan():
    predicted, target = _points(), _points()
    target = EvaluationPoints(target.joints, torch.full_like(target.vertices, math.nan), target.pelvis)
    assert pose_errors(predicted, target).stack().isnan().all(dim=0).tolist() == [False] * 3 + [True] * 3
