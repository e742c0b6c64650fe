"""The LightningModule: what it makes of a batch, what it scores, where it stops, and that it scores the same in two."""

import dataclasses
import functools
import math
import warnings
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from tiny_refinement import BODY, CROP_PX, PeopleData, batch_of, tiny_module

from bodies import BodyParameters, InputError
from datamodules.initial import NoiseScale
from fitting import Adam, FitStatus, LevenbergMarquardt, TermWeights
from lightning_modules.cli import without_meant_warnings
from lightning_modules.evaluation import (
    FIT_NUMBERS,
    ROW_NUMBERS,
    EvaluationSettings,
    columns,
    displacement_targets,
    refine,
    row_targets,
    score,
)
from lightning_modules.fitting_settings import FittingSettings
from lightning_modules.hourglass import DisplacementNetwork
from lightning_modules.losses import displacement_loss, surface_loss
from lightning_modules.metrics import evaluation_points, pose_errors
from lightning_modules.preparation import BatchPreparation, BodySettings
from renderers.maps import MAP_CHANNELS

NOISE = NoiseScale()
NO_NOISE = NoiseScale(0, 0, 0, 0, 0, 0, 0)
SETTINGS = BodySettings(model=BODY, rasterizer="cpu")
#: Data terms alone, so that a fit that has nothing to correct stays where it is.
FREE = FittingSettings(prior="none", weights=TermWeights(pose_prior=0, shape_prior=0))
ALL_ROWS = (
    "initial",
    "keypoints_detected",
    "keypoints_true",
    "displacements",
    "displacements_and_keypoints",
    "displacements_true",
)


@pytest.fixture(autouse=True)
def _quiet():
    with without_meant_warnings():
        yield


def _prepared(rows, noise=NOISE, settings=SETTINGS):
    prepare = BatchPreparation(settings, noise)
    return prepare, prepare(batch_of(rows))


def _trainer(folder: Path, **changes) -> Trainer:
    keywords = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return Trainer(**{**keywords, **changes})


def _scores(rows, batch, prepare, stacks_px, settings=FREE):
    fit = settings.fit(prepare.body, settings.load_prior())
    fits = refine(rows, batch, stacks_px[:, -1], fit, settings)
    truth = prepare.true_mesh(batch.truth, batch.gender)
    scores = score(rows, batch, stacks_px, fits, truth, prepare.body, "lsp14")
    names = columns(rows, stacks_px.shape[1])
    return {name: scores.values[:, place] for place, name in enumerate(names)}, fits


# ---- preparation


def test_without_noise_there_is_nothing_to_learn():
    _, batch = _prepared([0, 1], NO_NOISE)
    torch.testing.assert_close(batch.initial.rotations, batch.truth.rotations, atol=1e-6, rtol=0)
    assert batch.mask.any(dim=(1, 2)).all()
    # Float32 rotations times a lever of a metre, at a crop scale of about ten pixels to the metre.
    assert batch.displacement_px.abs().max() < 1e-3


def test_a_batch_is_float32_and_its_image_in_0_to_1():
    with torch.autocast("cpu", torch.bfloat16):
        _, batch = _prepared([0, 1])
    tensors = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    floats = {t.dtype for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()}
    assert floats == {torch.float32}
    assert batch.images.amin() >= 0
    assert 0.5 < batch.images.amax() <= 1
    _, same = _prepared([0, 1])
    torch.testing.assert_close(batch.renderings, same.renderings, atol=0, rtol=0)


def test_batch_mates_change_nothing():
    _, together = _prepared([0, 1, 2])
    _, alone = _prepared([1])
    # The sums over bones run in another order in a batch of another size.
    torch.testing.assert_close(together.initial.rotations[1:2], alone.initial.rotations, atol=1e-6, rtol=0)
    agree = (together.mask[1] == alone.mask[0]).float().mean()
    assert agree > 0.99
    both = together.mask[1] & alone.mask[0]
    difference = (together.displacement_px[1] - alone.displacement_px[0])[:, both]
    assert difference.abs().median() < 1e-4


