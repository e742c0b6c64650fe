"""Makes, converts and shows data sets."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from bodies.errors import InputError
from commands._data_convert import convert
from commands._data_import import import_
from commands._data_keypoints import keypoints
from commands._data_texture import texture
from datamodules.store_file import file_header

# Each command imports what brings torch when there is something to do: to find an output complete takes no second.
__all__ = ["convert", "import_", "info", "keypoints", "show", "synthesize", "texture"]


def synthesize(
    *,
    out: Path,
    frames: int = 1000,
    subjects: int = 50,
    split: Literal["train", "validation", "test"] = "train",
    seed: int = 0,
    body: str = "standin",
    image_size: tuple[int, int] = (320, 320),
    amass: Path | None = None,
    textures: Path | None = None,
    backgrounds: Path | None = None,
    texture_px: int = 256,
    surface_points: int = 0,
    workers: int | None = None,
) -> None:
    """Makes a SURREAL-like set: dressed bodies of known pose and shape in made or photographed surroundings.

    The file depends on the options, not on the number of processes. Run again after an interruption, it goes on where
    it stopped. Splits share no person and no posture that is drawn; give each its own folders of files.

    Args:
        out: The frames file to write.
        frames: How many images.
        subjects: How many persons, each with a shape, an appearance and a texture of its own.
        split: Which split.
        seed: Of all that is drawn.
        body: Body model: standin, standin-tiny, or the path of an SMPL file.
        image_size: Width and height in pixels.
        amass: File or folder of AMASS .npz recordings to take postures from; by default they are drawn by rules.
        textures: Folder of texture images in the body's UV layout; by default appearances are drawn.
        backgrounds: Folder of photos without people; by default scenes are made.
        texture_px: Side of the stored textures of a body with UV coordinates.
        surface_points: How many points of each person to add at most as DensePose would report them.
        workers: Processes to use; by default one per core.
    """
    from datamodules.synthetic import synthesize as make_synthetic_set
    from datamodules.synthetic_frames import SyntheticSettings

    settings = SyntheticSettings(
        frames, subjects, split, seed, body, image_size, amass, textures, backgrounds, texture_px, surface_points
    )
    store = make_synthetic_set(out, settings, workers)
    Console().print(f"wrote {out}: {len(store)} frames of {len(store.subjects)} subjects", soft_wrap=True)


def show(file: Path, *, out: Path, count: int = 12, columns: int = 3, body: str | None = None) -> None:
    """Draws frames of a file side by side with the same frames under the true body.

    Args:
        file: A frames file.
        out: The .png to write.
        count: How many frames, evenly spaced over the file.
        columns: How many beside each other.
        body: Body model to draw: standin, standin-tiny, or a path; by default what the file says.

    Raises:
        InputError: If a number or the suffix makes no sense, or the file or its body model cannot be read.
    """
    if count < 1 or columns < 1:
        raise InputError(f"count {count}, columns {columns}: at least one frame in at least one column")
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: the picture is written as .png")
    from commands._data_sheet import draw_sheet, write_png
    from datamodules.store import FrameStore

    write_png(out, draw_sheet(FrameStore(file), count, columns, body))
    Console().print(f"wrote {out}", soft_wrap=True)


def info(
    file: Path,
    *,
    estimates: list[Path] | None = None,
    frames: Path | None = None,
    body: str | None = None,
    measured: int = 2000,
    skip_bad_rows: bool = False,
) -> None:
    """Prints what is in a frames file or an estimates file, and how far estimates are from the true bodies.

    Errors are in mm: of joints (MPJPE), of joints after the best similarity (PA-MPJPE) and of vertices (PVE). Of a
    regressor with several samples, those of the first, its mode, and of the best one of each row.

    Args:
        file: A frames file, or an estimates file with its frames file beside it.
        estimates: Estimates files of the frames to compare with the true bodies.
        frames: The frames file of an estimates file that is elsewhere.
        body: Body models: standin, standin-tiny, or a path; by default what the frames file says. Bodies with a gender
            take the model of that gender beside it.
        measured: How many rows of each estimates file to compare at most, evenly spaced.
        skip_bad_rows: Leave out rows that cannot be used, and say how many there are; reads the whole file.

    Raises:
        InputError: If a file cannot be used, or the estimates are not for the frames.
    """
    if measured < 1:
        raise InputError(f"measured {measured}: at least one row is compared")
    console, paths = Console(), list(estimates or [])
    kind, header = file_header(file)
    if kind == "estimates":
        paths.insert(0, file)
        beside = file.with_name(str(header.get("frames", "")))
        if frames is None and not beside.is_file():
            raise InputError(f"{file}: its frames file {beside.name} is not beside it; give --frames")
    elif frames is not None:
        raise InputError(f"{file}: --frames is for estimates files, this is a frames file itself")
    from commands._data_info import estimates_table, info_table
    from datamodules.store import EstimateStore, FrameStore

    store = FrameStore(file if kind == "frames" else frames or beside, skip_bad_rows)
    stores = [EstimateStore(path, store, skip_bad_rows) for path in paths]
    if kind == "frames":
        console.print(info_table(store))
    for one in stores:
        console.print(estimates_table(one, store))
    if stores:
        from commands._data_errors import print_errors

        print_errors(console, store, stores, body, measured)
