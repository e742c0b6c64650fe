"""Scores by measured joints: known answers, and what is undefined of samples that have no true body."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import roma
import tiny_store
import torch
from lightning import Trainer
from tiny_refinement import BODY, CROP_PX, SIZE_PX, batch_of, person, tiny_module

from bodies import BodyMesh, BodyParameters, InputError, load_body_model
from bodies.joints import H36M17, LSP14, LSP14_FROM_H36M17
from commands._data_sheet import draw_sheet
from datamodules.initial import InitialDraw, NoiseScale, choose_initial, usable_rows
from datamodules.mixture import MixtureDataModule
from datamodules.sample import INITIAL_KINDS, RefinementBatch
from datamodules.sources import DatasetSource, Loading
from datamodules.store import EstimateStore, EstimateWriter, FrameStore, FrameWriter, StoredImage
from datamodules.store_records import has_true_body
from fitting import FitStatus, TermWeights
from lightning_modules.accumulators import SampleTable
from lightning_modules.cli import without_meant_warnings
from lightning_modules.evaluation import EvaluationSettings, columns, refine, score
from lightning_modules.fitting_settings import FittingSettings
from lightning_modules.metrics import POSE_ERROR_NAMES, evaluation_points, has_measured_joints, pose_errors, true_points
from lightning_modules.overlays import refinement_picture
from lightning_modules.preparation import BatchPreparation, BodySettings
from lightning_modules.result_tables import body_lines, map_lines, table_lines

#: Float32 points of a body four metres away are exact to a micrometre.
ROUNDING_MM = 2e-3
FREE = FittingSettings(prior="none", weights=TermWeights(pose_prior=0, shape_prior=0))
JOINT_ERRORS, VERTEX_ERRORS = POSE_ERROR_NAMES[:3], POSE_ERROR_NAMES[3:]
KNEE = H36M17.index("left_knee")
ROWS = 3


@pytest.fixture(autouse=True)
def _quiet():
    with without_meant_warnings():
        yield


@pytest.fixture(scope="module")
def body():
    return load_body_model(BODY)


def people(rows: range = range(ROWS)) -> BodyParameters:
    parts = [person(row)[0] for row in rows]
    return BodyParameters(*(torch.cat([getattr(p, n) for p in parts]) for n in ("rotations", "betas", "transl")))


def measured(body, mesh: BodyMesh) -> torch.Tensor:
    """Joints as a motion capture without error would have them."""
    joints = body.keypoints(mesh, "h36m17")
    return torch.cat([joints, torch.ones_like(joints[..., :1])], dim=2)


def errors_of(body, mesh, has_body, joints_m, protocol="lsp14") -> dict[str, torch.Tensor]:
    """Errors of a mesh that is taken for estimate and truth alike, by name."""
    truth = true_points(body, mesh, has_body, joints_m, protocol)
    values = pose_errors(evaluation_points(body, mesh, protocol), truth).stack()
    return {name: values[:, place] for place, name in enumerate(POSE_ERROR_NAMES)}


# ---- the points


def test_an_estimate_at_the_measured_joints_has_no_error(body):
    mesh = body(people())
    errors = errors_of(body, mesh, torch.ones(ROWS, dtype=torch.bool), measured(body, mesh))
    assert max(float(values.max()) for values in errors.values()) < ROUNDING_MM


@pytest.mark.parametrize("has_body", [True, False])
def test_a_moved_joint_has_the_exact_error(body, has_body):
    mesh = body(people())
    joints_m = measured(body, mesh)
    joints_m[1, KNEE, 2] += 0.070
    errors = errors_of(body, mesh, torch.full((ROWS,), has_body), joints_m)["mpjpe_mm"]
    # 70 mm over 14 joints.
    torch.testing.assert_close(errors, torch.tensor([0.0, 5.0, 0.0]).double(), atol=ROUNDING_MM, rtol=0)


def test_measured_joints_may_lie_anywhere_and_their_pelvis_is_their_own(body):
    mesh, yes = body(people()), torch.ones(ROWS, dtype=torch.bool)
    joints_m = measured(body, mesh)
    joints_m[..., :3] += torch.tensor([0.4, -0.2, 0.9])
    assert errors_of(body, mesh, yes, joints_m)["mpjpe_mm"].max() < ROUNDING_MM
    joints_m[:, 0, 0] += 0.030
    errors = errors_of(body, mesh, yes, joints_m)
    torch.testing.assert_close(errors["mpjpe_mm"], torch.full((ROWS,), 30.0).double(), atol=ROUNDING_MM, rtol=0)
    # The shape of the 14 is the same, and the vertices have nothing to do with the measurement.
    assert max(float(errors[name].max()) for name in ("pa_mpjpe_mm", *VERTEX_ERRORS)) < ROUNDING_MM


def test_measured_joints_are_scored_as_numpy_scores_them(body):
    mesh = body(people())
    joints_m = measured(body, mesh) + 0.05 * torch.randn(ROWS, 17, 4) * torch.tensor([1.0, 1, 1, 0])
    estimate = body(people(range(10, 10 + ROWS)))
    truth = true_points(body, mesh, torch.zeros(ROWS, dtype=torch.bool), joints_m)
    errors = pose_errors(evaluation_points(body, estimate), truth).mpjpe_mm
    predicted, target = body.keypoints(estimate, "h36m17").double().numpy(), joints_m[..., :3].double().numpy()
    names = [H36M17.index(name) for name in LSP14]
    apart = (predicted - predicted[:, :1])[:, names] - (target - target[:, :1])[:, names]
    np.testing.assert_allclose(errors, 1000 * np.linalg.norm(apart, axis=2).mean(axis=1), atol=ROUNDING_MM)


def test_rows_without_all_of_the_joints_fall_back_to_their_body(body):
    mesh = body(people())
    joints_m = measured(body, mesh)
    joints_m[..., :3] *= 1.5
    joints_m[0, LSP14_FROM_H36M17[3]] = 0  # one of the 14
    joints_m[1, H36M17.index("spine")] = 0  # none of them
    joints_m[2, 0] = 0  # the pelvis
    assert has_measured_joints(joints_m, "lsp14").tolist() == [False, True, False]
    errors = errors_of(body, mesh, torch.ones(ROWS, dtype=torch.bool), joints_m)["mpjpe_mm"]
    assert errors[[0, 2]].max() < ROUNDING_MM
    assert errors[1] > 100
    bodiless = errors_of(body, mesh, torch.zeros(ROWS, dtype=torch.bool), joints_m)["mpjpe_mm"]
    assert bodiless.isnan().tolist() == [True, False, True]


def test_the_chains_joints_are_never_the_measured_ones(body):
    mesh, yes = body(people()), torch.ones(ROWS, dtype=torch.bool)
    joints_m = 2 * measured(body, mesh)
    assert not has_measured_joints(joints_m, "smpl24").any()
    assert errors_of(body, mesh, yes, joints_m, "smpl24")["mpjpe_mm"].max() == 0
    assert errors_of(body, mesh, ~yes, joints_m, "smpl24")["mpjpe_mm"].isnan().all()


def test_without_measured_joints_nothing_changes(body):
    mesh, zeros = body(people()), torch.zeros(ROWS, 17, 4)
    points, expected = true_points(body, mesh, torch.ones(ROWS, dtype=torch.bool), zeros), evaluation_points(body, mesh)
    for name in ("joints", "vertices", "pelvis"):
        assert torch.equal(getattr(points, name), getattr(expected, name))


# ---- the scores


ALL_ROWS = ("initial", "keypoints_true", "displacements", "displacements_true")


def mocap_batch(body) -> tuple[BatchPreparation, RefinementBatch]:
    """Two people with bodies, and between them one with the measured joints of its body in place of that."""
    sample = batch_of([0, 1, 2])
    joints_m = torch.zeros(3, 17, 4)
    joints_m[1] = measured(body, body(person(1)[0]))[0]
    rotations, betas = sample.body.rotations.clone(), sample.body.betas.clone()
    rotations[1], betas[1] = torch.eye(3), 0
    kind = torch.tensor([INITIAL_KINDS.index(kind) for kind in ("noise", "estimate", "noise")])
    prepare = BatchPreparation(BodySettings(model=BODY, rasterizer="cpu"), NoiseScale())
    return prepare, prepare(
        sample._replace(
            body=sample.body._replace(rotations=rotations, betas=betas),
            has_body=torch.tensor([True, False, True]),
            joints_m=joints_m,
            # Row 1 starts from the very body that was measured.
            initial=sample.initial._replace(kind=kind),
        )
    )


@pytest.fixture(scope="module")
def scored(body):
    prepare, batch = mocap_batch(body)
    fits = refine(ALL_ROWS, batch, torch.zeros_like(batch.displacement_px), FREE.fit(prepare.body, None), FREE)
    truth = prepare.true_mesh(batch.truth, batch.gender)
    stacks_px = torch.zeros_like(batch.displacement_px)[:, None]
    return batch, fits, score(ALL_ROWS, batch, stacks_px, fits, truth, prepare.body, "lsp14")


def test_without_a_body_all_but_the_joints_is_undefined(scored):
    _, _, scores = scored
    names = columns(ALL_ROWS, 1)
    assert scores.defined[[0, 2]].all()
    defined = {name for name, known in zip(names, scores.defined[1].tolist(), strict=True) if known}
    expected = {f"{row}/{name}" for row in ALL_ROWS[:3] for name in JOINT_ERRORS}
    fits = {f"{row}/{name}" for row in ALL_ROWS[1:3] for name in ("target_error_px", "accepted")}
    assert defined == expected | fits
    assert scores.values[scores.defined].isfinite().all()
    # What is undefined does not flatter whoever looks at it all the same.
    undefined = [names.index(f"initial/{name}") for name in (*VERTEX_ERRORS, "pixel_error_px")]
    assert scores.values[1, undefined].isnan().all()


def test_the_initial_estimate_is_scored_by_the_measured_joints(scored):
    scores = scored[2]
    values = scores.values[:, columns(ALL_ROWS, 1).index("initial/mpjpe_mm")]
    assert values[1] < ROUNDING_MM
    assert values[[0, 2]].min() > 10


def test_undefined_numbers_leave_means_unchanged(scored):
    batch, _, scores = scored
    tables = SampleTable(columns(ALL_ROWS, 1)), SampleTable(columns(ALL_ROWS, 1))
    for table, rows in zip(tables, ([0, 1, 2], [0, 2]), strict=True):
        ids = (batch.dataset[rows], batch.sequence[rows], batch.row[rows])
        table.update(*ids, scores.values[rows], scores.defined[rows])
    both, alone = (table.table().overall() for table in tables)
    assert not both.failures.any()
    for place, name in enumerate(columns(ALL_ROWS, 1)):
        if scores.defined[1, place]:
            assert both.count[0, place] == 3, name
        else:
            assert torch.equal(both.mean[0, place], alone.mean[0, place]), name
            assert both.count[0, place] == 2, name


def test_there_is_no_fit_to_true_displacements_without_a_body(scored):
    batch, fits, _ = scored
    assert batch.displacement_px[1].abs().max() == 0
    assert batch.displacement_px[[0, 2]].abs().amax(dim=(1, 2, 3)).min() > 0
    status = fits["displacements_true"].status
    assert status[1] == FitStatus.NO_EVIDENCE
    assert FitStatus.NO_EVIDENCE not in (status[0], status[2])
    assert torch.equal(fits["displacements_true"].parameters.rotations[1], batch.initial.rotations[1])
    # True keypoints are annotated in the image and need no body.
    assert fits["keypoints_true"].status[1] != FitStatus.NO_EVIDENCE


def test_a_picture_shows_no_true_displacement_where_there_is_none(scored, body):
    batch = scored[0]
    predicted = torch.ones(2, CROP_PX, CROP_PX)
    picture = refinement_picture(batch, 1, predicted, batch.initial, body)
    changed = dataclasses.replace(batch, displacement_px=batch.displacement_px + 5)
    assert np.array_equal(picture, refinement_picture(changed, 1, predicted, batch.initial, body))
    assert not np.array_equal(
        refinement_picture(batch, 0, predicted, batch.initial, body),
        refinement_picture(changed, 0, predicted, batch.initial, body),
    )


def test_numbers_that_a_group_cannot_have_are_left_out_of_its_table():
    names = ("zero/epe_px", "initial/mpjpe_mm", "initial/pve_mm", "displacements_true/mpjpe_mm")
    table = SampleTable(names)
    values = torch.tensor([[1.0, 50, 60, 20], [math.nan, 40, math.nan, math.nan]])
    ids = torch.tensor([0, 1])
    table.update(ids, ids, ids, values, values.isfinite())
    lines = table_lines(names, table.table().by_dataset(), lambda key: f"set {key[0]}")
    assert [(line.group, line.row) for line in body_lines(lines)] == [
        ("set 0", "initial"),
        ("set 0", "displacements_true"),
        ("set 1", "initial"),
    ]
    assert lines[-1].numbers == {"mpjpe_mm": 40.0}
    assert [line.group for line in map_lines(lines)] == ["set 0"]
    table.reset()
    table.update(ids[:0], ids[:0], ids[:0], values[:0], values[:0].isfinite())
    empty = table_lines(names, table.table().overall(), lambda key: "all")
    assert [line.row for line in empty] == ["zero", "initial", "displacements_true"]


# ---- the store


@pytest.mark.parametrize(
    ("pose", "betas", "seen", "expected"),
    [(0, 0, 1, False), (0, 0, 0, True), (1e-3, 0, 1, True), (0, 1e-3, 1, True), (1, 1, 0, True)],
)
def test_a_row_has_no_body_if_joints_are_all_that_is_not_zero(pose, betas, seen, expected):
    numbers = np.zeros((1, 72), np.float32), np.zeros((1, 10), np.float32), np.zeros((1, 17, 4), np.float32)
    numbers[0][0, 71], numbers[1][0, 9], numbers[2][0, 5, 3] = pose, betas, seen
    assert has_true_body(*numbers).tolist() == [expected]


def write_mocap(folder: Path, bodiless: tuple[int, ...] = tuple(range(ROWS)), name: str = "h36m") -> Path:
    """People whose joints were measured, some of them without a body, and estimates that are the people's bodies."""
    body, parameters = load_body_model(BODY), people()
    joints_m = measured(body, body(parameters)).numpy()
    pose = roma.rotmat_to_rotvec(parameters.rotations).flatten(1).numpy()
    path = folder / f"{name}.h5"
    zeros = {"pose": np.zeros(72), "betas": np.zeros(10)}
    with FrameWriter(path, "h36m", "test", BODY) as writer:
        for row in range(ROWS):
            camera = person(row)[1]
            image = StoredImage(f"{row}.jpg", tiny_store.jpeg(row, 160, 120), tuple(int(n) for n in SIZE_PX))
            place = camera.project(torch.tensor(joints_m[[row], :, :3]))[0].numpy()
            low, high = place.min(axis=0), place.max(axis=0)
            changes = {
                "gender": "neutral",
                "focal_px": camera.focal_px[0].numpy(),
                "center_px": camera.center_px[0].numpy(),
                "box_px": np.array([*(low + high) / 2, 1.2 * (high - low).max()], np.float32),
                "pose": pose[row],
                "betas": parameters.betas[row].numpy(),
                "transl": parameters.transl[row].numpy(),
                "joints_m": joints_m[row],
                "detected_keypoints_px": None,
            } | (zeros if row in bodiless else {})
            writer.add_row(tiny_store.frame_row(row, writer.add_image(image), **changes))
    with EstimateWriter(folder / f"{name}_pare.h5", FrameStore(path), "pare", 1) as writer:
        for row in range(ROWS):
            # The first is the body that was measured; the others bend every joint.
            numbers = {"betas": parameters.betas[[row]].numpy(), "transl": parameters.transl[[row]].numpy()}
            focal_px = float(person(row)[1].focal_px[0, 0])
            writer.add(row, pose=pose[[row]] + np.float32(0.2 * (row > 0)), focal_px=focal_px, **numbers)
    return path


