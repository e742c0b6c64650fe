"""Small store files made by code: random but allowed values, two rows to an image, two subjects, three sequences."""

from pathlib import Path

import cv2
import numpy as np

from datamodules.store import EstimateWriter, FrameRow, FrameStore, FrameWriter, StoredImage, SurfacePoints

WIDTH, HEIGHT = 64, 48
TEXTURE_SHAPE = (4, 6, 4)


def jpeg(seed: int = 0, width: int = WIDTH, height: int = HEIGHT, quality: int = 90) -> bytes:
    """A smooth random picture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def surface_points(seed: int, count: int) -> SurfacePoints:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, (count, 3))
    return SurfacePoints(
        rng.uniform(0, WIDTH, (count, 2)).astype(np.float32),
        rng.integers(0, 99, count).astype(np.int32),
        (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
    )


def frame_row(number: int, image: int = 0, **changes: object) -> FrameRow:
    """Row `number` of the tiny set; every third one lacks keypoints, joints and surface points."""
    rng = np.random.default_rng(100 + number)

    def keypoints() -> np.ndarray:
        position_px, confidence = rng.uniform(-9, WIDTH, (25, 2)), rng.uniform(0, 1, (25, 1))
        return np.concatenate([position_px, confidence], axis=1).astype(np.float32)

    lacks = number % 3 == 2
    values = {
        "row_id": f"tiny/s{number // 2}/{number:05d}/0",
        "image": image,
        "subject": f"subject {number % 2}",
        "sequence": f"sequence/ü{number // 2}",
        "frame": 7 * number,
        "gender": ("neutral", "male", "female")[number % 3],
        "focal_px": rng.uniform(50, 90, 2).astype(np.float32),
        "center_px": rng.uniform(20, 40, 2).astype(np.float32),
        "box_px": np.array([WIDTH / 2, HEIGHT / 2, 40], np.float32),
        "pose": rng.normal(scale=0.5, size=72).astype(np.float32),
        "betas": rng.normal(size=10).astype(np.float32),
        "transl": np.array([*rng.normal(size=2), rng.uniform(2, 9)], np.float32),
        "detected_keypoints_px": None if lacks else keypoints(),
        "true_keypoints_px": None if lacks else keypoints(),
        "joints_m": None if lacks else rng.uniform(0, 1, (17, 4)).astype(np.float32),
        "surface": surface_points(number, 0 if lacks else 5 + number),
    }
    return FrameRow(**{**values, **changes})


def stored_image(number: int) -> StoredImage:
    """Image `number`: a piece whose corner lies in the middle of nowhere."""
    return StoredImage(f"images/{number:04d}.jpg", jpeg(number), (2 * WIDTH, 2 * HEIGHT), (number % 9, 3))


def texture(seed: int, shape: tuple[int, ...] = TEXTURE_SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def fill(writer: FrameWriter, rows: int, *, textures: bool = True) -> None:
    """Adds the rows that are not there yet, and then the textures."""
    for number in range(rows):
        row = frame_row(number)
        if row.row_id in writer:
            continue
        image = writer.add_image(stored_image(number // 2))
        writer.add_row(frame_row(number, image))
    for subject in (1, 0) if textures else ():
        if not writer.has_texture(f"subject {subject}"):
            writer.add_texture(f"subject {subject}", texture(subject))


def write_frames(path: Path, rows: int = 6) -> FrameStore:
    with FrameWriter(path, dataset="tiny", split="train", body_model="standin-tiny") as writer:
        fill(writer, rows)
    return FrameStore(path)


def estimate(row: int, samples: int = 1) -> dict[str, np.ndarray | float]:
    rng = np.random.default_rng(200 + row)
    depth = rng.uniform(1, 9, (samples, 1))
    return {
        "pose": rng.normal(scale=0.5, size=(samples, 72)).astype(np.float32),
        "betas": rng.normal(size=(samples, 10)).astype(np.float32),
        "transl": np.concatenate([rng.normal(size=(samples, 2)), depth], axis=1).astype(np.float32),
        "focal_px": float(np.float32(rng.uniform(50, 90))),
    }


def write_estimates(path: Path, frames: FrameStore, rows: list[int], samples: int = 1) -> Path:
    with EstimateWriter(path, frames, "pare", samples) as writer:
        for row in rows:
            writer.add(row, **estimate(row, samples))
    return path
