"""Time of a call of DDPM++ compared with that of diffusers' UNet2DModel with the same widths, blocks and attention."""

import time
from statistics import median
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_pfgm import NCSNpp

ROUNDS = 25
WIDTHS = (64, 128, 128, 128)


def make_unet() -> UNet2DModel:
    """Diffusers' network whose resampling blocks are residual, as in DDPM++, and which attends at 16 × 16."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=4,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        attention_head_dim=None,
        downsample_type="resnet",
        upsample_type="resnet",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", *("ResnetDownsampleBlock2D",) * 2),
        up_block_types=(*("ResnetUpsampleBlock2D",) * 2, "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    ).eval()


def time_of_a_call(network: Any, x: torch.Tensor, t: torch.Tensor, trains: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(trains):
        output = network(x, t).sample
    if trains:
        output.square().mean().backward()
    return time.perf_counter() - start


@pytest.mark.parametrize("trains", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_ddpmpp(batch_size: int, trains: bool) -> None:
    networks = (NCSNpp(block_out_channels=WIDTHS, layers_per_block=2).eval(), make_unet())
    x, t = torch.randn(batch_size, 3, 32, 32), torch.linspace(0.1, 40, batch_size)
    times = [[time_of_a_call(network, x, t, trains) for network in networks] for _ in range(ROUNDS)]
    ratio = median(ours / theirs for ours, theirs in times)
    ours, theirs = (network.num_parameters() for network in networks)
    print(f"\n{batch_size} x 3 x 32 x 32, {ours / 1e6:.2f} M parameters: {ratio:.2f} of UNet2DModel with ", end="")
    print(f"{theirs / 1e6:.2f} M, {median(each[0] for each in times):.3f} s")
    assert abs(ours / theirs - 1) < 0.02
    assert ratio <= 1.1
