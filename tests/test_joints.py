"""`bodies.joints`: orders and pairs, against the tables of the sources as FORMATS.md has them."""

import pytest

from bodies.joints import (
    EXTRA9,
    H36M17,
    H36M17_FROM_RIGHT_LEG_FIRST,
    KEYPOINT_NAMES,
    LSP14,
    LSP14_FROM_H36M17,
    OPENPOSE25,
    OPENPOSE25_BONES,
    SMPL24,
    SMPL24_PARENTS,
    SMPL_VERTEX_IDS,
    SPIN24,
    mirrored,
)

#: SPIN `constants.py`, and FORMATS 0.2 for the pose.
SPIN_FLIPS = {
    "smpl24": (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22),
    "openpose25": (0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19, 20, 21),
    "lsp14": (5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13),
    "spin24": (5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16, 17, 18, 19, 21, 20, 23, 22),
}


@pytest.mark.parametrize("name", KEYPOINT_NAMES)
def test_names_are_unique_and_mirroring_twice_changes_nothing(name):
    names = KEYPOINT_NAMES[name]
    assert len(set(names)) == len(names)
    swap = mirrored(names)
    assert sorted(swap) == list(range(len(names)))
    for index, other in enumerate(swap):
        assert swap[other] == index
        sides = {names[index].partition("_")[0], names[other].partition("_")[0]}
        assert sides == {"left", "right"} or (index == other and not sides & {"left", "right"})


@pytest.mark.parametrize("name", SPIN_FLIPS)
def test_mirroring_is_that_of_spin(name):
    assert mirrored(KEYPOINT_NAMES[name]) == SPIN_FLIPS[name]


def test_mirroring_keeps_the_kinematic_tree():
    swap = mirrored(SMPL24)
    for joint, parent in enumerate(SMPL24_PARENTS[1:], start=1):
        assert SMPL24_PARENTS[swap[joint]] == swap[parent]
        assert parent < joint


def test_openpose_bones_form_a_symmetric_tree():
    assert len(OPENPOSE25_BONES) == len(OPENPOSE25) - 1
    reached = {0}
    for parent, child in OPENPOSE25_BONES:
        assert parent in reached
        assert child not in reached
        reached.add(child)
    swap = mirrored(OPENPOSE25)
    assert {(swap[a], swap[b]) for a, b in OPENPOSE25_BONES} == set(OPENPOSE25_BONES)


def test_lsp14_takes_the_rows_of_its_names():
    assert [H36M17[row] for row in LSP14_FROM_H36M17] == list(LSP14)


def test_right_leg_first_swaps_the_legs_only():
    assert [H36M17[row] for row in H36M17_FROM_RIGHT_LEG_FIRST] == [
        "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", *H36M17[7:],
    ]  # fmt: skip


def test_every_keypoint_of_smpl_has_a_source():
    assert set(OPENPOSE25) <= {*SMPL24, *SMPL_VERTEX_IDS, "mid_hip"}
    assert not set(SMPL_VERTEX_IDS) & set(SMPL24)
    assert set(SPIN24) <= {*EXTRA9, *SMPL24, *SMPL_VERTEX_IDS}
    # Low vertex numbers are SMPL's left half (FORMATS 10.3).
    for name, vertex in SMPL_VERTEX_IDS.items():
        assert name == "nose" or (vertex < 3445) == name.startswith("left")
