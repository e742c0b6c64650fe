"""Makes the frames of a synthetic set one by one; frame i depends on the settings and i alone.

A frame is a posture, a subject, a view, a background, light, occluders and a sensor, each drawn from the frame's own
generator. So any number of processes make the same set.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray
from scipy.spatial.transform import Rotation
from torch import Tensor

from bodies import BodyMesh, BodyModel, BodyParameters, InputError, PinholeCamera, load_body_model
from bodies.joints import KeypointSet
from datamodules.amass import draw_amass_poses
from datamodules.backgrounds import list_images, made_background, photo_background
from datamodules.crops import ImageCamera
from datamodules.lighting import draw_light
from datamodules.occluders import draw_occluders
from datamodules.person_layer import LitBody, body_box_px, draw_body
from datamodules.poses import sample_poses
from datamodules.sensor import encoded, photographed
from datamodules.store_records import FrameRow, StoredImage, SurfacePoints
from datamodules.synthetic_subjects import BETA_JITTER, MAX_BETA, Subject, Wardrobe
from datamodules.synthetic_surface import detect_surface
from datamodules.viewpoints import View, draw_view, project
from renderers import make_rasterizer, vertex_normals

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
DATASET: Final = "synthetic"

#: Noise of the detected keypoints in pixels of the full image, whatever its size, and how many are missed.
KEYPOINT_NOISE_PX: Final = 5.0
KEYPOINT_DROPPED: Final = 0.1
#: Side of the person's box over the larger side of what the image shows of the body.
BOX_MARGIN: Final = 1.1
#: Share of the frames whose background is a photo, if there are any.
PHOTO_SHARE: Final = 0.85
MIN_IMAGE_PX: Final = 32
MAX_IMAGE_PX: Final = 4096

_FRAME, _SUBJECT, _POSTURE, _SURFACE = range(4)


@dataclass(frozen=True)
class SyntheticSettings:
    """What a synthetic set is to be.

    Raises:
        InputError: If there are no frames or subjects, or a number makes no sense.
    """

    frames: int
    """How many."""
    subjects: int = 50
    """How many persons; frame i shows person i modulo this number."""
    split: Split = "train"
    """Other splits have other persons, postures and scenes."""
    seed: int = 0
    """Of all that is drawn."""
    body: str = "standin"
    """Name or path of the body model."""
    image_size: tuple[int, int] = (320, 320)
    """Width and height of the images."""
    amass: Path | None = None
    """File or folder of AMASS recordings; by default postures are drawn by rules."""
    textures: Path | None = None
    """Folder of texture images in the body's UV layout; by default appearances are drawn."""
    backgrounds: Path | None = None
    """Folder of photos; by default scenes are made."""
    texture_px: int = 256
    """Side of the stored textures of bodies with a UV layout."""
    surface_points: int = 0
    """How many points of each person to store at most as DensePose would report them; all else is as without."""

    def __post_init__(self) -> None:
        if self.frames < 1 or self.subjects < 1:
            raise InputError(f"frames {self.frames}, subjects {self.subjects}: a set needs at least one of each")
        if self.surface_points < 0:
            raise InputError(f"surface points {self.surface_points}: there cannot be fewer than none")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: it must not be negative")
        if not all(MIN_IMAGE_PX <= side <= MAX_IMAGE_PX for side in self.image_size):
            raise InputError(f"image size {self.image_size}: sides are {MIN_IMAGE_PX} to {MAX_IMAGE_PX} pixels")
        if not MIN_IMAGE_PX <= self.texture_px <= MAX_IMAGE_PX:
            raise InputError(f"texture size {self.texture_px}: it is {MIN_IMAGE_PX} to {MAX_IMAGE_PX} pixels")

    def row_id(self, frame: int) -> str:
        """Name of a frame's row."""
        return f"{DATASET}/{self.subject_name(frame % self.subjects)}/{frame:07d}/0"

    def subject_name(self, subject: int) -> str:
        """Name of a subject, which no other split or seed has."""
        return f"{self.split}-{self.seed}-{subject:05d}"

    def entropy(self, stream: int) -> tuple[int, int, int]:
        """Seed of one kind of thing in this set."""
        return (self.seed, SPLITS.index(self.split), stream)


