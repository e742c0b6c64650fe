"""Hand-made postures: joint limits, signs, symmetry, determinism, and what each kind looks like."""

from typing import get_args

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tiny import REST_OFFSETS

from bodies.joints import SMPL24, SMPL24_PARENTS
from datamodules.poses import PoseKind, sample_poses
from datamodules.posture import (
    BODY_JOINTS,
    JOINTS,
    Arm,
    Leg,
    Posture,
    Trunk,
    joint_kind,
    joint_rotations,
    mirrored_pose,
)
from datamodules.posture_tables import ARM_RANGES, KIND_SHARES, VARIANTS, GaitCycle

KINDS = get_args(PoseKind)
AT = {name: index for index, name in enumerate(SMPL24)}
#: Axis-angle is single precision, about 1e-7 rad; the decomposition into three angles loses some more.
ANGLE_TOLERANCE_DEG = 0.01


def chain(root, body_pose):
    """World rotations (24 of them) and positions (count, 24, 3) of the joints, pelvis at the origin."""
    pose = np.concatenate([root[:, None], body_pose.reshape(-1, 23, 3)], axis=1).astype(np.float64)
    turned, joints = [Rotation.from_rotvec(pose[:, 0])], np.zeros((len(pose), 24, 3))
    for joint in range(1, 24):
        parent = SMPL24_PARENTS[joint]
        joints[:, joint] = joints[:, parent] + turned[parent].apply(REST_OFFSETS[joint])
        turned.append(turned[parent] * Rotation.from_rotvec(pose[:, joint]))
    return turned, joints


def joints_of(samples):
    return chain(samples.root_orientation, samples.body_pose)[1]


def angle_deg(first, second):
    cosine = (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)
    return np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))


@pytest.fixture(scope="module")
def mixed():
    return sample_poses(8000, seed=3)


@pytest.fixture(scope="module")
def by_kind():
    return {kind: sample_poses(400, seed=5, kinds=[kind]) for kind in KINDS}


def one_posture(leg=None, arm=None, trunk=None):
    """A single body with the same angles on both sides, all others zero."""

    def filled(kind, given):
        return kind(**{name: np.array([float((given or {}).get(name, 0))]) for name in kind.__dataclass_fields__})

    legs, arms = filled(Leg, leg), filled(Arm, arm)
    pose = joint_rotations(Posture(filled(Trunk, trunk), legs, legs, arms, arms), np.zeros((1, 23, 3)))
    return chain(np.zeros((1, 3)), pose)[1][0]


# Signs: an angle, the joint it moves, and the direction (outward, up, forward) it must move it.


@pytest.mark.parametrize(
    ("part", "angles", "joint", "direction"),
    [
        ("leg", {"knee_flexion": 90}, "ankle", (0, 1, -1)),
        ("leg", {"hip_flexion": 90}, "knee", (0, 1, 1)),
        ("leg", {"hip_abduction": 30}, "knee", (1, 1, 0)),
        ("leg", {"hip_rotation": 30}, "foot", (1, 0, 0)),
        ("leg", {"ankle_dorsiflexion": 20}, "foot", (0, 1, 0)),
        ("arm", {"elbow_flexion": 90}, "wrist", (0, 1, 1)),
        ("arm", {"flexion": 90}, "elbow", (0, 1, 1)),
        ("arm", {"abduction": 80}, "elbow", (1, 1, 0)),
        ("arm", {"elbow_flexion": 90, "rotation": 45}, "wrist", (1, 1, 1)),
        ("arm", {"wrist_flexion": 60}, "hand", (-1, 0, 0)),
    ],
)
def test_angles_move_the_body_the_right_way(part, angles, joint, direction):
    moved, still = one_posture(**{part: angles}), one_posture()
    for side, outward in (("left", 1), ("right", -1)):
        change = (moved - still)[AT[f"{side}_{joint}"]] * (outward, 1, 1)
        for value, sign in zip(change, direction, strict=True):
            assert value * sign > 0.02 if sign else True


def test_pronation_turns_the_palm_down():
    # The knuckles bend towards the palm: with a bent elbow and a pronated forearm, down.
    bent = {"elbow_flexion": 90, "pronation": 80, "wrist_flexion": 0}
    change = one_posture(arm=bent | {"wrist_flexion": 60}) - one_posture(arm=bent)
    assert change[AT["left_hand"], 1] < -0.04
    assert change[AT["right_hand"], 1] < -0.04


