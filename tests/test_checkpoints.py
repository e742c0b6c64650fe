"""Slim checkpoints, and modules made from them, with runs of a few steps of Lightning's command line."""

import json
from pathlib import Path

import pytest
import torch
from tiny_refinement import NOISE, PeopleData

from bodies import InputError
from datamodules.initial import InitialDraw, NoiseScale
from datamodules.store_layout import Gender
from lightning_modules.checkpoints import load_refinement, slim_checkpoint
from lightning_modules.cli import main as lightning_main
from lightning_modules.cli import without_meant_warnings
from lightning_modules.refinement import RefinementModule
from main import main

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "run_name": "tiny",
    "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 3, "limit_val_batches": 0, "logger": False},
    "model": {
        "crop_px": 32,
        "body": {"model": "standin-tiny", "rasterizer": "cpu"},
        "network": {
            "init_args": {"width": 16, "stem_width": 8, "stacks": 2, "depth": 2, "feature_stride": 2, "norm": "batch"}
        },
        "fitting": {"solver": {"class_path": "fitting.LevenbergMarquardt", "init_args": {"max_steps": 3}}},
    },
}
#: With batch norm there are counters among the weights.
CALLBACKS = [
    {"class_path": "lightning_modules.callbacks.EmaWeights", "init_args": {"decay": 0.9}},
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": "checkpoints", "filename": "last", "every_n_train_steps": 3},
    },
]