ESTIMATE = InitialDraw("estimate", "pare")


def module_of(split: str, path: Path, draws: tuple[InitialDraw, ...] = (ESTIMATE,)) -> MixtureDataModule:
    source = DatasetSource(path, (path.with_name(f"{path.stem}_pare.h5"),))
    loading = Loading(evaluation_batch_size=2, workers=0)
    changes = {"crop_px": CROP_PX, "body_model": BODY, "loading": loading, "evaluation_draws": draws}
    return MixtureDataModule(**{split: {"h36m": source}}, **changes)


def test_the_store_tells_rows_without_a_body(tmp_path):
    frames = FrameStore(write_mocap(tmp_path, bodiless=(1,)))
    assert frames.has_body.tolist() == [True, False, True]
    assert FrameStore(write_mocap(tmp_path, (), "all")).has_body.all()


def test_only_an_estimate_as_it_is_starts_a_row_without_a_body(tmp_path):
    frames = FrameStore(write_mocap(tmp_path, bodiless=(1,)))
    stores = {"pare": EstimateStore(tmp_path / "h36m_pare.h5", frames)}
    others = (InitialDraw("noise"), InitialDraw("true_pose", "pare"))
    assert usable_rows(others, stores, frames).tolist() == [True, False, True]
    assert usable_rows((*others, ESTIMATE), stores, frames).all()
    rng = np.random.default_rng(0)
    chosen = {choose_initial((*others, ESTIMATE), stores, 1, rng, has_body=False)[0] for _ in range(50)}
    assert chosen == {ESTIMATE}