def test_the_displacement_leads_from_the_initial_to_the_true_projection():
    prepare, batch = _prepared([3])
    fragments = batch.fragments
    row, column = fragments.mask[0].nonzero()[len(fragments.mask[0].nonzero()) // 2].tolist()
    corners = prepare.body.faces[fragments.triangle_id[0, row, column]]
    weights = fragments.barycentric[0, row, column]
    initial = batch.initial_crop_camera.project(prepare.body(batch.initial).vertices)[0, corners]
    true = batch.crop_camera.project(prepare.body(batch.truth).vertices)[0, corners]
    expected = (weights[:, None] * (true - initial)).sum(dim=0)
    # Float32 pixels of a crop of 32.
    torch.testing.assert_close(batch.displacement_px[0, :, row, column], expected, atol=1e-4, rtol=0)


def test_the_true_body_of_a_gender_is_of_that_genders_model():
    prepare = BatchPreparation(dataclasses.replace(SETTINGS, true_models={"male": BODY}), NO_NOISE)
    taller = prepare._true_bodies["male"]
    taller.template.mul_(1.25)
    sample = batch_of([0, 1])._replace(gender=torch.tensor([1, 0]))
    mesh = prepare.true_mesh(sample.body.parameters(), sample.gender)
    plain = prepare.body(sample.body.parameters())
    torch.testing.assert_close(mesh.vertices[1], plain.vertices[1])
    assert (mesh.vertices[0] - plain.vertices[0]).norm(dim=-1).max() > 0.1


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(InputError, match="male body model standin has"):
        BatchPreparation(dataclasses.replace(SETTINGS, true_models={"male": "standin"}), NO_NOISE)
    prepare = BatchPreparation(SETTINGS, NO_NOISE)
    with pytest.raises(InputError, match="colour 7 vertices"):
        prepare(batch_of([0])._replace(texture=torch.zeros(1, 7, 4, dtype=torch.uint8)))
    with pytest.raises(InputError, match="no UV map"):
        prepare(batch_of([0])._replace(texture=torch.zeros(1, 8, 8, 4, dtype=torch.uint8)))
    with pytest.raises(InputError, match="multiples of 8"):
        tiny_module(crop_px=36)


def test_colour_without_coverage_does_not_count():
    prepare = BatchPreparation(SETTINGS, NO_NOISE)
    sample = batch_of([0])
    rgba = sample.texture.clone()
    rgba[..., 3] = 0
    assert prepare(sample).renderings[:, :3].amax() > 0.1
    assert prepare(sample._replace(texture=rgba)).renderings[:, :3].amax() == 0


# ---- evaluation


def test_zero_displacement_leaves_the_initial_body_and_its_known_error():
    prepare, batch = _prepared([0, 1])
    zero = torch.zeros(2, 1, 2, CROP_PX, CROP_PX)
    numbers, fits = _scores(("initial", "displacements"), batch, prepare, zero)
    initial = evaluation_points(prepare.body, prepare.body(batch.initial))
    truth = evaluation_points(prepare.body, prepare.body(batch.truth))
    known = pose_errors(initial, truth)
    torch.testing.assert_close(numbers["initial/pve_mm"], known.pve_mm)
    # The targets are where the body is; float32 leaves hundredths of a millimetre to correct.
    torch.testing.assert_close(numbers["displacements/pve_mm"], known.pve_mm, atol=0.1, rtol=0)
    assert (numbers["zero/epe_px"] == numbers["stack_1/epe_px"]).all()
    assert (fits["displacements"].final_error_px < 1e-2).all()


def test_true_displacements_bring_the_projection_to_the_truth():
    prepare, batch = _prepared([0, 1, 2])
    zero = torch.zeros(3, 1, 2, CROP_PX, CROP_PX)
    numbers, _ = _scores(("initial", "displacements_true"), batch, prepare, zero, FittingSettings())
    assert (numbers["displacements_true/pixel_error_px"] < 0.5 * numbers["initial/pixel_error_px"]).all()
    assert (numbers["displacements_true/accepted"] == 1).all()
    assert (numbers["displacements_true/target_error_px"] < numbers["initial/pixel_error_px"]).all()


def test_a_perfect_network_is_the_true_displacement():
    prepare, batch = _prepared([0, 1])
    perfect = batch.displacement_px[:, None]
    rows = ("displacements", "displacements_true")
    numbers, _ = _scores(rows, batch, prepare, perfect)
    assert (numbers["stack_1/epe_px"] == 0).all()
    for number in (*ROW_NUMBERS, *FIT_NUMBERS):
        torch.testing.assert_close(numbers[f"displacements/{number}"], numbers[f"displacements_true/{number}"])


def test_targets_are_in_full_image_pixels():
    prepare, batch = _prepared([0])
    shift = torch.zeros(1, 2, CROP_PX, CROP_PX)
    shift[:, 0] = 2.0
    targets = displacement_targets(batch, shift, prepare.body, FREE)
    moved = targets.position_px - batch.initial_camera.project(prepare.body(batch.initial).vertices)
    scale = batch.box_px[0, 2] / CROP_PX
    seen = targets.weight[0] > 0
    assert set(targets.weight.unique().tolist()) == {0.0, 1.0}
    expected = torch.tensor([2.0, 0.0]) * scale
    # The box may have been stored with six digits.
    torch.testing.assert_close(moved[0, seen], expected.expand(int(seen.sum()), 2), atol=1e-3, rtol=1e-4)
    assert moved[0, ~seen].abs().max() == 0


def test_each_row_aims_at_its_own_evidence():
    prepare, batch = _prepared([0])
    zero = torch.zeros(1, 2, CROP_PX, CROP_PX)
    kinds = {row: [type(t).__name__ for t in row_targets(row, batch, zero, prepare.body, FREE)] for row in ALL_ROWS}
    assert kinds == {
        "initial": [],
        "keypoints_detected": ["KeypointTargets"],
        "keypoints_true": ["KeypointTargets"],
        "displacements": ["VertexTargets"],
        "displacements_and_keypoints": ["VertexTargets", "KeypointTargets"],
        "displacements_true": ["VertexTargets"],
    }
    detected, true = (
        row_targets(r, batch, zero, prepare.body, FREE)[0] for r in ("keypoints_detected", "keypoints_true")
    )
    assert (detected.position_px - true.position_px).abs().max() > 1
    torch.testing.assert_close(true.position_px, batch.true_keypoints_px[..., :2])


def test_true_keypoints_that_a_data_set_lacks_are_those_of_the_true_body():
    """3DPW and RICH have none; the upper bound of the table needs them."""
    prepare = tiny_module().prepare
    sample = batch_of([0, 1, 2])
    lacking = torch.tensor([False, True, True])
    stored = sample.true_keypoints_px.where(~lacking[:, None, None], 0.0)
    stored[0, 3] = 0.0
    with_body = torch.tensor([True, True, False])
    found = prepare(sample._replace(true_keypoints_px=stored, has_body=with_body)).true_keypoints_px
    # What is annotated stays as it is, gaps included; who has no body has no keypoints.
    torch.testing.assert_close(found[0], stored[0])
    torch.testing.assert_close(found[1], sample.true_keypoints_px[1], rtol=0, atol=1e-3)
    assert (found[2] == 0).all()


def test_what_a_sample_cannot_have_is_undefined_not_zero():
    prepare, batch = _prepared([0, 1])
    nothing = dataclasses.replace(batch, detected_keypoints_px=torch.zeros_like(batch.detected_keypoints_px))
    rows = ("initial", "keypoints_detected")
    fits = refine(rows, nothing, batch.displacement_px, FREE.fit(prepare.body, None), FREE)
    assert fits["keypoints_detected"].status == (FitStatus.NO_EVIDENCE,) * 2
    truth = prepare.true_mesh(batch.truth, batch.gender)
    hidden = dataclasses.replace(nothing, mask=torch.zeros_like(batch.mask))
    scores = score(rows, hidden, batch.displacement_px[:, None], fits, truth, prepare.body, "lsp14")
    undefined = {n for place, n in enumerate(columns(rows, 1)) if not scores.defined[:, place].any()}
    assert undefined == {"zero/epe_px", "stack_1/epe_px", "keypoints_detected/target_error_px"}
    names = columns(rows, 1)
    pve = [scores.values[:, names.index(f"{row}/pve_mm")] for row in rows]
    torch.testing.assert_close(*pve)


@pytest.mark.parametrize("solver", [LevenbergMarquardt(max_steps=2), Adam(steps=2)])
@pytest.mark.parametrize("prior", ["standin", "none"])
def test_any_solver_and_prior(solver, prior):
    prepare, batch = _prepared([0])
    settings = FittingSettings(prior=prior, solver=solver)
    fit = settings.fit(prepare.body, settings.load_prior())
    results = refine(("displacements_true",), batch, batch.displacement_px, fit, settings)
    assert isinstance(results["displacements_true"].parameters, BodyParameters)
    assert (fit.prior is None) == (prior == "none")


# ---- the module in the trainer


class _Losses(Callback):
    def __init__(self):
        self.values = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values[trainer.global_step] = float(outputs["loss"])


# Named functions, because hyperparameters have to pickle.
def _fast_adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


def _stairs(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 20)


def test_training_learns_and_validation_scores_every_sample(tmp_path):
    losses = _Losses()
    module = tiny_module(
        optimizer=_fast_adam,
        scheduler=_stairs,
        evaluation=EvaluationSettings(validation_rows=ALL_ROWS),
    )
    trainer = _trainer(tmp_path, max_steps=24, callbacks=[losses], limit_val_batches=2, check_val_every_n_epoch=12)
    trainer.fit(module, datamodule=PeopleData(people=4))
    curve = list(losses.values.values())
    assert sum(curve[-4:]) < 0.85 * sum(curve[:4])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-4)  # the schedule counts steps
    errors = module.validation_scores.table()
    assert errors.row_ids.tolist() == [0, 2, 1, 3]  # by data set, then by row
    assert errors.values.isfinite().all()
    means = dict(zip(errors.columns, errors.overall().mean[0].tolist(), strict=True))
    assert float(trainer.callback_metrics["val/initial/pve_mm"]) == pytest.approx(means["initial/pve_mm"], rel=1e-6)
    assert float(trainer.callback_metrics["val/stack_2/epe_px"]) == pytest.approx(means["stack_2/epe_px"], rel=1e-6)
    assert {"train/loss", "train/stack_1/epe_px", "train/stack_2/epe_px"} <= trainer.callback_metrics.keys()


