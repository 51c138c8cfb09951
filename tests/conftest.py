"""Fixtures every room may use: the real clips, small checkpoints, one thread."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest -m gpu --card cpu` shows that the tests of a card work themselves."""
    parser.addoption("--card", default="cuda", help="device of the tests marked gpu")


def pytest_configure(config: pytest.Config) -> None:
    """Only the tests marked gpu see a card: the others compare bit for bit, and prove the same on every machine."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What works on a checkpoint needs torch, which makes it."""
    for item in items:
        if isinstance(item, pytest.Function) and "miniature" in item.fixturenames:
            item.add_marker("needs_torch")


def pytest_collection_finish() -> None:
    """The thousands of collected tests live to the end; a collection of garbage need not look at them again.

    Every run in a test collects some times: models must be gone before the next is loaded.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def card(request: pytest.FixtureRequest) -> torch.device:
    """The CUDA device; tests that need it skip where there is none."""
    import torch

    kind: str = request.config.getoption("--card")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(kind)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "clips"
    if not folder.is_dir():
        pytest.skip("the real clips (../shared/clips) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def guide_files() -> Path:
    """The user's guide's own files beside the checkout; tests that need them skip where absent."""
    folder = REPOSITORY.parent / "shared" / "reference" / "quickstart"
    if not folder.is_dir():
        pytest.skip("the guide's own files (../shared/reference/quickstart) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete small random checkpoint in the layout of LTX-Video 0.9.5."""
    from simpletuner.models.ltxvideo.miniature import write_miniature

    return write_miniature(tmp_path_factory.mktemp("miniature") / "ltx-0.9.5", "0.9.5", seed=0)
