"""The row of DensePose points in the tables: what it aims at, who counts in it, and from the file to the table."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import roma
import tiny_store
import torch
from lightning import Trainer
from tiny_refinement import BODY, CROP_PX, SIZE_PX, batch_of, person, tiny_module

from bodies import InputError, load_body_model
from datamodules.initial import InitialDraw, NoiseScale
from datamodules.mixture import MixtureDataModule
from datamodules.sample import RefinementBatch, SurfaceSample
from datamodules.sources import DatasetSource, Loading
from datamodules.store import FrameWriter, StoredImage, SurfacePoints
from datamodules.store_records import NO_SURFACE_POINTS
from fitting import FitStatus, SurfaceTargets
from lightning_modules.cli import without_meant_warnings
from lightning_modules.evaluation import EvaluationSettings, columns, refine, row_columns, row_targets, score
from lightning_modules.fitting_settings import FittingSettings, SurfaceTerm
from lightning_modules.preparation import BatchPreparation, BodySettings
from lightning_modules.result_tables import table_lines
from renderers import make_rasterizer

ROWS = ("initial", "keypoints_detected", "densepose")
POINTS = 300
SETTINGS = FittingSettings()


@pytest.fixture(autouse=True)
def _quiet():
    with without_meant_warnings():
        yield


def seen_surface(row: int) -> SurfacePoints:
    """Pixels of a person's whole image with the point of the true body that is seen at their centre."""
    body, (parameters, camera) = load_body_model(BODY), person(row)
    width, height = (int(side) for side in SIZE_PX)
    fragments = make_rasterizer("cpu")(body(parameters).vertices, body.faces, camera, height, width)
    rows, pixels = fragments.mask[0].nonzero(as_tuple=True)
    position_px = torch.stack([pixels, rows], dim=1) + 0.5
    triangle, shares = fragments.triangle_id[0, rows, pixels], fragments.barycentric[0, rows, pixels]
    return SurfacePoints(position_px.numpy(), triangle.int().numpy(), shares.numpy())


def batch_with(surfaces: list[SurfacePoints], sought: bool = True) -> tuple[BatchPreparation, RefinementBatch]:
    """People of a data set, with some of their points."""
    samples = batch_of(list(range(len(surfaces))))
    shape = (len(surfaces), POINTS)
    padded = SurfaceSample(
        torch.zeros(*shape, 2),
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(*shape, 3),
        torch.zeros(shape),
        torch.full(shape[:1], sought),
    )
    for number, points in enumerate(surfaces):
        count = min(POINTS, len(points.triangle))
        some = np.linspace(0, len(points.triangle) - 1, count).astype(int)
        padded.position_px[number, :count] = torch.from_numpy(points.position_px[some])
        padded.triangle[number, :count] = torch.from_numpy(points.triangle[some]).long()
        padded.barycentric[number, :count] = torch.from_numpy(points.barycentric[some])
        padded.weight[number, :count] = 1
    prepare = BatchPreparation(BodySettings(model=BODY, rasterizer="cpu"), NoiseScale())
    return prepare, prepare(samples._replace(surface=padded))


def scored(prepare: BatchPreparation, batch: RefinementBatch):
    fits = refine(ROWS, batch, batch.displacement_px, SETTINGS.fit(prepare.body, SETTINGS.load_prior()), SETTINGS)
    truth = prepare.true_mesh(batch.truth, batch.gender)
    scores = score(ROWS, batch, batch.displacement_px[:, None], fits, truth, prepare.body, "lsp14")
    places = {name: place for place, name in enumerate(columns(ROWS, 1))}
    return (
        fits,
        {n: scores.values[:, p] for n, p in places.items()},
        {n: scores.defined[:, p] for n, p in places.items()},
    )


def test_the_row_aims_at_the_points_with_the_settings_of_their_term():
    prepare, batch = batch_with([seen_surface(0), NO_SURFACE_POINTS])
    settings = dataclasses.replace(SETTINGS, surface=SurfaceTerm(factor=7.0, sigma_px=9.0, max_points=50))
    (targets,) = row_targets("densepose", batch, batch.displacement_px, prepare.body, settings)
    assert isinstance(targets, SurfaceTargets)
    assert (targets.factor, targets.sigma_px, targets.max_points) == (7.0, 9.0, 50)
    for name in ("position_px", "triangle", "barycentric", "weight"):
        assert torch.equal(getattr(targets, name), getattr(batch.surface, name))
    # Every point is where the true body shows it.
    corners = prepare.body(batch.truth).vertices[0, prepare.body.faces[targets.triangle[0]]]
    points = (corners * targets.barycentric[0, :, :, None]).sum(dim=1)
    assert (batch.camera[:1].project(points[None]) - targets.position_px[:1]).abs().max() < 0.01