def test_the_loss_is_the_sum_over_stacks_of_equation_3():
    module = tiny_module()
    batch = module.prepare(batch_of([0, 1]))
    module.log = module.log_dict = lambda *args, **keywords: None
    expected = displacement_loss(module(batch), batch.displacement_px, batch.mask, "l1")
    assert expected.shape == (2,)
    torch.testing.assert_close(module.training_step(batch, 0), expected.sum())


def test_the_surface_loss_is_added_with_its_weight():
    network = functools.partial(
        DisplacementNetwork, width=16, stem_width=8, depth=2, feature_stride=2, encoder_blocks=1, norm="group"
    )
    module = tiny_module(network=network(stacks=2, surface_outputs=True), surface_weight=3.0)
    module.log = module.log_dict = lambda *args, **keywords: None
    batch = module.prepare(batch_of([0, 1]))
    surface = module.network.predict(batch.images, batch.renderings).surface
    mask, colors = module.prepare.true_surface(batch, CROP_PX // 2)
    expected = displacement_loss(module(batch), batch.displacement_px, batch.mask, "l1").sum()
    expected += 3.0 * surface_loss(surface, mask, colors).sum()
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    for outputs, weight in ((True, 0.0), (False, 1.0)):
        with pytest.raises(InputError, match="surface_weight must be positive if the network has surface_outputs"):
            tiny_module(network=network(stacks=1, surface_outputs=outputs), surface_weight=weight)


def test_the_true_surface_is_what_a_perfect_estimate_would_show():
    prepare, batch = _prepared([0, 1], NO_NOISE)
    mask, colors = prepare.true_surface(batch, CROP_PX)
    # Rotations went through a projection to SO(3) once more: pixels at the outline may fall to the other side.
    agree = mask == batch.mask
    assert agree.float().mean() > 0.99
    both = (mask & batch.mask)[:, None]
    difference = (colors - batch.renderings[:, MAP_CHANNELS["colors"]]).where(both, 0.0)
    assert difference.abs().median() < 1e-4
    half, _ = prepare.true_surface(batch, CROP_PX // 2)
    torch.testing.assert_close(half.float().mean(), mask.float().mean(), atol=0.05, rtol=0)
    nobody = dataclasses.replace(batch, has_body=torch.tensor([True, False]))
    assert prepare.true_surface(nobody, CROP_PX)[0].any(dim=(1, 2)).tolist() == [True, False]


def test_a_loss_that_is_not_a_number_stops_with_the_names_of_its_rows(tmp_path):
    module = tiny_module()
    with torch.no_grad():
        module.network.outputs[0].bias.fill_(math.nan)
    with pytest.raises(InputError, match="loss is nan at step 0, in the batch of data set 0 row 0, data set 1 row 1"):
        _trainer(tmp_path, max_steps=1).fit(module, datamodule=PeopleData(people=4))


def test_half_precision_that_would_round_cameras_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"precision bf16-true .* use one of 32-true, bf16-mixed"):
        _trainer(tmp_path, precision="bf16-true").validate(tiny_module(), datamodule=PeopleData(), verbose=False)


def test_mixed_precision_leaves_batch_and_fit_in_float32(tmp_path):
    exact, mixed = (
        _trainer(tmp_path, precision=precision).validate(tiny_module(), datamodule=PeopleData(people=2), verbose=False)
        for precision in ("32-true", "bf16-mixed")
    )
    assert exact[0]["val/initial/pve_mm"] == mixed[0]["val/initial/pve_mm"]
    assert mixed[0]["val/displacements/pve_mm"] == pytest.approx(exact[0]["val/displacements/pve_mm"], rel=0.02)


def test_no_body_and_no_prior_is_part_of_the_module():
    module = tiny_module()
    assert all(name.startswith("network.") for name in module.state_dict())
    assert all(name.startswith("network.") for name, _ in module.named_buffers())


# ---- several processes


def _validate(strategy: str, devices: int, folder: Path) -> dict[str, float]:
    trainer = _trainer(folder, strategy=strategy, devices=devices)
    trainer.validate(tiny_module(), datamodule=PeopleData(people=5), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_two_processes_score_as_one(tmp_path):
    with warnings.catch_warnings():
        # Lightning advises one device for exact scores, for samples that are dealt out twice; the table drops them.
        warnings.simplefilter("ignore")
        two = _validate("ddp_spawn", 2, tmp_path)
    one = _validate("auto", 1, tmp_path)
    assert two.keys() == one.keys()
    assert len(one) > 15
    for name, value in one.items():
        # The network's convolutions run on batches of other sizes, hence 1e-4.
        assert two[name] == pytest.approx(value, rel=1e-4), name
