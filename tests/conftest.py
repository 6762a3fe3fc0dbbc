"""Shared data: scikit-learn's digits, and reference numbers of the papers' authors."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.datasets import load_digits

from diffusers_pfgm import Parameterization, PFGMPipeline, PoissonFlowScheduler, posterior_mean
from tests.warm_python import WarmPython, warm_python

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def digits() -> torch.Tensor:
    """1,797 digits (B, 1, 8, 8) in [-1, 1], float64."""
    return torch.tensor(load_digits().images / 8 - 1).unsqueeze(1)


@pytest.fixture(scope="session")
def statistics() -> dict[str, Any]:
    return json.loads((FIXTURES / "statistics.json").read_text())


@pytest.fixture(scope="session")
def field_targets() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "field_targets.npz"))


@pytest.fixture(scope="session")
def endpoints() -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in np.load(FIXTURES / "sampler_endpoints.npz").items()}


@pytest.fixture
def quick_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Place the axes of figures without a search for the best place, which takes as long as drawing them."""
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


def make_tiny_unet(
    in_channels: int = 1,
    out_channels: int = 2,
    sample_size: int | tuple[int, int] = 8,
    num_class_embeds: int | None = None,
) -> UNet2DModel:
    """A network with random weights, which are the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            num_class_embeds=num_class_embeds,
        ).eval()


def make_tiny_pipeline(
    channels: int = 1, sample_size: int | tuple[int, int] = 8, prediction_type: str = "field"
) -> PFGMPipeline:
    out_channels = channels + (prediction_type == "field")
    scheduler = PoissonFlowScheduler(prediction_type=prediction_type, max_norm=300.0)
    pipe = PFGMPipeline(make_tiny_unet(channels, out_channels, sample_size), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ExactNetwork(torch.nn.Module):
    """A network with the exact output of a parameterization for these charges, called like `UNet2DModel`.

    With `labels`, a class label selects the charges of this class, and the null class selects all charges. The shape of
    the input and the labels of each call are recorded in `calls`.
    """

    def __init__(
        self,
        charges: torch.Tensor,
        parameterization: Parameterization,
        aug_dim: float | None = None,
        labels: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.charges, self.parameterization, self.aug_dim, self.labels = charges, parameterization, aug_dim, labels
        self.dtype, self.device, self.calls = charges.dtype, charges.device, []
        self.config = SimpleNamespace(
            in_channels=charges.shape[1],
            out_channels=parameterization.output_channels(charges.shape[1]),
            sample_size=tuple(charges.shape[2:]),
            num_class_embeds=None if labels is None else int(labels.max()) + 2,
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        self.calls.append((tuple(sample.shape), class_labels))
        sigma = self.parameterization.sigma(torch.as_tensor(timestep).to(sample.dtype)).reshape(
            -1, *[1] * (sample.ndim - 1)
        )
        x = sample / self.parameterization.c_in(sigma)
        denoised = torch.empty_like(x)
        labels = [None] * len(x) if class_labels is None else [int(label) for label in class_labels]
        for label in {*labels}:
            same = slice(None) if label is None or label > self.labels.max() else self.labels == label
            rows = [row for row, each in enumerate(labels) if each == label]
            row_sigmas = sigma.flatten().expand(len(x))[rows]
            denoised[rows] = posterior_mean(x[rows], row_sigmas, self.charges[same], self.aug_dim)
        output = self.parameterization.target(denoised, x, sigma)
        return SimpleNamespace(sample=output) if return_dict else (output,)