def test_rows_without_a_body_are_left_out_where_no_way_is_open_to_them(tmp_path):
    data = module_of("test", write_mocap(tmp_path, bodiless=(1,)), (InitialDraw("noise"),))
    data.setup("test")
    assert [batch.row.tolist() for batch in data.test_dataloader()] == [[0, 2]]
    notes = data.readers["test"][0].notes()
    assert "1 rows have measured joints alone, without a true body" in notes
    assert any(note.startswith("1 rows left out") for note in notes)


def test_training_on_rows_without_a_body_is_refused_by_name(tmp_path):
    path = write_mocap(tmp_path, bodiless=(1, 2))
    row_id = FrameStore(path).row_ids[1]
    with pytest.raises(InputError, match=rf"h36m\.h5: 2 of its 3 rows .* no true body, the first is {row_id};"):
        module_of("train", path).setup("fit")
    module_of("validation", path).setup("fit")


def test_a_test_set_of_measured_joints_is_tested_whole(tmp_path):
    module = tiny_module(evaluation=EvaluationSettings(test_rows=ALL_ROWS))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, **quiet)
    trainer.test(module, datamodule=module_of("test", write_mocap(tmp_path)), verbose=False)
    table = module.test_scores.table()
    assert len(table.row_ids) == ROWS
    numbers = dict(zip(table.columns, table.values.T, strict=True))
    # Poses went through axis-angle and float32: a few micrometres.
    assert numbers["initial/mpjpe_mm"][0] < 1e-2
    assert numbers["initial/mpjpe_mm"][1:].min() > 50
    lines = table_lines(table.columns, table.overall(), lambda key: "all")
    assert [line.row for line in lines] == ["initial", "keypoints_true", "displacements"]
    assert all(math.isfinite(number) for name, number in lines[0].numbers.items())
    assert set(lines[0].numbers) == set(JOINT_ERRORS)


def test_the_contact_sheet_shows_joints_in_place_of_a_body(tmp_path):
    frames = FrameStore(write_mocap(tmp_path))
    # No body model is loaded for it.
    sheet = draw_sheet(frames, ROWS, 1, str(tmp_path / "none.npz"))
    photos = sheet[:, : sheet.shape[1] // 2], sheet[:, -(sheet.shape[1] // 2) :]
    assert sheet.ndim == 3
    assert not np.array_equal(*photos)
