"""What a body model file holds once it is read: plain arrays, whatever the file was."""

from dataclasses import dataclass, field

from jaxtyping import Float32, Int64
from numpy import ndarray
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class TextureLayout:
    """UV coordinates of a mesh, which has more of them than vertices because of the seams."""

    coordinates: Float32[ndarray, "texture_vertices 2"]
    """u to the right, v up, both in 0..1: image column u w, image row (1 - v) h."""
    faces: Int64[ndarray, "faces 3"]
    """For each face of the mesh, the rows of `coordinates` at its corners."""


@dataclass(frozen=True)
class BodyModelData:
    """SMPL's arrays. Vertices, joints and faces keep the order of the file."""

    name: str
    """What messages call the model, for example "standin" or "SMPL_NEUTRAL.pkl"."""
    template: Float32[ndarray, "vertices 3"]
    """Rest pose, mean shape; metres, x to the body's left, y up, z forward."""
    shape_directions: Float32[ndarray, "vertices 3 betas"]
    """Displacement for a unit of each shape coefficient."""
    pose_directions: Float32[ndarray, "vertices 3 pose_features"]
    """Pose blend shapes: displacement for a unit of each entry of (R_j - I), joints 1 to 23, row-major (207).
    No columns if the model has none."""
    joint_regressor: csr_matrix
    """(joints, vertices), rest vertices to rest joints."""
    skin_weights: Float32[ndarray, "vertices joints"]
    """Linear blend skinning weights; rows sum to one."""
    parents: Int64[ndarray, " joints"]
    """Parent of each joint, -1 for the root; a parent comes before its children."""
    faces: Int64[ndarray, "faces 3"]
    """Triangles, counter-clockwise seen from outside."""
    texture: TextureLayout | None = None
    """UV layout, if the file has one."""
    keypoint_regressors: dict[str, csr_matrix] = field(default_factory=dict)
    """Set name (see `bodies.joints`) to a regressor (keypoints, vertices + joints): its first columns weigh
    posed vertices, the last ones the posed joints of the kinematic chain."""
    missing_keypoints: dict[str, str] = field(default_factory=dict)
    """For a set that the files do not define, what the user can do about it; part of an error message."""
