"""What every test runs under: one thread per process, no network, no chance, and no GPU test without a GPU."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Before anything imports numpy, torch or numba. pytest-xdist runs a process per core, so more threads only get in each
# other's way; set these yourself to run one test on more.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# wandb writes its files and sends nothing; albumentations does not ask for a newer release of itself when imported.
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg"}

# The same examples in every run, whatever the machine's speed: a red test stays red.
hypothesis.settings.register_profile("snugfit", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("snugfit")


def _missing_for_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    return None if importlib.util.find_spec("nvdiffrast") else "nvdiffrast is not installed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `gpu` where they cannot run; SNUGFIT_REQUIRE_GPU=1 lets them fail instead."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or os.environ.get("SNUGFIT_REQUIRE_GPU", "0") == "1":
        return
    if missing := _missing_for_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {missing}"))


@pytest.fixture(scope="session", autouse=True)
def _files_outside_the_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What wandb leaves behind goes with the other temporary files."""
    folder: Path = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(folder))
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Each test starts from the same state of torch's global generator, alone or after others."""
    import torch

    torch.manual_seed(0)
