"""Makes the textures of a frames file with a progress bar, and draws them from four sides."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy import ndarray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scipy.spatial.transform import Rotation
from torch import Tensor

from bodies import BodyModel, PinholeCamera
from commands._data_sheet import write_png
from datamodules.store import FrameStore
from datamodules.textures import SubjectTexture, TextureMaker, TextureSettings, add_textures
from renderers import UvTexture, VertexColors, make_rasterizer, render_maps
from renderers.drawing import contact_sheet, panel

#: Height and width of one view of the body, and the part of the height that it fills.
VIEW_PX: Final = (360, 320)
FILLED: Final = 0.9
SUPERSAMPLING: Final = 2
#: How far the body is turned about its vertical axis for each view.
VIEWS: Final = (("front", 0.0), ("left side", -90.0), ("back", 180.0), ("right side", 90.0))
#: Distance of the camera in heights of the body: little perspective.
DISTANCE_HEIGHTS: Final = 6.0
BACKGROUND: Final = 0.13
#: Frames that were not used are named up to this many.
NAMED_FRAMES: Final = 10

Image = UInt8[ndarray, "height width 3"]


def make_and_draw(frames: Path, settings: TextureSettings, picture: Path, shown: int, dry_run: bool) -> None:
    """Makes the textures, stores them unless it is a dry run, draws the first `shown`, and prints what came of each.

    Raises:
        InputError: If the file cannot be used, or no frame shows anything of a subject.
    """
    store = FrameStore(frames)
    maker, results, drawn = TextureMaker(store, settings), list[SubjectTexture](), list[SubjectTexture]()

    def report(made: SubjectTexture) -> None:
        if made.rgba is not None and len(drawn) < shown:
            drawn.append(made)
        results.append(replace(made, rgba=None))

    _run(maker, report, dry_run)
    write_png(picture, draw_textures(maker.body, drawn))
    _print_summary(frames, results)


def draw_textures(body: BodyModel, textures: Sequence[SubjectTexture]) -> Image:
    """Each texture on the rest pose from four sides, with its coverage below it: white where it was well seen.

    Args:
        body: The body model.
        textures: At least one, each of the body's kind.
    """
    rows: list[Image] = []
    for made in textures:
        assert made.rgba is not None, "only textures that were made can be drawn"
        colors = made.rgba[..., :3].astype(np.float32) / 255
        coverage = np.repeat(made.rgba[..., 3:], 3, axis=-1).astype(np.float32) / 255
        names = [name for name, _ in VIEWS]
        rows.append(panel(_views(body, colors), [f"{made.subject}, {names[0]}", *names[1:]]))
        rows.append(panel(_views(body, coverage), [f"coverage, {made.seen:.0%} seen", *names[1:]]))
    return contact_sheet(rows, 1)


def _run(maker: TextureMaker, report: Callable[[SubjectTexture], object], dry_run: bool) -> None:
    subjects = range(len(maker.store.subjects))
    with _progress() as progress:
        task = progress.add_task("frames", total=sum(len(maker.rows(subject)) for subject in subjects))
        add_textures(maker, report, lambda: progress.advance(task), dry_run=dry_run)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _print_summary(frames: Path, results: Sequence[SubjectTexture]) -> None:
    table = Table("subject", "frames", "not used", "seen", title=f"textures of {frames.name}")
    for result in results:
        seen = f"{result.seen:.0%}" if result.seen else "nothing"
        table.add_row(result.subject, str(result.frames), str(result.num_skipped), seen)
    console = Console()
    console.print(table)
    named = [entry for result in results for entry in result.skipped]
    for entry in named[:NAMED_FRAMES]:
        console.print(f"not used: row {entry.row} ({entry.row_id}): {entry.problem}", soft_wrap=True)
    more = sum(result.num_skipped for result in results) - min(len(named), NAMED_FRAMES)
    if more:
        console.print(f"not used: {more} more", soft_wrap=True)


def _views(body: BodyModel, colors: Float32[ndarray, "*texels 3"]) -> list[Image]:
    """The rest body, coloured, from each of `VIEWS`."""
    height, width = (side * SUPERSAMPLING for side in VIEW_PX)
    template, faces = body.template.cpu(), body.faces.cpu()
    angles = np.array([[0, np.radians(angle), 0] for _, angle in VIEWS])
    turns = torch.from_numpy(Rotation.from_rotvec(angles).as_matrix()).float()
    low, high = template.amin(dim=0), template.amax(dim=0)
    extent = float((high - low).max())
    # From y up and facing +z to camera axes, the middle of the body straight ahead.
    turned = torch.einsum("kij,vj->kvi", turns, template - (low + high) / 2) * torch.tensor([1.0, -1.0, -1.0])
    turned = turned + torch.tensor([0.0, 0.0, DISTANCE_HEIGHTS * extent])
    size = torch.tensor([[width, height]], dtype=torch.float32).expand(len(VIEWS), 2)
    camera = PinholeCamera(torch.full_like(size, FILLED * DISTANCE_HEIGHTS * min(width, height)), size / 2, size)
    fragments = make_rasterizer("cpu")(turned, faces, camera, height, width)
    appearance = _appearance(body, torch.from_numpy(colors).expand(len(VIEWS), *colors.shape))
    maps = render_maps(fragments, turned, faces, appearance, torch.zeros_like(template))
    shown = maps[:, :3] + BACKGROUND * ~fragments.mask[:, None]
    images = (shown.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().byte().numpy()
    return [np.asarray(cv2.resize(image, VIEW_PX[::-1], interpolation=cv2.INTER_AREA)) for image in images]


def _appearance(body: BodyModel, colors: Float32[Tensor, "views *texels 3"]) -> UvTexture | VertexColors:
    if colors.ndim == 3:
        return VertexColors(colors)
    assert body.texture is not None, "a texture in UV space is made for a body with a UV layout"
    return UvTexture.from_layout(colors.permute(0, 3, 1, 2), body.texture)
