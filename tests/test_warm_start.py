"""Starting from the weights of another run: all of them, in every process, and never in a run that is resumed."""

import pytest
import torch
from lightning import Trainer
from tiny_refinement import PeopleData, tiny_module, tiny_network, write_tiny_checkpoint

from bodies import InputError
from lightning_modules.checkpoints import load_refinement
from lightning_modules.cli import without_meant_warnings
from lightning_modules.hourglass import DisplacementNetwork
from lightning_modules.warm_start import StartFrom, start_from


@pytest.fixture(autouse=True)
def _quiet():
    with without_meant_warnings():
        yield


@pytest.fixture
def checkpoint(tmp_path):
    return write_tiny_checkpoint(tmp_path / "tiny.ckpt")


def _other_weights(**changes):
    torch.manual_seed(5)
    sizes = {"width": 16, "stem_width": 8, "stacks": 2, "depth": 2, "feature_stride": 2, "encoder_blocks": 1}
    return DisplacementNetwork(**sizes | {"norm": "group", "zero_init_outputs": False} | changes)


def _trainer(folder, **changes):
    choices = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, max_epochs=-1, limit_val_batches=0, **choices | changes)


def _standing_still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def test_every_weight_is_that_of_the_checkpoint(checkpoint):
    network = _other_weights()
    start_from(network, checkpoint)
    expected = load_refinement(checkpoint).network.state_dict()
    assert network.state_dict().keys() == expected.keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)


def test_new_surface_outputs_change_no_displacement(checkpoint):
    network = _other_weights(surface_outputs=True)
    start_from(network, checkpoint)
    image, renderings = torch.rand(1, 3, 16, 16), torch.rand(1, 10, 16, 16)
    with torch.no_grad():
        output = network.eval().predict(image, renderings)
        expected = load_refinement(checkpoint).network(image, renderings)
    torch.testing.assert_close(output.displacement_px, expected, atol=0, rtol=0)
    assert output.surface is not None


def test_a_run_starts_from_it_and_a_resumed_run_does_not(checkpoint, tmp_path):
    expected = load_refinement(checkpoint).network.outputs[0].bias.detach()
    module = tiny_module(network=_other_weights(), optimizer=_standing_still)
    trainer = _trainer(tmp_path, max_steps=1, callbacks=[StartFrom(checkpoint)])
    trainer.fit(module, datamodule=PeopleData(people=2))
    torch.testing.assert_close(module.network.outputs[0].bias.detach(), expected, atol=0, rtol=0)
    with torch.no_grad():
        module.network.outputs[0].bias += 1.0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = tiny_module(network=_other_weights(), optimizer=_standing_still)
    trainer = _trainer(tmp_path, max_steps=2, callbacks=[StartFrom(tmp_path / "gone.ckpt")])
    trainer.fit(resumed, datamodule=PeopleData(people=2), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert trainer.global_step == 2
    torch.testing.assert_close(resumed.network.outputs[0].bias.detach(), expected + 1.0, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"stacks": 1}, "hourglasses.1"), ({"width": 32}, "image_encoder"), ({"stacks": 3}, "hourglasses.2")],
)
def test_a_network_of_other_sizes_is_refused_and_left_as_it_was(checkpoint, changes, name):
    network = _other_weights(**changes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match=rf"tiny\.ckpt: of another network, its {name}.* does not fit"):
        start_from(network, checkpoint)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.ckpt"):
        start_from(tiny_network(), tmp_path / "gone.ckpt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match=r"foreign\.ckpt"):
        start_from(tiny_network(), tmp_path / "foreign.ckpt")
