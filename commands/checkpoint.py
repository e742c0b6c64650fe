"""Checkpoints of the displacement network: make a small one to share."""

from pathlib import Path

from rich.console import Console

from lightning_modules.checkpoints import load_refinement, slim_checkpoint


def slim(source: Path, *, out: Path, config: Path | None = None) -> None:
    """Writes the network of a training checkpoint in half precision, without what only its training needs.

    What it writes serves `snugfit refine --checkpoint` and `snugfit test --ckpt_path`, and is loaded before the command
    ends to see that it does.

    Args:
        source: A checkpoint of `snugfit fit`.
        out: The file to write.
        config: A config file whose model.fitting takes the place of what the checkpoint says about the fit.

    Raises:
        InputError: If the source is no such checkpoint, or is the file to write, or the config does not go with it.
    """
    slim_checkpoint(source, out, config)
    module = load_refinement(out)
    weights = sum(parameter.numel() for parameter in module.network.parameters())
    sizes = " -> ".join(f"{path.stat().st_size / 1e6:.2f} MB" for path in (source, out))
    Console().print(f"wrote {out}: {weights / 1e6:.2f} M weights, {sizes}", soft_wrap=True, highlight=False)
