"""VPoser and ProHMR's flow as plain torch modules with the official names, to write checkpoints and as oracles."""

import os
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Malicious:
    """Makes a folder when it is unpickled by a reader that runs what a file says."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def randomized(module: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Weights as if trained: nothing zero or one, norms with statistics of their own."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d):
            child.running_mean.copy_(0.2 * noise(child.running_mean))
            child.running_var.copy_(0.5 + noise(child.running_var).abs())
            child.weight.data = 1 + 0.2 * noise(child.weight)
            child.bias.data = 0.2 * noise(child.bias)
        elif isinstance(child, nn.Linear):
            child.weight.data = gain * noise(child.weight) / child.in_features**0.5
            child.bias.data = 0.1 * noise(child.bias)
    return module.eval().requires_grad_(False)


class OracleVposer1(nn.Module):
    """Version 1, layer by layer."""

    def __init__(self, hidden: int = 512, latents: int = 32) -> None:
        super().__init__()
        self.bodyprior_enc_bn1 = nn.BatchNorm1d(63)
        self.bodyprior_enc_fc1 = nn.Linear(63, hidden)
        self.bodyprior_enc_bn2 = nn.BatchNorm1d(hidden)
        self.bodyprior_enc_fc2 = nn.Linear(hidden, hidden)
        self.bodyprior_enc_mu = nn.Linear(hidden, latents)
        self.bodyprior_enc_logvar = nn.Linear(hidden, latents)
        self.dropout = nn.Dropout(0.1)
        self.bodyprior_dec_fc1 = nn.Linear(latents, hidden)
        self.bodyprior_dec_fc2 = nn.Linear(hidden, hidden)
        self.bodyprior_dec_out = nn.Linear(hidden, 126)

    def encode(self, pose: Tensor) -> Tensor:
        values = functional.leaky_relu(self.bodyprior_enc_fc1(self.bodyprior_enc_bn1(pose)), 0.2)
        values = self.dropout(self.bodyprior_enc_bn2(values))
        return self.bodyprior_enc_mu(functional.leaky_relu(self.bodyprior_enc_fc2(values), 0.2))

    def six_numbers(self, latent: Tensor) -> Tensor:
        values = self.dropout(functional.leaky_relu(self.bodyprior_dec_fc1(latent), 0.2))
        return self.bodyprior_dec_out(functional.leaky_relu(self.bodyprior_dec_fc2(values), 0.2))


class _Normal(nn.Module):
    def __init__(self, hidden: int, latents: int) -> None:
        super().__init__()
        self.mu, self.logvar = nn.Linear(hidden, latents), nn.Linear(hidden, latents)

    def forward(self, values: Tensor) -> Tensor:
        return self.mu(values)


class OracleVposer2(nn.Module):
    """Version 2, layer by layer."""

    def __init__(self, hidden: int = 512, latents: int = 32) -> None:
        super().__init__()
        self.encoder_net = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(63),
            nn.Linear(63, hidden),
            nn.LeakyReLU(),
            nn.BatchNorm1d(hidden),
            nn.Dropout(0.1),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, hidden),
            _Normal(hidden, latents),
        )
        self.decoder_net = nn.Sequential(
            nn.Linear(latents, hidden),
            nn.LeakyReLU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, 126),
        )

    def encode(self, pose: Tensor) -> Tensor:
        return self.encoder_net(pose)

    def six_numbers(self, latent: Tensor) -> Tensor:
        return self.decoder_net(latent)


def tiny_vposer(hidden: int = 32, latents: int = 8, seed: int = 0) -> OracleVposer1:
    """A narrow one that decodes postures, no joint anywhere near half a turn."""
    oracle = randomized(OracleVposer1(hidden, latents), seed, gain=0.5)
    oracle.bodyprior_dec_out.bias.copy_(torch.tensor([1.0, 0, 0, 1, 0, 0]).repeat(21))
    return oracle.double()


def write_vposer(folder: Path, oracle: OracleVposer1 | OracleVposer2) -> Path:
    """The experiment folder with its snapshot, in the format of its time."""
    snapshots = folder / "snapshots"
    snapshots.mkdir(parents=True)
    if isinstance(oracle, OracleVposer1):
        (folder / "vposer_smpl.py").write_text("raise SystemExit('code of a download was run')\n")
        (folder / "TR00_E096.ini").write_text("[network]\nnum_neurons : 512\nlatentD : 32\n")
        # Before torch 1.6 files were no archives.
        path = snapshots / "TR00_E096.pt"
        torch.save(oracle.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        (folder / "V02_05.yaml").write_text("model_params:\n  latentD: 32\n  num_neurons: 512\n")
        path = snapshots / "V02_05_epoch=13_val_loss=0.03.ckpt"
        state = {f"vp_model.{key}": value for key, value in oracle.state_dict().items()}
        state["bm_train.shapedirs"] = torch.zeros(3)
        write_lightning(path, state)
    return path


class ModelCheckpoint:
    """What Lightning before 1.5 left in its checkpoints: the class, as the key of what it remembers."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