def test_trunk_angles_move_the_head_the_right_way():
    head = AT["head"]
    still = one_posture()
    assert (one_posture(trunk={"flexion": 60}) - still)[head, 2] > 0.1
    assert (one_posture(trunk={"bend": 30}) - still)[head, 0] > 0.1
    shoulders = one_posture(trunk={"turn": 40})[[AT["left_shoulder"], AT["right_shoulder"]]]
    assert shoulders[0, 2] < shoulders[1, 2] - 0.1  # turned to the left: the right shoulder comes forward


def test_zero_posture_has_hanging_arms():
    joints = one_posture()
    arm = joints[AT["left_wrist"]] - joints[AT["left_shoulder"]]
    assert angle_deg(arm, np.array([0, -1, 0])) < 5


# Limits


@pytest.mark.parametrize("kind", KINDS)
def test_joints_stay_within_their_limits(by_kind, kind):
    pose = by_kind[kind].body_pose.reshape(-1, 23, 3).astype(np.float64)
    for index, name in enumerate(BODY_JOINTS):
        side = np.array([1, -1, -1]) if name.startswith("right") else 1
        turned = Rotation.from_rotvec(pose[:, index] * side)
        if joint_kind(name) == "shoulder":
            collar = BODY_JOINTS.index(name.replace("shoulder", "collar"))
            turned = Rotation.from_rotvec(pose[:, collar] * side) * turned
        joint = JOINTS[joint_kind(name)]
        low, high = np.transpose(joint.limits_deg)
        angles = turned.as_euler(joint.order, degrees=True)
        # a b c and a + 180, -b, c + 180 are the same rotation when first and third axis agree.
        twins = [angles]
        if joint.order[0] == joint.order[2]:
            twins.append((angles * (1, -1, 1) + (180, 0, 180) + 180) % 360 - 180)
        inside = [((low - ANGLE_TOLERANCE_DEG <= t) & (t <= high + ANGLE_TOLERANCE_DEG)).all(axis=1) for t in twins]
        assert np.any(inside, axis=0).all(), name


def test_axis_angle_does_not_wrap(mixed):
    # Beyond pi the same posture gets the opposite vector, which would tear the distribution apart.
    angles = np.linalg.norm(mixed.body_pose.reshape(-1, 23, 3), axis=-1)
    assert angles.max() < 2.8


def test_spread_is_that_of_people(mixed):
    # Standard deviations in radians, as one finds them in motion capture; generous bands.
    spread = mixed.body_pose.reshape(-1, 23, 3).std(axis=0)

    def largest(name):
        return spread[BODY_JOINTS.index(name)].max()

    for name, low, high in (
        ("left_hip", 0.3, 0.7),
        ("left_knee", 0.4, 0.75),
        ("left_shoulder", 0.4, 0.7),
        ("left_elbow", 0.5, 0.7),
        ("spine1", 0.05, 0.2),
        ("left_wrist", 0.15, 0.3),
        ("left_ankle", 0.15, 0.3),
        ("left_foot", 0.03, 0.2),
        ("left_hand", 0.03, 0.2),
    ):
        assert low < largest(name) < high, name


# Symmetry and determinism


def test_mirroring_twice_changes_nothing(mixed):
    pose = mixed.body_pose.reshape(-1, 23, 3)
    assert np.array_equal(mirrored_pose(mirrored_pose(pose)), pose)


def test_mirrored_pose_is_the_mirror_image():
    samples = sample_poses(50, seed=1)
    pose = np.concatenate([samples.root_orientation[:, None], samples.body_pose.reshape(-1, 23, 3)], axis=1)
    flipped = mirrored_pose(pose)
    # Rotations of corresponding joints are reflections of each other: F R F with F = diag(-1, 1, 1).
    reflect = np.diag([-1.0, 1, 1])
    for name, other in (("left_knee", "right_knee"), ("left_shoulder", "right_shoulder"), ("spine2", "spine2")):
        expected = reflect @ Rotation.from_rotvec(pose[:, AT[name]]).as_matrix() @ reflect
        actual = Rotation.from_rotvec(flipped[:, AT[other]]).as_matrix()
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_left_and_right_are_equally_likely(mixed):
    pose = mixed.body_pose.reshape(-1, 23, 3).astype(np.float64)
    other = mirrored_pose(pose)
    # The difference of the two is antisymmetric; its mean is zero but for chance.
    error = (pose - other).std(axis=0) / np.sqrt(len(pose))
    assert (np.abs((pose - other).mean(axis=0)) <= 5 * error + 1e-12).all()


