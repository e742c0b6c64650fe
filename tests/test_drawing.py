"""Pictures: what is drawn is where it should be, nothing else changes, and nothing a user can give crashes it."""

import numpy as np
import pytest
import torch
import trimesh

from bodies import PinholeCamera
from bodies.joints import OPENPOSE25_BONES
from renderers import drawing
from renderers.drawing import INK, NO_FLOW, PAPER

HEIGHT, WIDTH = 90, 120
CENTER = (0.1, -0.05, 2.0)
RADIUS = 0.3


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def camera_of(focal=130.0):
    rows = ((focal, focal), (60.0, 45.0), (WIDTH, HEIGHT))
    return PinholeCamera(*(torch.tensor([row], dtype=torch.float32) for row in rows))


def ball(place=CENTER):
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS)
    vertices = torch.tensor(mesh.vertices + np.array(place), dtype=torch.float32)
    return vertices, torch.tensor(np.asarray(mesh.faces), dtype=torch.int64)


def distance_to_ball():
    """Of each pixel centre's ray to the ball's centre, in its radii."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(columns - 60) / 130, (rows - 45) / 130, np.ones_like(rows)], axis=-1)
    along = rays @ np.array(CENTER) / (rays**2).sum(axis=-1)
    return np.linalg.norm(rays * along[..., None] - np.array(CENTER), axis=-1) / RADIUS


def test_mesh_covers_what_the_camera_sees_of_it(photo):
    before = photo.copy()
    drawn = drawing.draw_mesh(photo, *ball(), camera_of(), alpha=1.0)
    changed = (drawn != photo).any(axis=-1)
    distance = distance_to_ball()
    pixel = 2.0 / 130 / RADIUS  # one pixel in radii
    assert not changed[distance > 1 + pixel].any()
    assert changed[distance < 1 - pixel].mean() > 0.99
    assert np.array_equal(photo, before)


def test_mesh_hides_the_photo_as_alpha_says(photo):
    inside = distance_to_ball() < 0.9
    other = 255 - photo
    opaque = drawing.draw_mesh(photo, *ball(), camera_of(), alpha=1.0)
    assert np.array_equal(opaque[inside], drawing.draw_mesh(other, *ball(), camera_of(), alpha=1.0)[inside])
    assert np.array_equal(drawing.draw_mesh(photo, *ball(), camera_of(), alpha=0.0), photo)
    half = drawing.draw_mesh(photo, *ball(), camera_of(), alpha=0.5).astype(float)
    assert np.abs(half - (opaque.astype(float) + photo) / 2)[inside].max() <= 1  # rounding


def test_edges_are_smooth():
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    layer = drawing.draw_mesh(black, *ball(), camera_of(), color=(255, 255, 255), alpha=1.0)[..., 0] > 0
    white = np.full_like(black, 255)
    over_white = drawing.draw_mesh(white, *ball(), camera_of(), color=(0, 0, 0), alpha=1.0)[..., 0]
    # A black ball on white: besides black and white there are pixels that the outline crosses.
    assert set(np.unique(over_white).tolist()) > {0, 255}
    assert layer.sum() > 500


def test_surface_is_shaded_and_coloured():
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    drawn = drawing.draw_mesh(grey, *ball(), camera_of(), color=(220, 110, 55), alpha=1.0).astype(float)
    inside = distance_to_ball() < 0.95
    assert np.allclose(drawn[inside, 0], 2 * drawn[inside, 1], atol=2)
    assert np.allclose(drawn[inside, 0], 4 * drawn[inside, 2], atol=4)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    upper_left = inside & (rows < 36) & (columns < 62)
    lower_right = inside & (rows > 48) & (columns > 72)
    assert drawn[upper_left].mean() > 1.3 * drawn[lower_right].mean()


@pytest.mark.parametrize("place", [(0.0, 0.0, -2.0), (9.0, 0.0, 2.0), (0.0, -9.0, 2.0), (float("nan"), 0.0, 2.0)])
def test_mesh_out_of_sight_leaves_the_photo(photo, place):
    assert np.array_equal(drawing.draw_mesh(photo, *ball(place), camera_of()), photo)


def test_mesh_around_the_camera_is_drawn(photo):
    drawn = drawing.draw_mesh(photo, *ball((0.0, 0.0, 0.0)), camera_of(), alpha=1.0)
    assert (drawn != photo).any(axis=-1).mean() > 0.98


def test_mesh_across_the_border_is_drawn_in_place(photo):
    # Moving the principal point by whole pixels moves the picture, also where it is cut off.
    camera = camera_of()
    moved = PinholeCamera(camera.focal_px, camera.center_px + torch.tensor([50.0, -40.0]), camera.size_px)
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    whole = drawing.draw_mesh(grey, *ball(), camera, alpha=1.0)
    part = drawing.draw_mesh(grey, *ball(), moved, alpha=1.0)
    assert (part != 128).any()
    assert np.abs(part[: HEIGHT - 40, 50:].astype(int) - whole[40:, : WIDTH - 50]).max() <= 1


def test_huge_meshes_are_drawn_without_supersampling(photo, monkeypatch):
    monkeypatch.setattr(drawing, "SUPERSAMPLED_PX", 100)
    drawn = drawing.draw_mesh(photo, *ball(), camera_of(), color=(0, 0, 0), alpha=1.0)
    inside = distance_to_ball() < 0.9
    assert (drawn[inside] == 0).all()


# Keypoints ---------------------------------------------------------------------------------------------------------


def test_keypoint_is_drawn_at_its_pixel():
    # Pixel (row 40, column 70) has its centre at (70.5, 40.5), so the disc is symmetric about it.
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn = drawing.draw_keypoints(canvas, np.array([[70.5, 40.5]]))
    assert tuple(drawn[40, 70]) == INK
    rows, columns = np.nonzero(drawn.any(axis=-1))
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (80, 140)
    assert not canvas.any()


def test_uncertain_and_missing_keypoints_are_left_out():
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    points = np.array([[20.0, 20], [60, 20], [100, 20], [100, 70], [np.nan, 3], [60, np.inf]])
    confidence = np.array([0.9, 0.0, 0.04, np.nan, 1.0, 1.0])
    bones = [(a, b) for a in range(6) for b in range(a)]
    drawn = drawing.draw_keypoints(canvas, points, confidence, bones)
    assert tuple(drawn[20, 20]) == INK
    drawn[15:26, 15:26] = 0
    assert not drawn.any()


def test_bones_join_keypoints():
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    points = np.array([[20.5, 45.5], [100.5, 45.5]])
    drawn = drawing.draw_keypoints(canvas, points, None, [(0, 1)], color=(0, 255, 0))
    assert (drawn[45, 25:95, 1] > 200).all()
    assert drawing.draw_keypoints(canvas, points, None, [(0, 1)])[45, 25:95].any(axis=-1).all()


def test_keypoints_far_outside_do_no_harm(photo):
    points = np.full((25, 2), 1e30)
    points[::2] = -1e12
    points[0] = (60, 45)
    drawn = drawing.draw_keypoints(photo, points, np.ones(25), OPENPOSE25_BONES)
    assert drawn.shape == photo.shape


# Displacements -----------------------------------------------------------------------------------------------------


def flow(*vectors):
    return drawing.flow_to_color(np.array([vectors], np.float32), 10.0)[0].tolist()


def test_colour_is_direction_and_length():
    assert flow((0, 0), (10, 0), (-10, 0)) == [[255, 255, 255], [255, 0, 0], [0, 255, 255]]
    down, up = flow((0, 10), (0, -10))
    assert down[1] == up[2] == 255
    assert np.abs(np.add(down, up) - 255).max() <= 1  # opposite directions have complementary colours
    (half,) = flow((5, 0))
    assert half == pytest.approx([255, 128, 128], abs=1)
    # Beyond the scale the hue stays and the colour darkens.
    (long,) = flow((30, 0))
    assert long[1:] == [0, 0]
    assert 150 < long[0] < 200


def test_only_the_mask_is_coloured():
    displacement = np.full((4, 5, 2), 3.0, np.float32)
    displacement[0, 0] = np.nan
    mask = np.ones((4, 5), bool)
    mask[2, 3] = False
    rgb = drawing.flow_to_color(displacement, 5.0, mask)
    grey = (rgb == NO_FLOW).all(axis=-1)
    assert np.argwhere(grey).tolist() == [[0, 0], [2, 3]]
    with pytest.raises(ValueError, match="max_px must be positive, got 0"):
        drawing.flow_to_color(displacement, 0.0)


@pytest.mark.parametrize("size", [(90, 120), (30, 200), (20, 20), (200, 10)])
def test_legend_stays_in_its_corner(size):
    canvas = np.full((*size, 3), 77, np.uint8)
    drawn = drawing.draw_flow_legend(canvas, 12.5)
    changed = (drawn != 77).any(axis=-1)
    assert changed[-size[0] // 2 :, -size[1] // 2 :].any()
    assert not changed[: max(0, size[0] - 41)].any()
    assert not changed[:, : max(0, size[1] - 100)].any()
    assert (canvas == 77).all()


def test_legend_shows_the_colours_of_the_picture():
    canvas = np.full((200, 200, 3), 77, np.uint8)
    drawn = drawing.draw_flow_legend(canvas, 8.0)
    # A wheel of 40 pixels: its centre is white, its right end is what displaces to the right.
    assert drawn[179:181, 179:181].min() > 240
    right = drawn[180, 198].astype(int)
    assert right[0] > 240
    assert right[1:].max() < 50


# Panels ------------------------------------------------------------------------------------------------------------


def test_panel_places_images_at_one_height(photo):
    small = photo[::3, ::3]
    result = drawing.panel([photo, small], ["photo", "small"])
    bar = result.shape[0] - HEIGHT
    assert bar > 0
    assert np.array_equal(result[bar:, :WIDTH], photo)
    assert result.shape[1] == 2 * WIDTH + drawing.GAP_PX
    assert (result[:, WIDTH : WIDTH + drawing.GAP_PX] == PAPER).all()
    # Both captions are written, light on dark.
    for columns in (slice(0, WIDTH), slice(WIDTH + drawing.GAP_PX, None)):
        assert (result[:bar, columns].max(axis=-1) > 150).sum() > 10
    assert drawing.panel([photo], ["x"], height_px=45).shape[1] == 60


def test_a_long_caption_is_made_to_fit(photo):
    result = drawing.panel([photo, photo], ["a caption that is longer than its image is wide", ""])
    bar = result.shape[0] - HEIGHT
    head = result[:bar]
    assert (head[:, WIDTH - 3 :] == PAPER).all()
    assert (head[:, :WIDTH] != PAPER).any()


def test_contact_sheet_places_images_in_rows(photo):
    images = [photo, photo[:30, :40], photo // 2, photo // 3, photo // 4]
    sheet = drawing.contact_sheet(images, 3)
    gap = drawing.GAP_PX
    assert sheet.shape == (2 * HEIGHT + gap, 3 * WIDTH + 2 * gap, 3)
    assert np.array_equal(sheet[:HEIGHT, :WIDTH], photo)
    assert np.array_equal(sheet[30:60, WIDTH + gap + 40 : WIDTH + gap + 80], photo[:30, :40])
    assert np.array_equal(sheet[HEIGHT + gap :, WIDTH + gap : 2 * WIDTH + gap], photo // 4)
    assert (sheet[HEIGHT + gap :, 2 * (WIDTH + gap) :] == PAPER).all()
    assert drawing.contact_sheet([photo], 4).shape == photo.shape


def test_empty_pictures_are_refused(photo):
    with pytest.raises(ValueError, match="got 1 and 2"):
        drawing.panel([photo], ["a", "b"])
    with pytest.raises(ValueError, match="got 0 and 0"):
        drawing.panel([], [])
    with pytest.raises(ValueError, match="got 0 and 3"):
        drawing.contact_sheet([], 3)
    with pytest.raises(ValueError, match="got 1 and 0"):
        drawing.contact_sheet([photo], 0)
