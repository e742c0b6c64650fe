"""Textures of the persons in a frames file: colours of their images, projected back onto their bodies.

Wehrbein et al., arXiv 2403.11634, make the textures of H36M, 3DPW and RICH so: the colours of a reference sequence are
projected onto the visible vertices, and the median is taken. Here looks are weighted (`datamodules.texture_looks`), the
median is a streaming one (`datamodules.color_histograms`), so memory does not grow with the sequence, and what was
never seen is filled in from its surroundings (`datamodules.surface_diffusion`).

    maker = TextureMaker(FrameStore(path), TextureSettings())
    add_textures(maker, report=print)

The fourth channel of a texture is its coverage: 0 where the colour was never seen and is filled in, else
255 w / (1 + w) of the summed weight w of the looks, of which a frontal one is worth 1: one look gives 128, ten 232.
Beside the charts of a UV layout, colour and coverage continue those of the nearest texel: sampling sees no seam.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple, assert_never

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from bodies import BodyModel, InputError, load_body_model
from datamodules.color_histograms import ColorHistograms
from datamodules.store import FrameStore, SkippedRow, StoredFrame, StoredPiece, amend_frames
from datamodules.store_layout import GENDERS, Gender
from datamodules.surface_diffusion import diffuse
from datamodules.texture_looks import Look, TexturePoints, look, texture_points
from datamodules.texture_scenes import SceneMaker
from renderers import make_rasterizer

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda"]
#: Points whose looks are worth less than this together count as never seen. Measured on made sequences: with bodies
#: that are 20 mm off, such points come out better (mean error 0.065 against 0.075) filled in than as seen.
MIN_WEIGHT: Final = 0.15
#: A body whose pixels differ less than this (standard deviation of each channel, of 255) is not in the picture: the
#: image is blank, or was filled with grey by a decoder.
BLANK_DEVIATION: Final = 1.0
#: How many of the frames of a subject that could not be used are named.
NAMED_ROWS: Final = 10
#: Images that are read ahead of the one at work.
_READ_AHEAD: Final = 4

Ignored = Callable[[], object]


@dataclass(frozen=True)
class TextureSettings:
    """How textures are made.

    Raises:
        InputError: If a number makes no sense.
    """

    sequences: tuple[str, ...] = ()
    """Reference sequences; all by default. Subjects that are in none of them keep the texture they have."""
    every: int = 1
    """Take every so many-th frame of a subject."""
    max_frames: int | None = None
    """Take so many of them at most, evenly spaced."""
    texture_px: int = 256
    """Side of the texture of a body with a UV layout; others get a colour per vertex."""
    body: str | None = None
    """Body model; by default what the file says."""
    device: DeviceName = "auto"
    """Where to work."""

    def __post_init__(self) -> None:
        if self.every < 1 or (self.max_frames is not None and self.max_frames < 1):
            raise InputError(f"every {self.every}, max_frames {self.max_frames}: at least one frame is needed")
        if not 16 <= self.texture_px <= 4096:
            raise InputError(f"texture size {self.texture_px}: it is 16 to 4096 pixels")


@dataclass(frozen=True)
class SubjectTexture:
    """What became of one subject."""

    subject: str
    """Name."""
    rgba: UInt8[ndarray, "*texels 4"] | None
    """Colour and coverage, (H, W, 4) or (V, 4); None if no frame shows the subject."""
    frames: int
    """How many frames show something of the subject."""
    seen: float
    """Part of the points on the body that were seen, 0..1."""
    num_skipped: int
    """How many frames could not be used."""
    skipped: tuple[SkippedRow, ...]
    """The first `NAMED_ROWS` of those, and why."""


class _ReadRow(NamedTuple):
    """A row whose image is in memory, or what is wrong with it."""

    frame: StoredFrame
    image: StoredPiece | InputError


class TextureMaker:
    """Makes the textures of a frames file, subject by subject.

    Args:
        store: The file.
        settings: How.

    Raises:
        InputError: If a sequence is not in the file, the body model cannot be loaded, or there is no such device.
    """

    def __init__(self, store: FrameStore, settings: TextureSettings) -> None:
        self.store, self.settings = store, settings
        self._device = _device(settings.device)

        @cache
        def model(gender: Gender) -> BodyModel:
            # A file of any name stands for the neutral body.
            name = settings.body or store.body_model
            return load_body_model(name, None if gender == "neutral" else gender).to(self._device)

        # All genders have one topology; that of the first row is needed anyway, the neutral one may not be there.
        self.body = model(GENDERS[int(store.column("gender")[0])])
        self.points: TexturePoints = texture_points(self.body, settings.texture_px, self._device)
        self._scenes = SceneMaker(store, model, self._device)
        self._rasterizer = make_rasterizer("auto")
        self._usable = _rows_of(store, settings.sequences)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each texture."""
        return (*self.points.canvas.shape, 4)

    def rows(self, subject: int) -> Int64[ndarray, " rows"]:
        """The rows that a subject's texture is made of."""
        rows = np.flatnonzero(self._usable & (self.store.column("subject") == subject))[:: self.settings.every]
        if self.settings.max_frames is None or len(rows) <= self.settings.max_frames:
            return rows
        return rows[np.linspace(0, len(rows) - 1, self.settings.max_frames).round().astype(np.int64)]

    def texture(self, subject: int, advance: Ignored = lambda: None) -> SubjectTexture:
        """The texture of one subject.

        Args:
            subject: Index into the names of the file's subjects.
            advance: Called after each frame.
        """
        histograms = ColorHistograms(len(self.points), self._device)
        frames = num_skipped = 0
        skipped: list[SkippedRow] = []
        for row in self._read_ahead(self.rows(subject)):
            seen = self._look(row)
            if isinstance(seen, str):
                num_skipped += 1
                if num_skipped <= NAMED_ROWS:
                    skipped.append(SkippedRow(row.frame.row, row.frame.row_id, seen))
            else:
                histograms.add(*seen)
                frames += 1
            advance()
        name = self.store.subjects[subject]
        weight = histograms.total_weight.cpu().numpy()
        share = float((weight >= MIN_WEIGHT).mean())
        rgba = self._painted(histograms.median().cpu().numpy(), weight) if share > 0 else None
        return SubjectTexture(name, rgba, frames, share, num_skipped, tuple(skipped))

    def _look(self, row: _ReadRow) -> Look | str:
        """What a row's image shows, or why it is not used."""
        if isinstance(row.image, InputError):
            return str(row.image)
        scene = self._scenes.scene(row.frame, row.image)
        if scene is None:
            return "the body is not in its image"
        seen = look(self.points, self.body.faces, scene, self._rasterizer)
        if len(seen.points) < 2:
            return "nothing of the body is seen well"
        if bool((seen.rgb.float().std(dim=0) < BLANK_DEVIATION).all()):
            return "its image is blank where the body is"
        return seen

    def _read_ahead(self, rows: Int64[ndarray, " rows"]) -> Iterator[_ReadRow]:
        """Rows and their images; decoding goes on in other threads, a few images ahead."""
        waiting: deque[Future[_ReadRow]] = deque()
        with ThreadPoolExecutor(max_workers=2) as readers:
            for row in rows:
                waiting.append(readers.submit(self._read, int(row)))
                if len(waiting) > _READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read(self, row: int) -> _ReadRow:
        frame = self.store.read(row)
        try:
            return _ReadRow(frame, self.store.read_image(row))
        except InputError as error:
            return _ReadRow(frame, error)

    def _painted(
        self, rgb: UInt8[ndarray, "points 3"], weight: Float32[ndarray, " points"]
    ) -> UInt8[ndarray, "*texels 4"]:
        seen = weight >= MIN_WEIGHT
        filled = np.where(seen[:, None], rgb, _continued(self.body, self.points, rgb, seen))
        coverage = np.where(seen, 255 * weight / (1 + weight), 0)
        rgba = np.concatenate([filled, coverage[:, None]], axis=1)
        return self.points.canvas.paint(np.rint(rgba).clip(0, 255).astype(np.uint8))