def test_same_seed_same_samples_in_any_split():
    whole = sample_poses(40, seed=11)
    parts = [sample_poses(7, seed=11), sample_poses(33, seed=11, first=7)]
    for one, *pieces in zip(whole, *parts, strict=True):
        assert np.array_equal(one, np.concatenate(pieces))
    assert not np.array_equal(whole.body_pose, sample_poses(40, seed=12).body_pose)


def test_kinds_come_in_their_shares(mixed):
    total = sum(KIND_SHARES.values())
    for kind in KINDS:
        expected = KIND_SHARES[kind] / total
        # five standard errors of a binomial share
        slack = 5 * np.sqrt(expected * (1 - expected) / len(mixed.kinds))
        assert abs((mixed.kinds == kind).mean() - expected) < slack


def test_only_the_kinds_asked_for():
    assert set(sample_poses(60, seed=0, kinds=["sit", "run"]).kinds) == {"sit", "run"}
    empty = sample_poses(0, seed=0)
    assert empty.body_pose.shape == (0, 69)
    assert empty.body_pose.dtype == np.float32


@pytest.mark.parametrize(("count", "first", "kinds"), [(-1, 0, None), (1, -1, None), (1, 0, [])])
def test_bad_requests_are_refused(count, first, kinds):
    with pytest.raises(ValueError, match="kinds are stand, walk"):
        sample_poses(count, seed=0, kinds=kinds, first=first)


def test_unknown_kinds_are_refused():
    # The run-time check of the annotation may come first, with a TypeError.
    with pytest.raises((ValueError, TypeError), match="swim"):
        sample_poses(1, seed=0, kinds=["sit", "swim"])


def test_tables_are_sound():
    assert set(KIND_SHARES) == set(KINDS) == {variant.kind for variant in VARIANTS}
    ranges = [bounds for style in ARM_RANGES.values() for bounds in style[:6]]
    for variant in VARIANTS:
        assert set(variant.arms) <= set(ARM_RANGES)
        ranges += [variant.pitch, variant.flexion]
        if isinstance(variant.legs, GaitCycle):
            # one cycle ends where the next begins
            assert all(angles[0] == angles[-1] and len(angles) == 11 for angles in variant.legs[:3])
        else:
            ranges += [bounds for leg in variant.legs for bounds in leg[:4]]
    assert all(low < high for low, high in ranges)


# What each kind looks like


def lean_deg(joints):
    return angle_deg(joints[:, AT["neck"]] - joints[:, AT["pelvis"]], np.array([0.0, 1, 0]))


def knee_deg(joints, side):
    hip, knee, ankle = (joints[:, AT[f"{side}_{name}"]] for name in ("hip", "knee", "ankle"))
    return 180 - angle_deg(hip - knee, ankle - knee)


def thigh_deg(joints, side):
    """0 is straight down, 90 is horizontal."""
    return angle_deg(joints[:, AT[f"{side}_knee"]] - joints[:, AT[f"{side}_hip"]], np.array([0.0, -1, 0]))


def test_standing_is_upright_with_arms_down(by_kind):
    joints = joints_of(by_kind["stand"])
    assert lean_deg(joints).max() < 35
    ground = joints[:, [AT["left_foot"], AT["right_foot"]], 1].min(axis=1)
    assert np.median(ground) == pytest.approx(-0.92, abs=0.03)  # SMPL's legs, straight
    arms = angle_deg(joints[:, AT["left_elbow"]] - joints[:, AT["left_shoulder"]], np.array([0.0, -1, 0]))
    assert np.median(arms) < 35
    assert (abs(arms - 90) < 15).mean() < 0.1  # hardly a T-pose among them


@pytest.mark.parametrize("kind", ["walk", "run"])
def test_opposite_arm_and_leg_go_together(by_kind, kind):
    joints = joints_of(by_kind[kind])
    leg = joints[:, AT["left_knee"], 2] - joints[:, AT["right_knee"], 2]
    arm = joints[:, AT["left_elbow"], 2] - joints[:, AT["right_elbow"], 2]
    assert np.corrcoef(leg, arm)[0, 1] < -0.6