class MadeFrame(NamedTuple):
    """A frame, ready to be stored; `row.image` is to be set to the stored image."""

    image: StoredImage
    """The picture."""
    row: FrameRow
    """The person in it."""


class _Person(NamedTuple):
    """A body in front of a camera."""

    mesh: BodyMesh
    """In the camera frame, a batch of one."""
    camera: ImageCamera
    """The full-image camera."""
    pose: Float64[ndarray, "72"]
    """Axis-angle in radians, root in the camera frame."""
    betas: Float32[ndarray, " betas"]
    """Shape coefficients."""
    transl: Float64[ndarray, "3"]
    """Metres in the camera frame."""


class FrameMaker:
    """Makes frames and textures of a set by number.

    Args:
        settings: What the set is to be.

    Raises:
        InputError: If the body, the postures, textures or backgrounds cannot be read.
    """

    def __init__(self, settings: SyntheticSettings) -> None:
        self.settings = settings
        self.body: BodyModel = load_body_model(settings.body)
        self.wardrobe = Wardrobe(self.body, settings.entropy(_SUBJECT), settings.textures, settings.texture_px)
        self._photos = list_images(settings.backgrounds) if settings.backgrounds else ()
        self._posture_seed = int(np.random.SeedSequence(settings.entropy(_POSTURE)).generate_state(1)[0])
        self._amass = draw_amass_poses(settings.amass, settings.frames, self._posture_seed) if settings.amass else None

    def frame(self, number: int) -> MadeFrame:
        """One frame.

        Raises:
            InputError: If a photo for the background cannot be read.
        """
        rng = np.random.default_rng([*self.settings.entropy(_FRAME), number])
        subject = self.wardrobe.subject(number % self.settings.subjects)
        pose, betas = self._posture(number), self._betas(rng, subject)
        upright = self._mesh(pose, betas, np.zeros(3))
        pelvis = upright.joints[0, 0].numpy()
        view = draw_view(rng, upright.vertices[0].numpy() - pelvis, self.settings.image_size)
        pose[:3] = (Rotation.from_matrix(view.rotation) * Rotation.from_rotvec(pose[:3])).as_rotvec()
        # The root turns about the rest pelvis, which is where `upright` has it.
        person = _Person(self._moved(upright, view, pelvis), view.camera, pose, betas, view.pelvis_m - pelvis)
        pixels, visible = self._picture(rng, person, subject)
        name = f"{self.settings.subject_name(number % self.settings.subjects)}/{number:07d}.jpg"
        image = StoredImage(name, encoded(rng, pixels), self.settings.image_size)
        row = self._row(rng, number, person)
        if self.settings.surface_points:
            row = replace(row, surface=self._surface(number, person, visible))
        return MadeFrame(image, row)

    def _posture(self, number: int) -> Float64[ndarray, "72"]:
        """Axis-angle of a body in a y-up world."""
        if self._amass is not None:
            return self._amass[number].astype(np.float64)
        sample = sample_poses(1, self._posture_seed, first=number)
        return np.concatenate([sample.root_orientation[0], sample.body_pose[0]]).astype(np.float64)

    def _betas(self, rng: np.random.Generator, subject: Subject) -> Float32[ndarray, " betas"]:
        jittered = subject.betas + BETA_JITTER * rng.standard_normal(len(subject.betas))
        return np.clip(jittered, -MAX_BETA, MAX_BETA).astype(np.float32)

    def _mesh(self, pose: ndarray, betas: ndarray, transl: ndarray) -> BodyMesh:
        numbers = (torch.tensor(part, dtype=torch.float32)[None] for part in (pose, betas, transl))
        return self.body(BodyParameters.from_axis_angle(*numbers))

    def _moved(self, mesh: BodyMesh, view: View, pelvis: ndarray) -> BodyMesh:
        """The mesh, turned about its pelvis and brought in front of the camera."""

        def move(points: Tensor) -> Tensor:
            seen = (points[0].double().numpy() - pelvis) @ view.rotation.T + view.pelvis_m
            return torch.from_numpy(seen.astype(np.float32))[None]

        return BodyMesh(move(mesh.vertices), move(mesh.joints))

    def _picture(
        self, rng: np.random.Generator, person: _Person, subject: Subject
    ) -> tuple[ndarray, Bool[ndarray, "height width"]]:
        """The photo, and the pixels that show the person."""
        width, height = self.settings.image_size
        if self._photos and rng.uniform() < PHOTO_SHARE:
            background = photo_background(rng, self._photos, width, height)
        else:
            background = made_background(rng, width, height)
        vertices = person.mesh.vertices
        body = LitBody(
            vertices_m=vertices[0].numpy(),
            normals=vertex_normals(vertices, self.body.faces)[0].numpy(),
            faces=self.body.faces,
            lattice=self.wardrobe.lattice,
            colors=subject.colors,
            light=draw_light(rng, background.mean(axis=(0, 1)) / 255),
        )
        image, shown = draw_body(background, body, person.camera)
        image, visible = draw_occluders(rng, image, shown, body_box_px(body.vertices_m, person.camera))
        return photographed(rng, image), visible

    def _surface(self, number: int, person: _Person, visible: Bool[ndarray, "height width"]) -> SurfacePoints:
        # Of its own, so that a set with points is otherwise the same as one without.
        rng = np.random.default_rng([*self.settings.entropy(_SURFACE), number])
        camera = PinholeCamera(*(torch.tensor(part)[None] for part in person.camera))
        seen = make_rasterizer("cpu")(person.mesh.vertices, self.body.faces, camera, *visible.shape)
        return detect_surface(rng, seen, visible, self.settings.surface_points)

    def _row(self, rng: np.random.Generator, number: int, person: _Person) -> FrameRow:
        subject = self.settings.subject_name(number % self.settings.subjects)
        keypoints, joints = self._keypoints(person.mesh, "openpose25"), self._keypoints(person.mesh, "h36m17")
        true_px = None if keypoints is None else _with_ones(project(keypoints, person.camera))
        return FrameRow(
            row_id=self.settings.row_id(number),
            image=-1,
            subject=subject,
            sequence=subject,
            frame=number,
            gender="neutral",
            focal_px=person.camera.focal_px,
            center_px=person.camera.center_px,
            box_px=_square_box(body_box_px(person.mesh.vertices[0].numpy(), person.camera)),
            pose=person.pose.astype(np.float32),
            # The store has room for ten, whatever the body has.
            betas=np.pad(person.betas, (0, 10 - len(person.betas))),
            transl=person.transl.astype(np.float32),
            detected_keypoints_px=None if true_px is None else detect_keypoints(rng, true_px, self.settings.image_size),
            true_keypoints_px=true_px,
            joints_m=None if joints is None else _with_ones(joints),
        )

    def _keypoints(self, mesh: BodyMesh, name: KeypointSet) -> Float64[ndarray, "points 3"] | None:
        if name not in self.body.keypoint_sets:
            return None
        return np.asarray(self.body.keypoints(mesh, name)[0].numpy(), np.float64)


