"""The published networks: their outputs are those of the authors' code, and their sizes those of the papers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_pfgm import Parameterization
from diffusers_pfgm.hub.convert import convert_checkpoint
from diffusers_pfgm.hub.convert.checkpoint_conversion import CLASSES
from diffusers_pfgm.hub.convert.presets import PRESETS

PUBLISHED = Path(__file__).parents[1] / "fixtures" / "published"
COUNTS = json.loads((PUBLISHED / "edm_parameter_counts.json").read_text())
EDM = Parameterization("epsilon", sigma_data=0.5)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", ["checkpoint_tiny_ddpmpp", "checkpoint_tiny_pfgm_ncsnpp"])
def test_networks_of_pfgm(name: str, raw: bool) -> None:
    network = convert_checkpoint(PUBLISHED / f"{name}.pth", str(PUBLISHED / f"{name}_config.json"), raw).network
    io = {key: torch.tensor(value) for key, value in np.load(PUBLISHED / f"{name}_io.npz").items()}
    with torch.no_grad():
        output = network(io["x"], io["z"]).sample
    prefix = "" if raw else "ema_"
    for value, expected in (
        (output[:, :3], io[f"{prefix}field_x"]),
        (output[:, 3].mean((1, 2)), io[f"{prefix}field_z"]),
    ):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["ddpmpp_class4", "ncsnpp", "adm"])
def test_networks_of_edm(name: str) -> None:
    path = PUBLISHED / f"tiny_edm_{name}"
    network = convert_checkpoint(f"{path}.safetensors", f"{path}_config.json").network
    io = {key: torch.tensor(value) for key, value in np.load(f"{path}_io.npz").items()}
    model_input, timestep, noise_level = EDM.model_input(io["x"], io["sigma"].view(-1, 1, 1, 1))
    with torch.no_grad():
        output = network(model_input, timestep, io.get("labels")).sample
    denoised = EDM.denoised(output, io["x"], noise_level)
    assert (denoised - io["denoised"]).abs().max() < 1e-5 * io["denoised"].abs().max()
    assert network.num_parameters() == json.loads(Path(f"{path}_config.json").read_text())["parameters"]


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("cifar10", 61_805_572),  # "62 M" in the paper
        ("cifar10_deep", 106_633_732),
        # No paper states these two: they are counted from the authors' code with their configurations.
        ("celeba64", 61_805_572),
        ("bedroom256", 124_076_292),
        ("edm_cifar10_ddpmpp", COUNTS["cifar10_ddpmpp"]),
        ("edm_cifar10_ncsnpp", COUNTS["cifar10_ncsnpp"]),
        ("edm_ffhq64_ddpmpp", COUNTS["ffhq64_ddpmpp"]),
        ("edm_imagenet64_adm", 295_899_267),  # "296 M" in EDM's table 7
    ],
)
def test_sizes_of_the_published_networks(preset: str, count: int) -> None:
    name, options, _ = PRESETS[preset]
    with torch.device("meta"):
        assert CLASSES[name](**options).num_parameters() == count
