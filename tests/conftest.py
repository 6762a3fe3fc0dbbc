"""Shared data: scikit-learn's digits, and reference numbers of the papers' authors."""

from __future__ import annotations

import gc
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.warm_python import WarmPython, warm_python

if TYPE_CHECKING:  # pytest's own process imports this file, and needs none of these
    import numpy as np
    import torch

FIXTURES = Path(__file__).parent / "fixtures"


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("dist", "no") == "no":  # the process imports the tests itself
        gc.disable()  # imports make a million objects and no garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "plain_python" in getattr(item, "fixturenames", ()):  # starts processes of its own
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # collections during the tests need not visit what is imported
    gc.enable()


@pytest.fixture(scope="session")
def digits() -> torch.Tensor:
    """1,797 digits (B, 1, 8, 8) in [-1, 1], float64."""
    import torch
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images / 8 - 1).unsqueeze(1)


@pytest.fixture(scope="session")
def statistics() -> dict[str, Any]:
    return json.loads((FIXTURES / "statistics.json").read_text())


@pytest.fixture(scope="session")
def field_targets() -> dict[str, np.ndarray]:
    import numpy as np

    return dict(np.load(FIXTURES / "field_targets.npz"))


@pytest.fixture(scope="session")
def endpoints() -> dict[str, torch.Tensor]:
    import numpy as np
    import torch

    return {name: torch.tensor(value) for name, value in np.load(FIXTURES / "sampler_endpoints.npz").items()}


@pytest.fixture
def quick_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Place the axes of figures without a search for the best place, which takes as long as drawing them."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda self, figure: None)


@pytest.fixture(scope="session")
def hub_socket() -> Iterator[socket.socket]:
    """A reserved port of this machine, at which new processes look for the Hub. Tests of the Hub serve it there."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A link to the folder in which new processes keep what they download. Tests of the Hub let it point elsewhere."""
    folder = tmp_path_factory.mktemp("huggingface")
    (folder / "shared").mkdir()
    (folder / "home").symlink_to(folder / "shared")
    return folder / "home"


@pytest.fixture(scope="session")
def plain_python(hub_socket: socket.socket, hub_home: Path) -> Iterator[WarmPython]:
    """Starts new processes in which diffusers is imported, but not this package."""
    names = {"HF_ENDPOINT": "http://127.0.0.1:{1}".format(*hub_socket.getsockname()), "HF_HOME": str(hub_home)}
    names |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | names
    with warm_python("diffusers.pipelines.pipeline_utils", env=environment) as python:
        yield python


@pytest.fixture(scope="session")
def python(plain_python: WarmPython) -> Iterator[WarmPython]:
    """Starts new processes in which this package is imported, with its training."""
    with plain_python.with_modules("diffusers_pfgm.training.run.loop") as python:
        yield python