class CfgNode(dict):
    """Settings with attributes, as yacs has them."""


CfgNode.__module__ = "yacs.config"


def write_lightning(path: Path, state: dict[str, Tensor], **others: object) -> None:
    """A training checkpoint of old around weights; the classes it names can be imported while it is written only."""
    settings = CfgNode(MODEL=CfgNode(FLOW=144))
    settings.__dict__["__immutable__"] = True
    content = {
        "epoch": 13,
        "global_step": 4711,
        "pytorch-lightning_version": "1.3.6",
        "state_dict": state,
        "callbacks": {ModelCheckpoint: {"monitor": "val_loss", "best_model_score": torch.tensor(0.03)}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": {"cfg": settings, "best": np.float64(0.03)},
        **others,
    }
    modules = {}
    for kind in (ModelCheckpoint, CfgNode):
        parts = kind.__module__.split(".")
        modules.update({name: ModuleType(name) for name in (".".join(parts[: n + 1]) for n in range(len(parts)))})
        setattr(modules[kind.__module__], kind.__name__, kind)
    with patch.dict(sys.modules, modules):
        torch.save(content, path)


class _ActNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dummy_buffer", torch.tensor(1.0))
        self.register_buffer("initialized", torch.tensor(True))
        self.log_scale = nn.Parameter(0.3 * torch.randn(144))
        self.shift = nn.Parameter(0.3 * torch.randn(144))

    def forward(self, values: Tensor, features: Tensor) -> Tensor:
        return values * self.log_scale.exp() + self.shift


class _LuLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dummy_buffer", torch.tensor(1.0))
        self.bias = nn.Parameter(0.3 * torch.randn(144))
        self.lower_entries = nn.Parameter(0.05 * torch.randn(144 * 143 // 2))
        self.upper_entries = nn.Parameter(0.05 * torch.randn(144 * 143 // 2))
        self.unconstrained_upper_diag = nn.Parameter(0.5 + 0.3 * torch.randn(144))

    def forward(self, values: Tensor, features: Tensor) -> Tensor:
        lower = torch.eye(144).to(values)
        upper = torch.diag(torch.log1p(self.unconstrained_upper_diag.exp()) + 1e-3)
        below = above = 0
        for row in range(144):  # row by row, each longer or shorter than the last by one
            lower[row, :row] = self.lower_entries[below : below + row]
            upper[row, row + 1 :] = self.upper_entries[above : above + 143 - row]
            below, above = below + row, above + 143 - row
        return (lower @ (upper @ values.T)).T + self.bias


class _Residual(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.batch_norm_layers = nn.ModuleList([nn.BatchNorm1d(hidden) for _ in range(2)])
        self.linear_layers = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(2)])
        self.dropout = nn.Dropout(0.5)

    def forward(self, values: Tensor) -> Tensor:
        inner = self.linear_layers[0](torch.relu(self.batch_norm_layers[0](values)))
        return values + self.linear_layers[1](self.dropout(torch.relu(self.batch_norm_layers[1](inner))))


class _Net(nn.Module):
    def __init__(self, hidden: int, features: int, depth: int) -> None:
        super().__init__()
        self.initial_layer = nn.Linear(72 + features, hidden)
        self.blocks = nn.ModuleList([_Residual(hidden) for _ in range(depth)])
        self.final_layer = nn.Linear(hidden, 72)

    def forward(self, values: Tensor) -> Tensor:
        values = self.initial_layer(values)
        for block in self.blocks:
            values = block(values)
        return self.final_layer(values)


class _Coupling(nn.Module):
    def __init__(self, hidden: int, features: int, depth: int, odd: bool) -> None:
        super().__init__()
        self.register_buffer("dummy_buffer", torch.tensor(1.0))
        self.register_buffer("identity_features", torch.arange(144)[int(odd) :: 2])
        self.register_buffer("transform_features", torch.arange(144)[int(not odd) :: 2])
        self.transform_net = _Net(hidden, features, depth)

    def forward(self, values: Tensor, features: Tensor) -> Tensor:
        kept = values[:, self.identity_features]
        moved = values[:, self.transform_features] + self.transform_net(torch.cat([kept, features], dim=1))
        result = torch.empty_like(values)
        result[:, self.identity_features], result[:, self.transform_features] = kept, moved
        return result


class OracleFlow(nn.Module):
    """ProHMR's flow, layer by layer, under the names that its checkpoint has."""

    def __init__(self, hidden: int = 1024, features: int = 2048, layers: int = 4, depth: int = 2) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for layer in range(layers):
            parts += [_ActNorm(), _LuLinear(), _Coupling(hidden, features, depth, odd=layer % 2 == 1)]
        self.flow = nn.Module()
        self.flow.flow = nn.Module()
        self.flow.flow._transform = nn.Module()
        self.flow.flow._transform.register_buffer("dummy_buffer", torch.tensor(1.0))
        self.flow.flow._transform._transforms = nn.ModuleList(parts)

    def forward(self, values: Tensor, features: Tensor) -> Tensor:
        for part in self.flow.flow._transform._transforms:
            values = part(values, features)
        return values


def tiny_flow(*, calm: bool = False) -> OracleFlow:
    """A random flow of ProHMR's build, narrow, in double precision.

    A calm one is more like a trained one: upright people at rest are mapped near zero, and nothing is stretched a
    hundred times more than anything else.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = OracleFlow(hidden=24, features=16)
    oracle = randomized(oracle.double(), gain=0.3 if calm else 1.0)
    parts = oracle.flow.flow._transform._transforms
    if calm:
        upright, rest = torch.tensor([1.0, 0, 0, 0, -1, 0]), torch.tensor([1.0, 0, 0, 0, 1, 0])
        parts[0].shift.copy_(-parts[0].log_scale.exp() * torch.cat([upright, rest.repeat(23)]))
        for part in parts[1::3]:
            part.lower_entries *= 0.2
            part.upper_entries *= 0.2
            part.bias *= 0.2
        for part in parts[3::3]:
            part.shift *= 0.2
    return oracle


def write_prohmr(path: Path, oracle: OracleFlow) -> Path:
    """ProHMR's checkpoint, with some of what else is in it."""
    state = {
        "initialized": torch.tensor(True),
        "backbone.conv1.weight": torch.zeros(64, 3, 7, 7),
        **oracle.state_dict(),
        "flow.fc_head.init_cam": torch.zeros(1, 1, 3),
        "discriminator.D_conv1.weight": torch.zeros(32, 9, 1, 1),
    }
    write_lightning(path, state)
    return path
