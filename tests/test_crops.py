"""Crops show what their camera says they show, however little of the JPEG was decoded for them."""

import cv2
import numpy as np
import pytest
import torch
from tiny_store import frame_row, jpeg

from bodies.camera import crop_to_square_box
from datamodules.crops import (
    ImageCamera,
    decode_jpeg,
    jpeg_size_px,
    reduction_for,
    source_pixels_per_crop_pixel,
    square_crop_affine,
    warp_affine,
    warp_crop,
)
from datamodules.store import FrameStore, FrameWriter, StoredImage

CROP_PX = 64
#: Image pixels per crop pixel: finer than the image, and on, between and beyond the factors that JPEG decodes to.
FACTORS = (0.4, 1.0, 1.7, 2.0, 3.3, 4.0, 7.0, 8.0, 13.0, 20.5)
#: Where the marks lie in the crop; away from each other and from the border.
MARKS_PX = np.array([[14.3, 13.1], [48.7, 15.9], [31.2, 33.4], [15.5, 50.0], [49.9, 47.6]])
CAMERA = ImageCamera(
    np.array([1400.0, 1380.0], np.float32), np.array([640.0, 571.0], np.float32), np.array([1310, 1203], np.float32)
)


def picture_of(points: np.ndarray, sigma_px: float) -> np.ndarray:
    """White marks on black where the full-image camera sees the points."""
    positions = CAMERA.batched().project(torch.tensor(points)[None])[0].numpy()
    width, height = (int(n) for n in CAMERA.size_px)
    # Position of a pixel's centre is its index plus one half.
    along_x, along_y = (
        np.exp(-(((np.arange(size) + 0.5 - at[:, None]) / sigma_px) ** 2) / 2).astype(np.float32)
        for size, at in ((width, positions[:, 0]), (height, positions[:, 1]))
    )
    grey = (along_y.T @ along_x * 230).round().clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def points_seen_at(full_px: np.ndarray) -> np.ndarray:
    depth = torch.linspace(2, 6, len(full_px), dtype=torch.float64)[None]
    camera = CAMERA.batched().to(torch.float64)
    return camera.unproject(torch.tensor(full_px)[None], depth)[0].numpy()


def marks_in(crop: np.ndarray, near_px: np.ndarray, radius: int = 11) -> np.ndarray:
    """Intensity-weighted mean positions about the given ones."""
    found = []
    for x, y in near_px:
        left, top = max(0, round(x) - radius), max(0, round(y) - radius)
        window = crop[top : round(y) + radius, left : round(x) + radius, 0].astype(np.float64)
        # JPEG's ripples around a mark are a few grey levels high.
        window[window < 12] = 0
        rows, columns = np.mgrid[: window.shape[0], : window.shape[1]]
        found.append([(columns * window).sum(), (rows * window).sum()] / window.sum() + [left + 0.5, top + 0.5])
    return np.array(found)


def store_with(tmp_path, picture: np.ndarray, origin_px=(0, 0)) -> FrameStore:
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    width, height = (int(n) for n in CAMERA.size_px)
    with FrameWriter(tmp_path / "frames.h5", "marks", "test", "none") as writer:
        image = writer.add_image(StoredImage("marks.jpg", encoded, (width, height), origin_px))
        writer.add_row(frame_row(0, image, focal_px=CAMERA.focal_px, center_px=CAMERA.center_px))
    return FrameStore(tmp_path / "frames.h5")


@pytest.mark.parametrize("factor", FACTORS)
def test_a_projected_point_lies_where_the_crop_shows_it(tmp_path, factor):
    side = factor * CROP_PX
    center = np.array([655.4, 601.7])
    full_px = (MARKS_PX - CROP_PX / 2) * factor + center
    points = points_seen_at(full_px)
    picture = picture_of(points, sigma_px=2.5 * factor)
    # All but a margin of the image that the crop does not reach is stored, from an odd corner on.
    corner = np.maximum(0, np.floor(center - 0.75 * side)).astype(int) // 2 * 2 + 1 if factor < 10 else (0, 0)
    store = store_with(tmp_path, picture[corner[1] :, corner[0] :], (int(corner[0]), int(corner[1])))
    crop = store.read_crop(0, center, side, CROP_PX)
    projected = crop.camera.batched().project(torch.tensor(points, dtype=torch.float32)[None])[0].numpy()
    # The camera's own arithmetic is in single precision.
    np.testing.assert_allclose(projected, MARKS_PX, atol=2e-3)
    # 0.1 px is what the store promises; JPEG noise and sampling account for some hundredths.
    assert np.abs(marks_in(crop.image, MARKS_PX) - projected).max() < 0.1


