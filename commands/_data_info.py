"""The table of `snugfit data info`."""

from collections import Counter
from typing import Final

import numpy as np
from numpy import ndarray
from rich.table import Table

from datamodules.store import EstimateStore, FrameStore
from datamodules.store_layout import GENDERS

#: What is said of an optional column in which no row has anything.
_NONE: Final = "none"


def info_table(store: FrameStore) -> Table:
    """What is in a frames file, a fact a row."""
    table = Table("", "", title=f"{store.path.name}: {store.dataset}, {store.split}", show_header=False)
    optional = {**_points(store), **_textures(store)}
    missing = ", ".join(name for name, text in optional.items() if text == _NONE)
    for name, text in {**_counts(store), **_cameras(store), **optional, "missing": missing or "nothing"}.items():
        table.add_row(name, text)
    return table


def estimates_table(store: EstimateStore, frames: FrameStore) -> Table:
    """What is in an estimates file, a fact a row."""
    valid = store.valid[frames.rows]
    table = Table("", "", title=f"{store.path.name}: estimates of {store.regressor}", show_header=False)
    table.add_row("frames", f"{frames.path.name} ({frames.dataset}, {frames.split})")
    table.add_row(
        "rows",
        f"{int(valid.sum())} of {len(frames)}" + (f", {len(store.skipped)} bad rows left out" if store.skipped else ""),
    )
    table.add_row("missing rows", str(int((~valid).sum())))
    table.add_row("samples", str(store.samples))
    if valid.any():
        kept = frames.rows[valid]
        ratio = store.column("focal_px")[kept] / frames.column("focal_px")[valid].mean(axis=1)
        table.add_row("focal length", f"{_range(store.column('focal_px')[kept])} px")
        table.add_row("  / the frames'", _range(ratio, 2))
    table.add_row("file size", f"{store.path.stat().st_size / 1e6:.1f} MB")
    return table


def _counts(store: FrameStore) -> dict[str, str]:
    bodiless = int((~store.has_body).sum())
    genders = Counter(GENDERS[code] for code in store.column("gender").tolist())
    return {
        "rows": f"{len(store)}" + (f", {len(store.skipped)} bad rows left out" if store.skipped else ""),
        **({"rows without a true body": f"{bodiless}, with measured joints alone"} if bodiless else {}),
        "images": str(len(np.unique(store.column("image")))),
        "subjects": str(len(np.unique(store.column("subject")))),
        "sequences": str(len(np.unique(store.column("sequence")))),
        "body model": store.body_model,
        "genders": ", ".join(f"{gender} {count}" for gender, count in genders.most_common()),
        "file size": f"{store.path.stat().st_size / 1e6:.1f} MB",
    }


def _cameras(store: FrameStore) -> dict[str, str]:
    cameras = store.cameras()
    sizes = Counter(tuple(size) for size in cameras.size_px.int().tolist())
    shown = [f"{width} x {height} ({count})" for (width, height), count in sizes.most_common(4)]
    more = [f"and {len(sizes) - 4} more"] if len(sizes) > 4 else []
    focal_px = cameras.focal_px.mean(dim=1).numpy()
    return {
        "image sizes": ", ".join(shown + more),
        "focal length": f"{_range(focal_px)} px",
        "  / diagonal": _range(focal_px / np.hypot(*cameras.size_px.numpy().T), 2),
        "side of box": f"{_range(store.column('box_px')[:, 2])} px",
        "distance": f"{_range(store.column('transl')[:, 2], 1)} m",
    }


def _points(store: FrameStore) -> dict[str, str]:
    detected, true = (store.column(f"{kind}_keypoints_px") for kind in ("detected", "true"))
    both = (detected[..., 2] > 0) & (true[..., 2] > 0)
    error_px = np.linalg.norm(detected[both][:, :2] - true[both][:, :2], axis=1)
    error = f", median error {np.median(error_px):.1f} px" if len(error_px) else ""
    return {
        "true keypoints": _filled(true[..., 2]),
        "detected keypoints": _filled(detected[..., 2]) + error,
        "measured joints": _filled(store.column("joints_m")[..., 3]),
        "surface points": _surface(store.column("surface_count")),
    }


def _surface(counts: ndarray) -> str:
    rows = counts > 0
    return f"in {int(rows.sum())} rows, {counts[rows].mean():.0f} on average" if rows.any() else _NONE


def _textures(store: FrameStore) -> dict[str, str]:
    textures = [texture for subject in range(len(store.subjects)) if (texture := store.read_texture(subject))]
    if not textures:
        return {"textures": _NONE}
    shape = " x ".join(map(str, textures[0].rgba.shape[:-1]))
    coverage = np.mean([np.mean(texture.rgba[..., 3] > 0) for texture in textures])
    return {"textures": f"{len(textures)}, {textures[0].kind} ({shape}), {coverage:.0%} of the values seen"}


def _filled(confidence: ndarray) -> str:
    """In how many rows there are any, and how many on average."""
    rows = (confidence > 0).any(axis=1)
    if not rows.any():
        return _NONE
    mean = (confidence[rows] > 0).sum(axis=1).mean()
    return f"in {int(rows.sum())} rows, {mean:.1f} of {confidence.shape[1]} on average"


def _range(values: ndarray, digits: int = 0) -> str:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return f"median {middle:.{digits}f} (5 to 95 %: {low:.{digits}f} to {high:.{digits}f})"