def add_textures(
    maker: TextureMaker,
    report: Callable[[SubjectTexture], object],
    advance: Ignored = lambda: None,
    *,
    dry_run: bool = False,
) -> None:
    """Makes the textures of all subjects and stores them in the file, which changes as a whole or not at all.

    Subjects without any usable frame keep the texture that they have, if it is of the shape of the new ones.

    Args:
        maker: Makes the textures of one file.
        report: Called with each subject's result as soon as it is there.
        advance: Called after each frame.
        dry_run: Make them, but leave the file as it is.

    Raises:
        InputError: If the file cannot be amended, or no subject has a frame that shows it.
    """
    textures = _stored(maker, report, advance)
    if dry_run:
        deque(textures, maxlen=0)
    else:
        amend_frames(maker.store.path, textures=textures)


def _stored(
    maker: TextureMaker, report: Callable[[SubjectTexture], object], advance: Ignored
) -> Iterator[tuple[str, UInt8[ndarray, "..."]]]:
    """What the file is to hold: new textures, and the old ones of subjects for which there is no new one."""
    made, store = 0, maker.store
    for number in range(len(store.subjects)):
        texture = maker.texture(number, advance)
        report(texture)
        old = store.read_texture(number)
        if texture.rgba is not None:
            made += 1
            yield texture.subject, texture.rgba
        elif old is not None and old.rgba.shape == maker.shape:
            yield texture.subject, old.rgba
        elif old is not None:
            logger.warning("%s: the old texture of %s has another shape and is dropped", store.path, texture.subject)
    if not made:
        raise InputError(f"{store.path}: no frame shows anything of any subject")


def _continued(
    body: BodyModel, points: TexturePoints, rgb: UInt8[ndarray, "points 3"], seen: Bool[ndarray, " points"]
) -> Float32[ndarray, "points 3"]:
    """The colours seen, continued over the mesh, at all points."""
    corners, weights = points.corners.cpu().numpy()[seen], points.weights.cpu().numpy()[seen].astype(np.float64)
    count = body.num_vertices
    total = np.bincount(corners.ravel(), weights.ravel(), count)
    sums = [np.bincount(corners.ravel(), (weights * channel[:, None]).ravel(), count) for channel in rgb[seen].T]
    known = total > 0
    values = (np.stack(sums, axis=1) / np.where(known, total, 1)[:, None]).astype(np.float32)
    vertices, faces = body.template.cpu().numpy(), body.faces.cpu().numpy()
    at_vertices = torch.from_numpy(diffuse(vertices, faces, values, known)).to(points.corners.device)
    at_points: Tensor = points.interpolate(at_vertices)
    return np.asarray(at_points.cpu().numpy())


def _rows_of(store: FrameStore, sequences: tuple[str, ...]) -> Bool[ndarray, " rows"]:
    for name in sequences:
        if name not in store.sequences:
            raise InputError(f"{store.path}: there is no sequence {name!r}")
    if not sequences:
        return np.ones(len(store), bool)
    return np.isin(store.column("sequence"), [store.sequences.index(name) for name in sequences])


def _device(name: DeviceName) -> torch.device:
    match name:
        case "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        case "cpu":
            return torch.device("cpu")
        case "cuda":
            if not torch.cuda.is_available():
                raise InputError("device cuda: torch sees no CUDA device here")
            return torch.device("cuda")
        case _:
            assert_never(name)