def test_true_points_improve_every_body():
    prepare, batch = batch_with([seen_surface(row) for row in range(3)])
    fits, values, defined = scored(prepare, batch)
    assert all(status.accepted for status in fits["densepose"].status)
    assert all(defined[name].all() for name in row_columns("densepose"))
    assert (values["densepose/pixel_error_px"] < 0.6 * values["initial/pixel_error_px"]).all()


def test_who_was_not_found_keeps_the_initial_estimate_and_counts():
    prepare, batch = batch_with([seen_surface(0), NO_SURFACE_POINTS])
    fits, values, defined = scored(prepare, batch)
    assert fits["densepose"].status[1] is FitStatus.NO_EVIDENCE
    for name in ("mpjpe_mm", "pve_mm", "pixel_error_px"):
        assert defined[f"densepose/{name}"].all()
        assert values[f"densepose/{name}"][1] == values[f"initial/{name}"][1]
    assert values["densepose/accepted"].tolist() == [1, 0]
    assert defined["densepose/target_error_px"].tolist() == [True, False]


def test_the_row_is_undefined_where_a_data_set_has_no_points():
    prepare, batch = batch_with([NO_SURFACE_POINTS] * 2, sought=False)
    _, _, defined = scored(prepare, batch)
    assert {name for name in defined if not defined[name].any()} == set(row_columns("densepose"))
    assert all(defined[f"keypoints_detected/{name}"].all() for name in ("mpjpe_mm", "pve_mm", "accepted"))


def test_a_row_that_samples_have_no_room_for_is_refused():
    prepare = BatchPreparation(BodySettings(model=BODY, rasterizer="cpu"), NoiseScale())
    batch = prepare(batch_of([0]))
    with pytest.raises(InputError, match=r"the row densepose .* set data\.loading\.surface_points"):
        row_targets("densepose", batch, batch.displacement_px, prepare.body, SETTINGS)


def write_people(path: Path, surfaces: list[SurfacePoints]) -> Path:
    body = load_body_model(BODY)
    with FrameWriter(path, path.stem, "test", BODY) as writer:
        for row, surface in enumerate(surfaces):
            parameters, camera = person(row)
            place = camera.project(body(parameters).vertices)[0].numpy()
            low, high = place.min(axis=0), place.max(axis=0)
            image = StoredImage(f"{row}.jpg", tiny_store.jpeg(row, 160, 120), tuple(int(side) for side in SIZE_PX))
            changes = {
                "gender": "neutral",
                "focal_px": camera.focal_px[0].numpy(),
                "center_px": camera.center_px[0].numpy(),
                "box_px": np.array([*(low + high) / 2, 1.2 * (high - low).max()], np.float32),
                "pose": roma.rotmat_to_rotvec(parameters.rotations[0]).flatten().numpy(),
                "betas": parameters.betas[0].numpy(),
                "transl": parameters.transl[0].numpy(),
                "joints_m": None,
                "surface": surface,
            }
            writer.add_row(tiny_store.frame_row(row, writer.add_image(image), **changes))
    return path


def test_data_sets_with_and_without_points_are_tested_together(tmp_path):
    found = write_people(tmp_path / "found.h5", [seen_surface(0), NO_SURFACE_POINTS])
    bare = write_people(tmp_path / "bare.h5", [NO_SURFACE_POINTS] * 2)
    data = MixtureDataModule(
        test={"found": DatasetSource(found), "bare": DatasetSource(bare)},
        crop_px=CROP_PX,
        body_model=BODY,
        loading=Loading(evaluation_batch_size=3, workers=0, surface_points=POINTS),
        evaluation_draws=(InitialDraw("noise"),),
    )
    module = tiny_module(evaluation=EvaluationSettings(test_rows=("initial", "densepose")))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, **quiet)
    trainer.test(module, datamodule=data, verbose=False)
    table = module.test_scores.table()
    lines = table_lines(table.columns, table.by_dataset(), lambda key: data.dataset_name(key[0]))
    rows = {group: [line.row for line in lines if line.group == group] for group in ("found", "bare")}
    assert rows["found"][-2:] == ["initial", "densepose"]
    assert "initial" in rows["bare"]
    assert "densepose" not in rows["bare"]
    numbers = {line.row: line.numbers for line in lines if line.group == "found"}
    # One of two was found and fitted, the other stays where it was.
    assert numbers["densepose"]["accepted"] == 0.5
    initial, fitted = (
        table.values[:2, table.columns.index(f"{row}/pixel_error_px")] for row in ("initial", "densepose")
    )
    assert fitted[0] < 0.6 * initial[0]
    assert fitted[1] == initial[1]
