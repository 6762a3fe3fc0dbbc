"""The published networks: their outputs are those of the authors' code, and their sizes those of the papers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import DhariwalUNet, NCSNpp, Parameterization, SongUNet
from diffusers_pfgm.hub.convert import convert_checkpoint
from diffusers_pfgm.hub.convert.networks import CLASSES
from diffusers_pfgm.hub.convert.presets import PRESETS

PUBLISHED = Path(__file__).parents[1] / "fixtures" / "published"
COUNTS = json.loads((PUBLISHED / "edm_parameter_counts.json").read_text())
EDM = Parameterization("epsilon", sigma_data=0.5)
SMALL: dict[str, Any] = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1}


def small_networks() -> list[Any]:
    return [
        NCSNpp(**SMALL, attn_resolutions=(4,)),
        SongUNet(**SMALL, attn_resolutions=(4,), model_channels=16, num_class_embeds=3),
        SongUNet(**SMALL, model_channels=16, embedding_type="fourier", encoder_type="residual", channel_mult_noise=2),
        DhariwalUNet(**SMALL, attn_resolutions=(4,), model_channels=16, num_class_embeds=3),
    ]


@pytest.mark.parametrize("raw", [False, True])
def test_ddpmpp_of_pfgm(raw: bool) -> None:
    name = "checkpoint_tiny_ddpmpp"
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


@pytest.mark.parametrize("index", range(4))
def test_they_are_called_and_saved_like_a_unet(index: int, tmp_path: Path) -> None:
    network = small_networks()[index].eval()
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    options = {"class_labels": labels} if network.config.get("num_class_embeds") else {}
    with torch.no_grad():
        outputs = [network(x, t, **options).sample for t in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5]))]
        assert torch.equal(outputs[0], network(x, 0.5, return_dict=False, **options)[0])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.5, **options).sample, outputs[0])
        half = loaded.to(torch.bfloat16)(x.bfloat16(), torch.tensor(0.5), **options).sample
    assert half.dtype == torch.bfloat16 and (half - outputs[0]).abs().max() < 0.2 * outputs[0].abs().max() + 0.05


@pytest.mark.parametrize("index", range(4))
def test_gradient_checkpointing_changes_nothing(index: int) -> None:
    network = small_networks()[index].eval()
    x = torch.randn(2, 3, 8, 8)
    gradients = []
    for _ in range(2):
        network.zero_grad()
        network(x, torch.tensor([0.3, 0.7])).sample.square().mean().backward()
        gradients.append([*network.parameters()][-6].grad.clone())
        network.enable_gradient_checkpointing()
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-8) and gradients[0].abs().max() > 0


def test_errors_name_the_option() -> None:
    for network_class in (NCSNpp, SongUNet, DhariwalUNet):
        with pytest.raises(ValueError, match="`sample_size` must be a multiple of 2 for 2 levels, but is 9"):
            network_class(9, block_out_channels=(16, 32))
    with pytest.raises(ValueError, match="`embedding_type` must be one of"):
        SongUNet(embedding_type="learned")
    with pytest.raises(ValueError, match="`encoder_type` must be one of"):
        SongUNet(encoder_type="skip")
