"""`snugfit data texture`: makes the textures of a frames file, stores them, and draws them."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from bodies.errors import InputError


def texture(
    frames: Path,
    *,
    picture: Path | None = None,
    sequences: list[str] | None = None,
    every: int = 1,
    max_frames: int | None = None,
    texture_px: int = 256,
    body: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    shown: int = 6,
    dry_run: bool = False,
) -> None:
    """Makes each subject's texture from the images of a frames file and stores it there, in place of the old one.

    Colours are projected onto the true bodies, the weighted median is taken, and what was never seen is filled in
    from its surroundings; the fourth channel says how well each place was seen. A picture shows the result.

    Args:
        frames: The frames file. It is replaced as a whole at the end; estimates files keep fitting.
        picture: The .png to draw textures and coverage in, from four sides; by default beside the file.
        sequences: Reference sequences; all by default.
        every: Take every so many-th frame of a subject.
        max_frames: Take so many frames of a subject at most, evenly spaced.
        texture_px: Side of the texture of a body with UV coordinates; other bodies get a colour per vertex.
        body: Body model: standin, standin-tiny, or a path; by default what the file says.
        device: Where to work: auto, cpu or cuda.
        shown: How many subjects to draw.
        dry_run: Make and draw the textures, but leave the file as it is.

    Raises:
        InputError: If an option makes no sense, the file cannot be used, or no frame shows anything of a subject.
    """
    picture = picture or frames.with_name(f"{frames.stem}-textures.png")
    if picture.suffix.lower() != ".png":
        raise InputError(f"{picture}: the picture is written as .png")
    if shown < 1:
        raise InputError(f"shown {shown}: at least one subject is drawn")
    from commands._texture_pictures import make_and_draw  # brings torch, for which help and mistakes need not wait
    from datamodules.textures import TextureSettings

    settings = TextureSettings(tuple(sequences or ()), every, max_frames, texture_px, body, device)
    make_and_draw(frames, settings, picture, shown, dry_run)
    wrote = f"wrote {picture}" if dry_run else f"wrote the textures into {frames} and {picture}"
    Console().print(wrote, soft_wrap=True)
