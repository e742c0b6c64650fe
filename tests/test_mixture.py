"""The data module: the same samples whatever the workers, ranks and interruptions, and files checked at the door."""

from pathlib import Path
from typing import Any

import h5py
import lightning
import numpy as np
import pytest
import tiny_store
import torch
from jsonargparse import ArgumentParser
from torch import nn

from bodies import InputError
from datamodules import synthetic
from datamodules.augmentation import Augmentation
from datamodules.initial import InitialDraw
from datamodules.mixture import MixtureDataModule
from datamodules.sample import BodySample
from datamodules.sample_reader import fitted_texture
from datamodules.sources import DatasetSource, Loading
from datamodules.synthetic_frames import SyntheticSettings

ROWS = (5, 8)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
NOISE_ONLY, ESTIMATE_ONLY = (InitialDraw("noise"),), (InitialDraw("estimate", "pare"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two small data sets; one has PARE estimates of three of its rows."""
    folder: Path = tmp_path_factory.mktemp("store")
    for number, rows in enumerate(ROWS):
        with tiny_store.FrameWriter(
            folder / f"{number}.h5", dataset=f"set {number}", split="train", body_model="standin-tiny"
        ) as writer:
            tiny_store.fill(writer, rows, textures=number == 0)
    tiny_store.write_estimates(folder / "pare.h5", tiny_store.FrameStore(folder / "1.h5"), [0, 1, 5])
    return folder


def module(folder: Path, **changes: Any) -> MixtureDataModule:
    first = DatasetSource(folder / "0.h5", probability=0.25)
    second = DatasetSource(folder / "1.h5", (folder / "pare.h5",), probability=0.75, self_mixing=True)
    loading = Loading(batch_size=4, evaluation_batch_size=5, batches_per_epoch=6, workers=0)
    settings = {
        "train": {"first": first, "second": second},
        "validation": {"held out": second, "other": first},
        "crop_px": 32,
        "body_model": "standin-tiny",
        "loading": loading,
    }
    return MixtureDataModule(**{**settings, **changes})


def set_up(folder: Path, stage: str = "fit", **changes: Any) -> MixtureDataModule:
    data = module(folder, **changes)
    data.setup(stage)
    return data


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return all(equal(a, b) for a, b in zip(first, second, strict=True))


def ids(batches: Any) -> list[tuple[int, int, int]]:
    return [
        (int(dataset), int(row), int(seed))
        for batch in batches
        for dataset, row, seed in zip(batch.dataset, batch.row, batch.seed, strict=True)
    ]


def test_batches_hold_samples_of_both_data_sets(folder):
    loader = set_up(folder).train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 6
    batch = batches[0]
    assert isinstance(batch, BodySample)
    assert batch.image.shape == (4, 3, 32, 32)
    assert batch.texture.shape == (4, *tiny_store.TEXTURE_SHAPE)
    rows = {(dataset, row) for dataset, row, _ in ids(batches)}
    assert {dataset for dataset, _ in rows} == {0, 1}


def test_workers_change_nothing(folder):
    alone = list(set_up(folder).train_dataloader())
    loading = Loading(batch_size=4, batches_per_epoch=6, workers=2)
    shared = list(set_up(folder, loading=loading).train_dataloader())
    assert equal(alone, shared)


def test_ranks_split_what_one_process_reads(folder):
    class Rank:
        def __init__(self, rank: int) -> None:
            self.global_rank, self.world_size = rank, 2
            self.fit_loop = lightning.Trainer(accelerator="cpu", logger=False).fit_loop

    per_rank = []
    for rank in range(2):
        data = set_up(folder, loading=Loading(batch_size=2, batches_per_epoch=6, workers=0))
        data.trainer = Rank(rank)
        per_rank.append(ids(data.train_dataloader()))
    together = [sample for pair in zip(*(np.array_split(rank, 6) for rank in per_rank), strict=True) for sample in pair]
    assert np.concatenate(together).tolist() == [list(sample) for sample in ids(set_up(folder).train_dataloader())]


def test_a_sample_is_turned_whole(folder):
    """Keypoints and bodies that were true of each other stay so: each moves by the same map."""
    turned = Augmentation(rotation_probability=1, rotation_deg=40)
    plain, augmented = (set_up(folder, augmentation=a, training_draws=NOISE_ONLY) for a in (None, turned))
    first, second = (next(iter(data.train_dataloader())) for data in (plain, augmented))
    assert equal(first.row, second.row)
    body = plain.body
    for before, after in ((first.body, second.body), (first.initial.body, second.initial.body)):
        meshes = [body(fields.parameters()).vertices for fields in (before, after)]
        # A turn about the optical axis keeps depths and distances from it.
        torch.testing.assert_close(meshes[0][..., 2], meshes[1][..., 2], atol=1e-5, rtol=0)
        distance = [mesh[..., :2].norm(dim=-1) for mesh in meshes]
        torch.testing.assert_close(distance[0], distance[1], atol=1e-5, rtol=0)
    assert not torch.allclose(first.body.transl, second.body.transl)
    assert equal(first.camera, second.camera)
    torch.testing.assert_close(first.box_px[:, 2], second.box_px[:, 2])


def test_initial_estimates_are_of_the_kinds_asked_for(folder):
    only = {"held out": DatasetSource(folder / "1.h5", (folder / "pare.h5",))}
    data = set_up(folder, "validate", validation=only, evaluation_draws=ESTIMATE_ONLY)
    batches = list(data.val_dataloader())
    second = 2  # After the two of training.
    assert [sample[:2] for sample in ids(batches)] == [(second, row) for row in (0, 1, 5)]
    assert batches[0].initial.regressor.tolist() == [0, 0, 0]
    expected = tiny_store.estimate(5)
    torch.testing.assert_close(batches[0].initial.body.betas[2].numpy(), expected["betas"][0])
    assert float(batches[0].initial.focal_px[2]) == expected["focal_px"]


def test_validation_is_every_row_once_and_always_the_same(folder):
    first, second = (list(set_up(folder, seed=seed).val_dataloader()) for seed in (0, 1))
    assert equal(first, second)
    assert [sample[:2] for sample in ids(first)] == [(2, r) for r in range(8)] + [(3, r) for r in range(5)]


def test_data_sets_can_be_thinned_out(folder):
    source = {"thin": DatasetSource(folder / "1.h5", every=3)}
    data = set_up(folder, "test", test=source)
    assert [row for _, row, _ in ids(data.test_dataloader())] == [0, 3, 6]


def test_surface_points_are_padded_and_thinned_out(folder):
    few = set_up(folder, "validate", loading=Loading(evaluation_batch_size=8, workers=0, surface_points=7))
    batch = next(iter(few.val_dataloader()))
    stored = [min(7, 0 if row % 3 == 2 else 5 + row) for row in range(8)]
    assert batch.surface.weight.sum(dim=1).tolist() == stored
    points = tiny_store.surface_points(0, 5)
    torch.testing.assert_close(batch.surface.position_px[0, :5].numpy(), points.position_px, atol=1e-3, rtol=0)
    assert not batch.surface.position_px[0, 5:].any()
    assert batch.surface.sought.all()  # of those without points, too
    without = next(iter(set_up(folder, "validate").val_dataloader()))
    assert without.surface.weight.shape[1] == 0
    assert not without.surface.sought.any()


def test_a_data_set_without_textures_has_empty_ones(folder):
    batch = next(iter(set_up(folder).val_dataloader()))
    assert batch.dataset.unique().tolist() == [2]
    assert batch.texture.shape == (5, *tiny_store.TEXTURE_SHAPE)
    assert not batch.texture.any()
    data = set_up(folder, "test", test={"bare": DatasetSource(folder / "1.h5")})
    assert next(iter(data.test_dataloader())).texture.shape == (5, data.body.num_vertices, 4)


def test_textures_are_resampled_without_bleeding():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[2:6, 2:6] = (200, 100, 50, 255)
    small = fitted_texture(rgba, (3, 3, 4))
    assert small.shape == (3, 3, 4)
    seen = small[..., 3] > 0
    assert seen.any()
    assert (np.abs(small[seen][:, :3].astype(int) - (200, 100, 50)) <= 1).all()
    assert fitted_texture(np.zeros((5, 4), np.uint8), (6, 4)) is None
    assert fitted_texture(rgba, (8, 8, 4)) is rgba


def test_what_starts_is_said(folder, caplog):
    caplog.set_level("INFO")
    set_up(folder)
    said = caplog.text
    for part in (
        "first: 5 rows",
        "25.0% of the samples",
        "5 rows have no estimate by pare",
        "noise: MPJPE",
        "pare: MP",
    ):
        assert part in said, part


def test_bodies_of_another_stand_in_are_noticed(folder):
    with pytest.warns(UserWarning, match=r"0\.h5: its bodies are of standin-tiny, data\.body_model is standin"):
        set_up(folder, "test", test={"a": DatasetSource(folder / "0.h5")}, body_model="standin")


def test_numbers_have_names(folder):
    data = set_up(folder)
    assert [data.dataset_name(i) for i in range(4)] == ["first", "second", "held out", "other"]
    assert data.sequence_name(2, 1) == "sequence/ü1"
    assert data.sample_name(3, 4) == "tiny/s2/00004/0"


def test_missing_data_is_said(folder):
    with pytest.raises(InputError, match=r"no data set is configured in data\.test"):
        set_up(folder, "test").test_dataloader()
    with pytest.raises(InputError, match=r"nowhere\.h5"):
        set_up(folder, train={"a": DatasetSource(folder / "nowhere.h5")})
    with pytest.raises(InputError, match="no usable rows"):
        set_up(folder, training_draws=(InitialDraw("estimate", "prohmr"),))
    with pytest.raises(InputError, match="number 1 was asked for"):
        set_up(folder, training_draws=(InitialDraw("noise"), InitialDraw("estimate", "pare", sample=1)))
    twice = DatasetSource(folder / "1.h5", (folder / "pare.h5", folder / "pare.h5"))
    with pytest.raises(InputError, match="same regressor"):
        set_up(folder, train={"a": twice})


@pytest.mark.parametrize(("split", "stage"), [("test", "test"), ("test", "predict"), ("validation", "fit")])
def test_a_data_set_of_which_nothing_is_left_is_not_left_out_in_silence(folder, split, stage):
    """The other set has estimates, so that there would be something to report."""
    whole, bare = DatasetSource(folder / "1.h5", (folder / "pare.h5",)), DatasetSource(folder / "0.h5")
    named = {split: {"whole": whole, "bare": bare}}
    message = rf"0\.h5: none of its 5 rows can be used for {split}: 5 rows left out, which have no initial estimate"
    with pytest.raises(InputError, match=message):
        set_up(folder, stage, **named, evaluation_draws=ESTIMATE_ONLY)
    set_up(folder, stage, **{split: {"whole": whole}}, evaluation_draws=ESTIMATE_ONLY)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_test_set_of_which_all_rows_are_damaged_is_refused_by_name(folder, tmp_path, kept):
    """All of them, or all but one that has no estimate."""
    frames, pare = tmp_path / "1.h5", tmp_path / "pare.h5"
    frames.write_bytes((folder / "1.h5").read_bytes())
    pare.write_bytes((folder / "pare.h5").read_bytes())
    with h5py.File(frames, "r+") as file:
        damaged = file["images/jpeg"][:]
        # Two rows share an image; those of image 3 have no estimates.
        first, last = (0, int(file["images/start"][3])) if kept else (0, len(damaged))
        damaged[first:last:50] ^= 255
        file["images/jpeg"][:] = damaged
    left = r"none of its 2 rows can be used for test: 6 bad rows left out; 2 rows have no"
    source = DatasetSource(frames, (pare,), skip_bad_rows=True)
    data = module(folder, test={"a": source}, evaluation_draws=ESTIMATE_ONLY)
    with pytest.raises(InputError, match=rf"1\.h5: {left if kept else 'all of its 8 rows are bad'}"):
        data.setup("test")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DatasetSource, {"frames": Path("a.h5"), "probability": -1}),
        (DatasetSource, {"frames": Path("a.h5"), "every": 0}),
        (Loading, {"batch_size": 0}),
        (MixtureDataModule, {"crop_px": 0}),
        (MixtureDataModule, {"seed": -1}),
        (Loading, {"workers": -1}),
        (Loading, {"crop_margin": float("nan")}),
    ],
)
def test_settings_out_of_range_are_refused(kind, options):
    with pytest.raises(InputError):
        kind(**options)


def test_a_missing_synthetic_set_is_made_once(folder, tmp_path, monkeypatch):
    made = []

    def write(path: Path, settings: SyntheticSettings) -> None:
        made.append((path, settings))
        tiny_store.write_frames(path)

    monkeypatch.setattr(synthetic, "synthesize", write)
    settings = SyntheticSettings(frames=6, body="standin-tiny")
    source = DatasetSource(tmp_path / "new" / "train.h5", synthetic=settings)
    there = DatasetSource(folder / "0.h5", synthetic=settings)
    data = module(folder, train={"made": source, "there": there}, training_draws=NOISE_ONLY)
    data.prepare_data()
    data.prepare_data()
    assert made == [(source.frames, settings)]
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 6


def test_a_configuration_says_it_all(folder):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MixtureDataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "train": {
                    "h36m": {"frames": "a.h5", "estimates": ["b.h5"], "probability": 0.5, "self_mixing": True},
                    "made": {"frames": "c.h5", "synthetic": {"frames": 100, "seed": 3}},
                },
                "training_draws": [{"kind": "noise", "weight": 0.5}, {"kind": "estimate", "regressor": "pare"}],
                "augmentation": {"rotation_deg": 10},
                "noise": {"root_deg": 3},
                "loading": {"workers": 0},
            }
        }
    )
    data = parser.instantiate(config).data
    assert isinstance(data, MixtureDataModule)
    with pytest.raises(Exception, match="rotation_degrees"):
        parser.parse_object({"data": {"augmentation": {"rotation_degrees": 10}}})


def test_going_on_with_other_data_is_noticed(folder):
    state = set_up(folder).state_dict()
    set_up(folder).load_state_dict(state)
    with pytest.warns(UserWarning, match="trained on other data sets, probabilities or another seed"):
        set_up(folder, seed=1).load_state_dict(state)


class Recorder(lightning.LightningModule):
    """Writes down which samples it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 1), []

    def training_step(self, batch: BodySample) -> torch.Tensor:
        self.seen.append(batch.seed.tolist())
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: BodySample) -> None:
        assert len(batch.seed) in (3, 5)

    def predict_step(self, batch: BodySample) -> list[int]:
        return batch.row.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, steps: int, workers: int, start: Path | None = None) -> tuple[list, Any]:
    loading = Loading(batch_size=4, evaluation_batch_size=5, batches_per_epoch=6, workers=workers)
    model, data = Recorder(), module(folder, training_draws=NOISE_ONLY, loading=loading)
    runner = lightning.Trainer(max_steps=steps, **QUIET)
    runner.fit(model, data, ckpt_path=start, weights_only=True)
    return model.seen, runner


LIGHTNING = pytest.mark.filterwarnings(
    # Advice that a test need not follow, and Lightning's own use of what torch gave up.
    "ignore:.*does not have many workers",
    "ignore:.*treespec, LeafSpec.*:FutureWarning",
)


@LIGHTNING
def test_prediction_reads_every_row_once(folder):
    data = module(folder, test={"a": DatasetSource(folder / "1.h5")}, training_draws=NOISE_ONLY)
    rows = lightning.Trainer(**QUIET).predict(Recorder(), data)
    assert [row for batch in rows for row in batch] == list(range(8))


@LIGHTNING
@pytest.mark.parametrize("stop", [2, 6, 9])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_what_the_unbroken_one_saw(folder, tmp_path, stop, workers):
    """Epochs are of 6 batches: stopped in mid-epoch, at its end, and in the second one."""
    unbroken, _ = run(folder, 14, workers=0)
    assert len(unbroken) == len({tuple(seeds) for seeds in unbroken}) == 14
    first, trainer = run(folder, stop, workers)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    rest, _ = run(folder, 14, workers, tmp_path / "stopped.ckpt")
    assert first + rest == unbroken