def test_runners_bend_knees_and_elbows_more_than_walkers(by_kind):
    walk, run = (joints_of(by_kind[kind]) for kind in ("walk", "run"))
    assert knee_deg(run, "left").mean() > knee_deg(walk, "left").mean() + 15
    assert lean_deg(run).mean() > lean_deg(walk).mean() + 3


def test_seated_thighs_are_level(by_kind):
    joints = joints_of(by_kind["sit"])
    for side in ("left", "right"):
        assert np.median(abs(thigh_deg(joints, side) - 90)) < 15
        assert (abs(thigh_deg(joints, side) - 90) < 50).all()
        assert np.median(knee_deg(joints, side)) == pytest.approx(90, abs=15)
    assert (joints[:, AT["left_knee"], 2] > 0.15).mean() > 0.95  # knees in front


def test_squatting_is_low_on_flat_feet(by_kind):
    joints = joints_of(by_kind["squat"])
    feet = joints[:, [AT["left_ankle"], AT["right_ankle"]]].mean(axis=1)
    assert (-feet[:, 1]).max() < 0.75
    assert np.median(-feet[:, 1]) < 0.6
    toes = joints[:, AT["left_foot"]] - joints[:, AT["left_ankle"]]
    assert np.median(toes[:, 1]) == pytest.approx(-0.056, abs=0.02)  # as in the rest pose


def test_a_lunge_is_a_long_step(by_kind):
    joints = joints_of(by_kind["lunge"])
    step = np.linalg.norm((joints[:, AT["left_ankle"]] - joints[:, AT["right_ankle"]])[:, [0, 2]], axis=-1)
    assert np.median(step) > 0.6
    assert max(knee_deg(joints, "left").max(), knee_deg(joints, "right").max()) > 80


def test_bending_brings_the_head_forward_and_down(by_kind):
    joints = joints_of(by_kind["bend"])
    assert np.median(lean_deg(joints)) > 50
    assert (joints[:, AT["head"], 2] > 0.2).all()


def test_reaching_hands_are_often_above_the_head(by_kind):
    joints = joints_of(by_kind["reach"])
    hands = joints[:, [AT["left_wrist"], AT["right_wrist"]], 1].max(axis=1)
    assert 0.4 < (hands > joints[:, AT["head"], 1] + 0.1).mean() < 0.95


def test_a_kneeling_knee_is_on_the_ground(by_kind):
    joints = joints_of(by_kind["kneel"])
    lowest = joints[:, :, 1].min(axis=1)
    knees = joints[:, [AT["left_knee"], AT["right_knee"]], 1].min(axis=1)
    # A thigh is about 0.1 m thick at the knee; nothing else lies much lower than the kneecap.
    assert np.percentile(knees - lowest, 95) < 0.15


def test_climbing_puts_one_knee_above_the_other(by_kind):
    joints = joints_of(by_kind["climb"])
    assert np.median(abs(joints[:, AT["left_knee"], 1] - joints[:, AT["right_knee"], 1])) > 0.15


def test_lying_trunks_are_level_on_any_side(by_kind):
    samples = by_kind["lie"]
    turned, joints = chain(samples.root_orientation, samples.body_pose)
    assert (abs(lean_deg(joints) - 90) < 35).all()
    front = turned[0].apply([0.0, 0, 1])
    assert (front[:, 1] > 0.8).mean() > 0.25  # on the back
    assert (front[:, 1] < -0.8).mean() > 0.1  # on the front
    assert (front[:, 0] > 0.8).any()
    assert (front[:, 0] < -0.8).any()


def test_limbs_stay_out_of_the_trunk(mixed):
    turned, joints = chain(mixed.root_orientation, mixed.body_pose)
    inside = np.zeros(len(joints), bool)
    for name in ("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_knee", "right_knee"):
        local = turned[AT["spine2"]].inv().apply(joints[:, AT[name]] - joints[:, AT["spine2"]])
        # A core well inside of any adult's trunk: 20 cm wide, 14 cm deep, from the hips to the collar bones.
        inside |= (abs(local[:, 1]) < 0.2) & ((local[:, 0] / 0.1) ** 2 + (local[:, 2] / 0.07) ** 2 < 1)
    assert inside.mean() < 0.005
