"""Fitting without an initial estimate."""

import math

import pytest
import torch
from fit_cases import GaussianPrior, tiny_body

from bodies import BodyParameters, PinholeCamera, load_body_model
from commands._fit_cases import draw_people
from fitting import (
    FROM_REST_SCHEDULE,
    GmmPrior,
    KeypointTargets,
    Smplify,
    TermWeights,
    fit_from_rest,
    place,
    rest_posture,
)


def test_rest_postures_stand_upright_at_equal_headings():
    body = tiny_body(dtype=torch.float32)
    postures = rest_posture(body, 8)
    joints = body(postures).joints
    up = joints[:, 15] - joints[:, 0]  # pelvis to head; the camera's y points down
    assert (up[:, 1] < -0.4).all()
    left_to_right = joints[:, 2] - joints[:, 1]
    heading = torch.atan2(left_to_right[:, 2], left_to_right[:, 0])
    steps = torch.diff(heading, append=heading[:1]).remainder(2 * math.pi)
    assert torch.allclose(steps, steps[:1].expand(8), atol=1e-4)
    # The first faces the camera, so the left hip is on the right of the image.
    assert joints[0, 1, 0] > joints[0, 2, 0]


def test_placement_is_exact_for_the_right_posture_and_in_front_for_the_wrong_ones():
    body = tiny_body(dtype=torch.float32)
    posture = rest_posture(body, 8)
    truth = BodyParameters(posture.rotations, posture.betas, torch.tensor([0.3, 0.1, 4.0]).expand(8, 3))
    camera = PinholeCamera.from_image_size(torch.tensor([[640.0, 480.0]]).expand(8, 2))
    points = body.keypoints(body(truth), "openpose25")
    targets = KeypointTargets(camera.project(points), torch.ones(8, 25))
    placed = place(body, posture, camera, targets)
    assert torch.allclose(placed.transl, truth.transl, atol=1e-3)
    wrong = place(body, posture, camera, targets[torch.arange(8).roll(4)])
    assert (body.keypoints(body(wrong), "openpose25")[..., 2] > 0).all()


@pytest.mark.parametrize("count", [1, 3])
def test_best_heading_is_kept_for_each_person_by_itself(count):
    body = load_body_model("standin-tiny")
    truth = draw_people(3, seed=8)
    camera = PinholeCamera.from_image_size(torch.tensor([[512.0, 512.0]]).expand(3, 2))
    pixels = camera.project(body.keypoints(body(truth), "openpose25"))
    fit = Smplify(body, GmmPrior.load("standin"), schedule=FROM_REST_SCHEDULE)
    targets = KeypointTargets(pixels, torch.full((3, 25), 0.9))
    people = torch.arange(count)
    result = fit_from_rest(fit, camera[people], targets[people])
    assert (result.fit.final_error_px < 4).all()
    # Each person faces the right way, told by where the hips are seen, left and right.
    found, true = (body(p[people]).joints for p in (result.fit.parameters, truth))
    facing = torch.nn.functional.cosine_similarity(found[:, 1] - found[:, 2], true[:, 1] - true[:, 2], dim=-1)
    assert (facing > 0.5).all()
    alone = fit_from_rest(fit, camera[:1], targets[:1])
    assert torch.allclose(alone.fit.final_objective, result.fit.final_objective[:1], rtol=1e-2)


def test_one_heading_is_allowed():
    body = tiny_body(dtype=torch.float32)
    camera = PinholeCamera.from_image_size(torch.tensor([[640.0, 480.0]]))
    start = rest_posture(body, 1)
    truth = BodyParameters(start.rotations, start.betas, torch.tensor([[0.0, 0.0, 3.5]]))
    pixels = camera.project(body.keypoints(body(truth), "openpose25"))
    fit = Smplify(body, GaussianPrior())
    result = fit_from_rest(fit, camera, KeypointTargets(pixels, torch.ones(1, 25)), headings=1)
    assert result.fit.final_error_px.item() < 2


def test_nobody_is_held_to_the_posture_the_fit_starts_from():
    body = load_body_model("standin-tiny")
    truth = draw_people(2, seed=8)
    camera = PinholeCamera.from_image_size(torch.tensor([[512.0, 512.0]]).expand(2, 2))
    targets = KeypointTargets(camera.project(body.keypoints(body(truth), "openpose25")), torch.ones(2, 25))
    weights = TermWeights(), TermWeights(initial_pose=1e6, initial_shape=1e6)
    fits = [
        fit_from_rest(Smplify(body, GmmPrior.load("standin"), weights=w, schedule=FROM_REST_SCHEDULE), camera, targets)
        for w in weights
    ]
    free, held = (fit.fit.parameters for fit in fits)
    assert torch.equal(free.rotations, held.rotations)