def detect_keypoints(
    rng: np.random.Generator, true_px: Float32[ndarray, "points 3"], size_px: tuple[int, int]
) -> Float32[ndarray, "points 3"]:
    """What a detector would report: x, y, confidence; zeros for missed keypoints and for those outside of the image.

    The noise is Gaussian with `KEYPOINT_NOISE_PX` along each axis. Confidence falls with the error of a keypoint, as it
    does with real detectors, but says little about it.
    """
    noise = rng.normal(scale=KEYPOINT_NOISE_PX, size=(len(true_px), 2))
    confidence = 0.9 - 0.12 * np.hypot(*noise.T) / KEYPOINT_NOISE_PX + rng.normal(scale=0.08, size=len(true_px))
    inside = ((true_px[:, :2] >= 0) & (true_px[:, :2] < size_px)).all(axis=1)
    kept = inside & (rng.uniform(size=len(true_px)) >= KEYPOINT_DROPPED)
    detected = np.column_stack([true_px[:, :2] + noise, np.clip(confidence, 0.1, 1)])
    return np.where(kept[:, None], detected, 0).astype(np.float32)


def _with_ones(points: Float64[ndarray, "points coordinates"]) -> Float32[ndarray, "points more"]:
    """Points with a last column of ones."""
    return np.column_stack([points, np.ones(len(points))]).astype(np.float32)


def _square_box(box_px: Float64[ndarray, "4"]) -> Float32[ndarray, "3"]:
    low, high = box_px[:2], box_px[2:]
    return np.array([*(low + high) / 2, max(float((high - low).max()), 1.0) * BOX_MARGIN], np.float32)
