"""DensePose points of synthetic sets: on the person, as wrong as they are meant to be, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bodies import InputError, load_body_model
from datamodules import synthetic_frames, synthetic_surface
from datamodules.convert.detections import load_true_bodies, true_surface_px
from datamodules.store import FrameStore
from datamodules.store_layout import FRAME_COLUMNS
from datamodules.synthetic import synthesize
from datamodules.synthetic_frames import FrameMaker, SyntheticSettings
from datamodules.synthetic_surface import detect_surface
from renderers.rasterize import Fragments

PLAIN = SyntheticSettings(frames=5, subjects=2, body="standin-tiny", image_size=(128, 112), seed=3)
POINTS = replace(PLAIN, surface_points=200)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("plain") / "set.h5", PLAIN, workers=0, quiet=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("points") / "set.h5", POINTS, workers=0, quiet=True)


def distances(store: FrameStore) -> list[np.ndarray]:
    """How far the points of each row are from where its true body has them, in sides of the box."""
    bodies, result = load_true_bodies(store), []
    faces = load_body_model("standin-tiny").faces.numpy()
    for row in range(len(store)):
        frame = store.read(row)
        points = store.read_surface(frame)
        corners = faces[points.triangle][None]
        true_px = true_surface_px(store, bodies, np.array([row]), corners, points.barycentric[None])[0]
        result.append(np.linalg.norm(points.position_px - true_px, axis=1) / frame.box_px[2])
    return result


def test_a_set_with_points_is_otherwise_the_same(plain, store):
    for column in FRAME_COLUMNS:
        label = column.name.partition("/")[2]
        if column.name.startswith("rows/") and not label.startswith("surface_"):
            assert np.array_equal(plain.column(label), store.column(label)), label
    for row in range(len(plain)):
        assert plain.read_jpeg(row) == store.read_jpeg(row)
    assert not plain.column("surface_count").any()


def test_every_person_has_as_many_points_as_asked_for(store, tmp_path):
    assert store.column("surface_count").tolist() == [200] * 5
    few = synthesize(tmp_path / "few.h5", replace(POINTS, frames=1, surface_points=3), workers=0, quiet=True)
    assert few.column("surface_count").tolist() == [3]


def test_points_are_a_few_centimetres_off_and_some_are_wrong(store):
    off = np.concatenate(distances(store))
    # Two errors of 0.015 and 0.01 along each axis: 0.018 each, a median of 1.18 times that.
    assert 0.01 < np.median(off) < 0.03
    assert 0.003 < (off > 0.15).mean() < 0.06
    by_row = [np.median(each) for each in distances(store)]
    assert max(by_row) < 0.06


def test_without_errors_points_are_where_the_true_body_has_them(tmp_path, monkeypatch):
    for name in ("COMMON_ERROR", "OWN_ERROR", "CONFUSED"):
        monkeypatch.setattr(synthetic_surface, name, 0.0)
    exact = synthesize(tmp_path / "exact.h5", POINTS, workers=0, quiet=True)
    # Parameters were stored in single precision: some hundredths of a pixel in a box of about 80.
    assert max(each.max() for each in distances(exact)) < 5e-4


def test_what_is_hidden_has_no_points(monkeypatch):
    shown = []

    def half(rng, image, person, box_px):
        hidden = person.copy()
        hidden[:, int(box_px[[0, 2]].mean()) :] = False
        shown.append(hidden)
        return image, hidden

    monkeypatch.setattr(synthetic_frames, "draw_occluders", half)
    made = FrameMaker(POINTS).frame(1)
    columns, rows = np.floor(made.row.surface.position_px).astype(int).T
    assert len(rows) > 50
    assert shown[0][rows, columns].all()


def _fragments(mask: np.ndarray) -> Fragments:
    """A person of one triangle, whose first share is the number of the pixel."""
    height, width = mask.shape
    share = torch.arange(height * width, dtype=torch.float32).view(1, height, width) / (height * width)
    return Fragments(
        triangle_id=torch.where(torch.from_numpy(mask), 0, -1)[None],
        barycentric=torch.stack([share, 1 - share, torch.zeros_like(share)], dim=-1),
        depth=torch.ones(1, height, width),
    )


def test_neighbours_are_off_alike():
    mask = np.ones((100, 100), bool)
    points = detect_surface(np.random.default_rng(0), _fragments(mask), mask, 5000)
    taken = np.rint(points.barycentric[:, 0].astype(np.float64) * mask.size).astype(int)
    error = np.stack(np.divmod(taken, 100), axis=1) - np.floor(points.position_px[:, ::-1])
    close = np.linalg.norm(error, axis=1) < 10
    assert (~close).mean() == pytest.approx(synthetic_surface.CONFUSED, abs=0.01)
    near = close[1:] & close[:-1] & (np.abs(np.diff(points.position_px, axis=0)).sum(axis=1) < 6)
    first, second = error[:-1][near].ravel(), error[1:][near].ravel()
    # What they share is 0.015^2 of 0.015^2 + 0.01^2, less what is lost between the places where it is drawn.
    assert 0.3 < np.corrcoef(first, second)[0, 1] < 0.8


def test_nobody_to_be_seen_has_no_points():
    mask = np.ones((8, 8), bool)
    for visible in (~mask, mask):
        points = detect_surface(np.random.default_rng(0), _fragments(mask & ~visible), visible, 9)
        assert len(points.triangle) == 0


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="surface points -1"):
        replace(PLAIN, surface_points=-1)

    def fails(self, number):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic_frames.Wardrobe, "given_texture", fails)
        with pytest.raises(KeyboardInterrupt):
            synthesize(tmp_path / "half.h5", PLAIN, workers=0, quiet=True)
    # A set that was begun without them is not gone on with.
    with pytest.raises(InputError, match="surface_points"):
        synthesize(tmp_path / "half.h5", POINTS, workers=0, quiet=True)