class People(PeopleData):
    """Takes what configs/base.yaml says of the data, and does not look at it.

    Args:
        crop_px: Side of the crops.
        body_model: Must be the tiny stand-in.
        true_body_models: Must be empty.
        noise: Not looked at.
        training_draws: Not looked at.
        evaluation_draws: Not looked at.
    """

    def __init__(
        self,
        crop_px: int = 32,
        body_model: str = "standin-tiny",
        true_body_models: dict[Gender, str] | None = None,
        noise: NoiseScale = NOISE,
        training_draws: list[InitialDraw] | None = None,
        evaluation_draws: list[InitialDraw] | None = None,
    ) -> None:
        super().__init__(crop_px, body_model, true_body_models, noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a run of three steps left its checkpoint, checkpoints/last.ckpt."""
    folder = tmp_path_factory.mktemp("run")
    settings = folder / "tiny.json"
    settings.write_text(json.dumps({**SETTINGS, "trainer": {**SETTINGS["trainer"], "callbacks": CALLBACKS}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TERM", "dumb")
        lightning_main(["fit", "--config", str(settings)], People)
    return folder


@pytest.fixture
def source(folder):
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture
def slim(source, tmp_path):
    slim_checkpoint(source, tmp_path / "slim.ckpt")
    return tmp_path / "slim.ckpt"


def test_a_slim_checkpoint_is_the_average_in_half_precision_and_its_settings(source, slim):
    before, after = (torch.load(path, weights_only=True) for path in (source, slim))
    assert before["current_model_state"].keys() == after["state_dict"].keys()
    assert after["hyper_parameters"] == before["hyper_parameters"]
    assert set(after) == {
        "state_dict", "hyper_parameters", "hparams_name", "pytorch-lightning_version", "epoch", "global_step"
    }  # fmt: skip
    for name, average in before["state_dict"].items():
        value = after["state_dict"][name]
        assert value.dtype == (torch.float16 if average.is_floating_point() else average.dtype)
        # Half precision has 11 significant bits, and steps of 2^-24 next to zero.
        torch.testing.assert_close(value.to(average), average, rtol=2**-11, atol=2**-25)
    moved = [(before["current_model_state"][name] != value).any() for name, value in before["state_dict"].items()]
    assert any(moved)
    # Two bytes a number, the file's own 0.7 kB a tensor, and the settings.
    numbers, tensors = sum(value.numel() for value in after["state_dict"].values()), len(after["state_dict"])
    assert slim.stat().st_size < 2 * numbers + 700 * tensors + 10_000
    assert slim.stat().st_size < source.stat().st_size / 3


def test_numbers_that_half_precision_cannot_hold_are_kept_and_nonsense_is_refused(source, tmp_path):
    checkpoint = torch.load(source, weights_only=True)
    name = next(name for name in checkpoint["state_dict"] if name.endswith("running_var"))
    checkpoint["state_dict"][name][0] = 1e6
    torch.save(checkpoint, tmp_path / "large.ckpt")
    slim_checkpoint(tmp_path / "large.ckpt", tmp_path / "slim.ckpt")
    assert torch.load(tmp_path / "slim.ckpt", weights_only=True)["state_dict"][name][0] == 1e6
    checkpoint["state_dict"][name][0] = torch.nan
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    with pytest.raises(InputError, match=rf"nan\.ckpt: the weights {name} are not finite"):
        slim_checkpoint(tmp_path / "nan.ckpt", tmp_path / "again.ckpt")
    assert not (tmp_path / "again.ckpt").exists()


def test_a_module_is_made_of_either(source, slim):
    whole, small = load_refinement(source), load_refinement(slim)
    assert not small.training
    assert small.crop_px == 32
    assert small.body.name == "standin-tiny"
    assert small.prepare.settings.rasterizer == "auto"
    assert small.fitting.solver.max_steps == 3
    state = torch.load(source, weights_only=True)["state_dict"]
    for name, value in whole.state_dict().items():
        assert value.dtype == small.state_dict()[name].dtype == state[name].dtype
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, 3, 32, 32, generator=generator), torch.rand(2, 10, 32, 32, generator=generator)
    with torch.no_grad():
        large, less = whole.network(*inputs), small.network(*inputs)
    # Weights rounded by 2^-12 each, through some thirty layers: the sums of their errors stay below 1 %.
    assert (large - less).abs().max() < 0.01 * large.abs().max()


def test_body_and_prior_can_be_others_than_those_named(source, tmp_path):
    checkpoint = torch.load(source, weights_only=True)
    checkpoint["hyper_parameters"]["body"]["model"] = "gone.pkl"
    checkpoint["hyper_parameters"]["fitting"]["prior"] = "gone.pkl"
    torch.save(checkpoint, tmp_path / "elsewhere.ckpt")
    module = load_refinement(tmp_path / "elsewhere.ckpt", body="standin-tiny", prior="none")
    assert module.body.name == "standin-tiny"
    assert module.fitting.prior == "none"
    assert module.fitting.solver.max_steps == 3


def test_lightning_takes_a_slim_checkpoint(folder, slim, monkeypatch):
    with without_meant_warnings():
        module = RefinementModule.load_from_checkpoint(slim, weights_only=True)
    assert next(module.parameters()).dtype == torch.float32
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TERM", "dumb")
    tables = [{"class_path": "lightning_modules.callbacks.ResultTables"}]
    words = ["--trainer.logger", "false", "--trainer.callbacks", json.dumps(tables), "--trainer.accelerator", "cpu"]
    lightning_main(["test", "--ckpt_path", str(slim), *words], People)
    assert (folder / "runs" / "tables" / "test.csv").is_file()


def test_the_command_says_what_it_wrote(source, tmp_path, capsys):
    out = tmp_path / "new" / "small.ckpt"
    assert main(["checkpoint", "slim", str(source), "--out", str(out)]) == 0
    assert f"wrote {out}: 0.0" in capsys.readouterr().out
    assert load_refinement(out).network.stacks == 2


def test_the_fit_can_be_chosen_after_training(source, tmp_path):
    config, out = tmp_path / "tuned.yaml", tmp_path / "tuned.ckpt"
    config.write_text(
        "run_name: other\nmodel: {crop_px: 64, fitting: {weights: {pose_prior: 7.0, initial_pose: 3.0}}}\n"
    )
    slim_checkpoint(source, out, config)
    module = load_refinement(out)
    assert (module.fitting.weights.pose_prior, module.fitting.weights.initial_pose) == (7.0, 3.0)
    assert module.fitting.solver.max_steps == 3  # the checkpoint's, for the config does not say
    assert module.crop_px == 32
    assert load_refinement(source).fitting.weights.pose_prior == 4.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {crop_px: 64}", "has no model.fitting"),
        ("model: {fitting: {weights: {pose_prio: 7.0}}}", "its model.fitting cannot be used"),
        ("model: {fitting: {prior: gone.pkl}}", "gone.pkl"),
        ("model: {fitting: [", "cannot be read as a config file"),
        ("- 3", "cannot be read as a config file"),
    ],
)
def test_a_config_without_a_fit_is_refused_by_name(source, tmp_path, text, message):
    config, out = tmp_path / "tuned.yaml", tmp_path / "tuned.ckpt"
    config.write_text(text)
    with pytest.raises(InputError, match=r"tuned\.yaml: ") as caught:
        slim_checkpoint(source, out, config)
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.yaml"]


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def _bad_checkpoints(source: Path, folder: Path) -> dict[str, Path]:
    whole = torch.load(source, weights_only=True)
    hyperparameters = whole["hyper_parameters"]
    network = {**hyperparameters["network"], "init_args": {**hyperparameters["network"]["init_args"], "width": 32}}
    contents = {
        "no_settings": {"state_dict": whole["state_dict"]},
        "no_weights": {key: value for key, value in whole.items() if key != "state_dict"},
        "other_width": {**whole, "hyper_parameters": {**hyperparameters, "network": network}},
        "other_class": {**whole, "hyper_parameters": {**hyperparameters, "_instantiator": "os.system"}},
        "missing_prior": {
            **whole,
            "hyper_parameters": {**hyperparameters, "fitting": {**hyperparameters["fitting"], "prior": "gone.pkl"}},
        },
        "pickled": {**whole, "extra": _Touch(folder / "ran")},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.ckpt")
    (folder / "text.ckpt").write_text("weights")
    return {name: folder / f"{name}.ckpt" for name in (*contents, "text", "absent")}


def test_what_is_no_checkpoint_is_refused_by_name(source, tmp_path, capsys):
    messages = {
        "absent": "no such checkpoint",
        "text": "not a checkpoint of snugfit",
        "no_settings": "not a checkpoint of snugfit",
        "no_weights": "not a checkpoint of snugfit (it holds no weights)",
        "pickled": "not a checkpoint of snugfit",
        "other_width": "does not fit this version of the network",
        "other_class": "does not fit this version of the network",
        "missing_prior": "gone.pkl",
    }
    for name, path in _bad_checkpoints(source, tmp_path).items():
        with pytest.raises(InputError) as caught:
            load_refinement(path)
        assert str(caught.value).startswith(f"{path}: "), name
        assert messages[name] in str(caught.value), name
    assert not (tmp_path / "ran").exists()
    for words, message in (
        ([tmp_path / "text.ckpt", "--out", tmp_path / "out.ckpt"], "text.ckpt: not a checkpoint"),
        ([tmp_path / "absent.ckpt", "--out", tmp_path / "out.ckpt"], "absent.ckpt: no such checkpoint"),
        ([source, "--out", source], "last.ckpt: would replace the checkpoint"),
    ):
        assert main(["checkpoint", "slim", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.ckpt").exists()
