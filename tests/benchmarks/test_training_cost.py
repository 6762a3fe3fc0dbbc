"""Time of a training step compared with a DDPM step of diffusers with the same network and batch."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from diffusers_pfgm import Charges, ClassCharges, FieldObjective, recommend_hyperparameters
from diffusers_pfgm.training.data.order import position_generators
from tests.benchmarks.test_field_speed import seconds
from tests.networks import seeded

BATCH = 128
NETWORKS = {
    "demo's": ((32, 64), 1),
    "1.1 M": ((32, 64, 64), 1),
    "4 M": ((64, 128, 128), 1),
}


def network(name: str, size: int, in_channels: int, out_channels: int, classes: int | None = None) -> UNet2DModel:
    channels, layers = NETWORKS[name]
    return UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=16,
        num_class_embeds=classes,
    )


def step_of(unet: UNet2DModel, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Return a training step like that of diffusers' train_unconditional.py."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    ema = EMAModel(unet.parameters(), use_ema_warmup=True, foreach=True)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    return step


def ddpm_step(name: str, clean: torch.Tensor) -> Callable[[], None]:
    unet = network(name, clean.shape[-1], clean.shape[1], clean.shape[1])
    scheduler = DDPMScheduler()

    def loss() -> torch.Tensor:
        noise, timesteps = torch.randn(clean.shape), torch.randint(0, 1000, (len(clean),))
        output = unet(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
        return torch.nn.functional.mse_loss(output.float(), noise.float())

    return step_of(unet, loss)


def field_step(
    name: str, clean: torch.Tensor, charges: torch.Tensor | Charges | ClassCharges, labels: torch.Tensor | None = None
) -> Callable[[], None]:
    classes = None if labels is None else 11
    unet = network(name, clean.shape[-1], clean.shape[1], clean.shape[1] + 1, classes)
    norm = clean.flatten(1).norm(dim=1).mean().item()
    objective = FieldObjective(recommend_hyperparameters(norm, clean[0].numel()))

    def loss() -> torch.Tensor:
        generators = position_generators(0, 0, len(clean))
        options = {} if labels is None else {"class_labels": labels}
        return objective(unet, clean, charges=charges, generator=generators, **options).loss

    return step_of(unet, loss)


def images(count: int, channels: int, size: int) -> torch.Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(count, channels, 7, 7, generator=seeded(), dtype=torch.float32) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.mark.parametrize("name", ["demo's", "4 M"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_field_of_512(name: str, channels: int, size: int) -> None:
    charges = images(512, channels, size)
    plain, ours = seconds(
        ddpm_step(name, charges[:BATCH]), field_step(name, charges[:BATCH], charges), rounds=5 if name == "4 M" else 9
    )
    print(f"\n{size} x {size} x {channels}, {name} network, {BATCH} of 512: {ours / plain:.3f} of diffusers' DDPM step")
    assert ours / plain <= 1.05


@pytest.mark.parametrize("classes", [False, True])
def test_field_of_60_000(classes: bool) -> None:
    pixels = images(60_000, 1, 28)
    labels = torch.arange(60_000) % 10 if classes else None
    charges = Charges(pixels) if labels is None else ClassCharges(pixels, labels)
    known = None if labels is None else labels[:BATCH].where(torch.arange(BATCH) % 10 > 0, 10)  # a tenth without label
    plain, ours = seconds(
        ddpm_step("1.1 M", pixels[:BATCH]), field_step("1.1 M", pixels[:BATCH], charges, known), rounds=5
    )
    shown = "10 classes" if classes else "no classes"
    print(f"\nall of 60,000 images 28 x 28, {shown}: {ours / plain:.2f} of diffusers' DDPM step")
    assert ours / plain <= 1.5


def test_memory_of_60_000() -> None:
    # A separate process, because this one may reuse freed memory, which would not be counted.
    script = """
import re, torch
from pathlib import Path
from diffusers_pfgm import Charges, normalized_field

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

x, z, pixels = torch.randn(128, 784), torch.rand(128), torch.rand(60_000, 784)
normalized_field(x[:2], z[:2], pixels[:50])  # the libraries' own buffers
before = kilobytes("VmRSS")
charges = Charges(pixels)
normalized_field(x, z, charges)
print(kilobytes("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    megabytes = int(done.stdout) / 1000
    print(f"\nall of 60,000 images 28 x 28 as charges: {megabytes:.0f} MB beyond the images")
    assert megabytes <= 1000
