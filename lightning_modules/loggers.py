"""Weights & Biases that works without an account."""

import os

from lightning.pytorch.loggers import WandbLogger


class OfflineFirstWandb(WandbLogger):
    """Sends runs to W&B if the environment has WANDB_API_KEY, else keeps them in files that `wandb sync` can send.

    Args:
        save_dir: Folder for the files, in its subfolder wandb.
        name: Name of the run.
        project: Project that the run belongs to.
        group: Runs that belong together.
    """

    def __init__(
        self, save_dir: str = "runs", name: str | None = None, project: str = "snugfit", group: str | None = None
    ) -> None:
        offline = not os.environ.get("WANDB_API_KEY")
        super().__init__(name=name, save_dir=save_dir, project=project, offline=offline, group=group)