@pytest.mark.parametrize("factor", [0.7, 1.0, 2.6, 5.0])
@pytest.mark.parametrize("corner", ["top_left", "bottom_right"])
def test_a_crop_beyond_the_border_is_black_there_and_right_inside(tmp_path, factor, corner):
    side = factor * CROP_PX
    # The image's corner is shown a third of the way into the crop.
    shown = CROP_PX / 3 if corner == "top_left" else CROP_PX * 2 / 3
    center = (CROP_PX / 2 - shown) * factor + (0 if corner == "top_left" else CAMERA.size_px.astype(np.float64))
    mark = np.array([[40.2, 41.8]]) if corner == "top_left" else np.array([[22.2, 21.8]])
    full_px = (mark - CROP_PX / 2) * factor + center
    points = points_seen_at(full_px)
    picture = np.maximum(picture_of(points, 2.5 * factor), 40)
    crop = store_with(tmp_path, picture).read_crop(0, np.broadcast_to(center, 2), side, CROP_PX)
    projected = crop.camera.batched().project(torch.tensor(points, dtype=torch.float32)[None])[0].numpy()
    inside = crop.image.astype(np.float64) - 40
    assert np.abs(marks_in(inside.clip(0), mark) - projected).max() < 0.1
    edge = int(shown)
    outside = np.ones((CROP_PX, CROP_PX), bool)
    # Bilinear sampling mixes black into the pixels next to the border.
    if corner == "top_left":
        outside[edge - 1 :, edge - 1 :] = False
        assert (crop.image[edge + 2 :, edge + 2 :] > 30).all()
    else:
        outside[: edge + 2, : edge + 2] = False
        assert (crop.image[: edge - 1, : edge - 1] > 30).all()
    assert (crop.image[outside] == 0).all()


@pytest.mark.parametrize("angle_rad", [-2.0, 0.4, np.pi / 2])
@pytest.mark.parametrize("factor", [0.8, 1.5, 3.0])
def test_a_turned_crop_shows_points_where_the_affine_map_sends_them(factor, angle_rad):
    center = np.array([655.4, 601.7])
    affine = square_crop_affine(center, factor * CROP_PX, angle_rad, CROP_PX)
    full_px = (MARKS_PX - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T
    picture = picture_of(points_seen_at(full_px), 2.5 * factor)
    crop = warp_crop(picture, center, factor * CROP_PX, angle_rad, CROP_PX)
    assert np.abs(marks_in(crop, MARKS_PX) - MARKS_PX).max() < 0.1
    assert source_pixels_per_crop_pixel(affine) == pytest.approx(factor)


def test_angles_turn_x_towards_y():
    # A point to the right of the centre goes below it after a quarter turn.
    affine = square_crop_affine(np.array([100.0, 100.0]), 50.0, np.pi / 2, 50)
    np.testing.assert_allclose(affine @ [110, 100, 1], [25, 35], atol=1e-12)


def test_reduced_decoding_agrees_with_shrinking_the_whole(tmp_path):
    data = jpeg(3, width=333, height=217, quality=97)
    whole = decode_jpeg(data)
    affine = square_crop_affine(np.array([160.0, 110.0]), 64 * 3.0, 0.2, 64)
    assert reduction_for(affine) == 2
    reduced = warp_affine(decode_jpeg(data, 2), affine, 64, reduction=2)
    # Two ways of shrinking a smooth picture; a shift of half a pixel would show at twice this on its slopes.
    assert np.abs(warp_affine(whole, affine, 64).astype(int) - reduced).mean() < 1.0


@pytest.mark.parametrize(
    ("factor", "reduction"), [(0.3, 1), (1.999, 1), (2.0, 2), (3.99, 2), (4.0, 4), (7.9, 4), (8.0, 8), (90.0, 8)]
)
def test_no_more_is_decoded_than_the_crop_shows(factor, reduction):
    assert reduction_for(square_crop_affine(np.zeros(2), 96 * factor, 1.0, 96)) == reduction


def test_the_crop_camera_is_that_of_bodies_camera():
    center, side = np.array([311.3, 77.9]), 201.5
    ours = CAMERA.crop(center, side, 128).batched()
    theirs = crop_to_square_box(
        CAMERA.batched(), torch.tensor(center[None], dtype=torch.float32), torch.tensor([side]), 128
    )
    for mine, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("size", [(1, 1), (17, 300), (640, 480)])
@pytest.mark.parametrize("progressive", [0, 1])
def test_the_size_of_a_jpeg_is_read_from_its_header(size, progressive):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    assert jpeg_size_px(data) == size
    assert jpeg_size_px(data + bytes(100)) == size
    assert jpeg_size_px(with_orientation(data)) == size


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "does not begin"),
        (b"\x89PNG\r\n\x1a\n", "does not begin"),
        (jpeg()[:-2], "cut off"),
        (jpeg()[: len(jpeg()) // 2], "cut off"),
        (b"\xff\xd8\xff\xd9", "no frame header"),
        (b"\xff\xd8\xff" + bytes(40) + b"\xff\xd9", "no frame header"),
    ],
)
def test_what_is_no_whole_jpeg_is_refused(data, cause):
    with pytest.raises(ValueError, match=cause):
        jpeg_size_px(data)


def with_orientation(data: bytes, orientation: int = 6) -> bytes:
    """The JPEG with an EXIF tag that asks viewers to turn it."""
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + orientation.to_bytes(2, "little") + b"\x00\x00"
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + bytes(4)
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


def test_the_orientation_tag_does_not_turn_the_pixels():
    data = jpeg(1, width=60, height=40)
    turned = cv2.imdecode(np.frombuffer(with_orientation(data), np.uint8), cv2.IMREAD_COLOR)
    assert turned.shape[:2] == (60, 40), "the tag is understood by the decoder"
    for reduction in (1, 2, 4, 8):
        np.testing.assert_array_equal(decode_jpeg(with_orientation(data), reduction), decode_jpeg(data, reduction))


def test_bytes_without_an_image_decode_to_none():
    assert decode_jpeg(b"nothing") is None
    assert decode_jpeg(b"") is None
