"""Pictures, tables, predictions, the network's size, and averaged weights, in short runs on people made by code."""

import csv
import io
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from rich.console import Console
from tiny_refinement import BODY, CROP_PX, PeopleData, batch_of, tiny_module

from bodies import InputError
from lightning_modules.accumulators import SampleTable
from lightning_modules.callbacks import EmaWeights, NetworkSummary, OverlayPictures, PredictionFiles, ResultTables
from lightning_modules.cli import without_meant_warnings
from lightning_modules.overlays import HEIGHT_PX, refinement_picture
from lightning_modules.result_tables import body_lines, map_lines, rich_table, table_lines, write_lines, write_samples
from renderers.drawing import NO_FLOW


@pytest.fixture(autouse=True)
def _quiet():
    with without_meant_warnings():
        yield


def _read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def _trainer(folder: Path, *callbacks: Callback, **changes) -> Trainer:
    keywords = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return Trainer(**{**keywords, **changes})


# ---- pictures


def test_a_picture_shows_where_the_displacement_is():
    module = tiny_module()
    batch = module.prepare(batch_of([0, 1]))
    picture = refinement_picture(batch, 1, batch.displacement_px[1], batch.truth, module.body)
    height = picture.shape[0]
    assert height > HEIGHT_PX  # captions above
    # Five panels with gaps between them; the third and fourth are equal but for the colour wheel.
    assert picture.shape[1] == 5 * HEIGHT_PX + 4 * 6
    panels = [picture[-HEIGHT_PX:, k * (HEIGHT_PX + 6) :][:, :HEIGHT_PX] for k in range(5)]
    predicted, true = panels[2][: HEIGHT_PX // 2], panels[3][: HEIGHT_PX // 2]
    assert (predicted == true).all()
    factor = HEIGHT_PX // CROP_PX
    shown = (true != np.array(NO_FLOW)).any(axis=-1)[factor // 2 :: factor, factor // 2 :: factor]
    mask = batch.mask[1].numpy()[: CROP_PX // 2]
    assert (shown == mask).all()
    assert (panels[0] != panels[1]).any()


def test_as_many_pictures_as_asked_for(tmp_path):
    trainer = _trainer(tmp_path, OverlayPictures(pictures=3))
    trainer.test(tiny_module(), datamodule=PeopleData(people=5), verbose=False)
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == ["test_000.png", "test_001.png", "test_002.png"]
    assert cv2.imread(str(tmp_path / "pictures" / names[0])).shape[1] == 5 * HEIGHT_PX + 24


# ---- tables


def _errors():
    table = SampleTable(("zero/epe_px", "initial/pve_mm", "displacements/pve_mm", "displacements/accepted"))
    values = torch.tensor([[1.0, 90, 60, 1], [2.0, 110, 80, 0], [math.nan, 100, math.inf, 1]])
    defined = torch.ones_like(values, dtype=torch.bool)
    defined[2, 0] = False
    table.update(torch.tensor([0, 0, 1]), torch.tensor([4, 5, 4]), torch.tensor([7, 8, 9]), values, defined)
    return table.table()


def test_table_lines_are_groups_times_rows():
    errors = _errors()
    lines = table_lines(errors.columns, errors.by_dataset(), lambda key: f"set {key[0]}")
    rows = ("zero", "initial", "displacements")
    # The one sample of set 1 can have no end-point error.
    assert [(line.group, line.row, line.samples) for line in lines] == [
        *(("set 0", row, 2) for row in rows),
        *(("set 1", row, 1) for row in rows[1:]),
    ]
    assert lines[2].numbers == {"pve_mm": 70.0, "accepted": 0.5}
    assert math.isnan(lines[4].numbers["pve_mm"])  # a failure stays visible
    assert [line.row for line in map_lines(lines)] == ["zero"]
    assert len(body_lines(lines)) == 4


def test_the_console_shows_names_as_people_write_them():
    errors = _errors()
    lines = table_lines(errors.columns, errors.overall(), lambda key: "all")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(rich_table(body_lines(lines), "title"))
    text = console.export_text()
    assert "PVE" in text
    assert "100.0" in text
    assert "nan" in text
    assert "66.7%" in text


def test_csv_files_are_what_the_numbers_are(tmp_path):
    errors = _errors()
    write_lines(tmp_path / "a/all.csv", table_lines(errors.columns, errors.overall(), lambda key: "all"))
    rows = _read(tmp_path / "a/all.csv")
    assert [row["row"] for row in rows] == ["zero", "initial", "displacements"]
    assert (rows[0]["epe_px"], rows[0]["pve_mm"], rows[1]["pve_mm"]) == ("1.5", "", "100.0")
    write_samples(tmp_path / "samples.csv", errors, lambda dataset, row: f"{dataset}:{row}")
    samples = _read(tmp_path / "samples.csv")
    assert [s["sample"] for s in samples] == ["0:7", "0:8", "1:9"]
    assert samples[2]["zero/epe_px"] == ""
    assert samples[2]["displacements/pve_mm"] == "inf"


def test_tables_by_data_set_and_sequence(tmp_path, capsys):
    _trainer(tmp_path, ResultTables()).validate(tiny_module(), datamodule=PeopleData(people=5), verbose=False)
    rows = _read(tmp_path / "tables/val.csv")
    counts = {(row["group"], row["row"]): int(row["samples"]) for row in rows}
    assert counts["all", "initial"] == 5
    assert counts["data set 0", "initial"] == 3
    assert counts["data set 1", "displacements"] == 2
    weighted = [3 * float(r["pve_mm"]) for r in rows if (r["group"], r["row"]) == ("data set 0", "initial")]
    weighted += [2 * float(r["pve_mm"]) for r in rows if (r["group"], r["row"]) == ("data set 1", "initial")]
    overall = next(float(r["pve_mm"]) for r in rows if (r["group"], r["row"]) == ("all", "initial"))
    assert sum(weighted) / 5 == pytest.approx(overall, rel=1e-12)
    sequences = {row["group"] for row in _read(tmp_path / "tables/val_sequences.csv")}
    assert sequences == {f"data set {d} sequence {s}" for d, s in ((0, 0), (1, 0), (0, 1))}
    assert "data set 1" in capsys.readouterr().out


# ---- predictions, size


def test_predictions_are_one_file_per_data_set_in_the_order_of_rows(tmp_path, capsys):
    trainer = _trainer(tmp_path, PredictionFiles())
    trainer.predict(tiny_module(), datamodule=PeopleData(people=5), return_predictions=False)
    files = sorted((tmp_path / "predictions").iterdir())
    assert [f.name for f in files] == ["data_set_0.npz", "data_set_1.npz"]
    with np.load(files[0], allow_pickle=False) as arrays:
        assert arrays["row_ids"].tolist() == [f"data set 0 row {row}" for row in (0, 2, 4)]
        assert arrays["rotations"].shape == (3, 24, 3, 3)
        # Focal lengths carry the noise of the initial estimate; the principal point is that of the photo.
        assert arrays["center_px"].tolist() == [[80.0, 60.0]] * 3
    assert "data_set_1.npz" in capsys.readouterr().out.replace("\n", "")


def test_the_size_of_the_network_is_printed(tmp_path, capsys):
    trainer = _trainer(tmp_path, NetworkSummary(), fast_dev_run=1)
    trainer.fit(tiny_module(), datamodule=PeopleData(people=2))
    assert "Displacement network: 0.02 M parameters" in capsys.readouterr().out


# ---- averaged weights


class _Weights(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(pl_module.network.outputs[0].weight.detach().clone())


def test_a_checkpoint_holds_the_average_and_training_goes_on_without_it(tmp_path):
    weights = _Weights()
    trainer = _trainer(tmp_path, weights, EmaWeights(decay=0.2), max_steps=3, limit_val_batches=0)
    data = PeopleData(people=6)
    trainer.fit(tiny_module(), datamodule=data)
    average = weights.values[0]  # the first update copies
    for updates, value in enumerate(weights.values[1:], start=1):
        keep = min(0.2, (1 + updates) / (10 + updates))  # 2 / 11, then 0.2
        average = keep * average + (1 - keep) * value
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=False)["state_dict"]
    torch.testing.assert_close(state["network.outputs.0.weight"], average)
    assert not torch.allclose(average, weights.values[-1])
    # A test loads the average; the callback, which waits for training, has nothing to say about it.
    module = tiny_module()
    _trainer(tmp_path, EmaWeights(decay=0.2)).test(module, data.test_dataloader(), path, False, weights_only=False)
    torch.testing.assert_close(module.network.outputs[0].weight.detach(), average)


def test_a_decay_is_a_share():
    with pytest.raises(InputError, match="less than 1, got 1"):
        EmaWeights(decay=1.0)


def test_callbacks_are_for_this_module_alone(tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(AssertionError, match="not BoringModel"):
        NetworkSummary().on_fit_start(_trainer(tmp_path), BoringModel())
    assert tiny_module().body.name == BODY
