"""The share of a pipeline's time that is not spent in the network."""

import time
from statistics import median
from typing import Any

import pytest
from diffusers import UNet2DModel

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from tests.networks import seeded

ROUNDS = 7


@pytest.mark.parametrize("prediction_type", ["field", "epsilon"])
@pytest.mark.parametrize("channels", [(1, 28), (3, 32)], ids=["28 x 28", "32 x 32 x 3"])
def test_pipeline(channels: tuple[int, int], prediction_type: str) -> None:
    data_channels, size = channels
    unet = UNet2DModel(
        sample_size=size,
        in_channels=data_channels,
        out_channels=data_channels + (prediction_type == "field"),
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=16,
    ).eval()
    pipe = PFGMPipeline(unet, PoissonFlowScheduler(prediction_type=prediction_type, max_norm=2000.0))
    pipe.set_progress_bar_config(disable=True)
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(time.perf_counter())

    unet.register_forward_pre_hook(mark)
    unet.register_forward_hook(mark)
    shares = []
    for _ in range(ROUNDS):
        marks.clear()
        start = time.perf_counter()
        pipe(16, 20, seeded(), output_type="pt")
        total = time.perf_counter() - start
        own = sum(end - begin for begin, end in zip(marks[::2], marks[1::2], strict=True))
        shares.append(1 - own / total)
    parameters = sum(weight.numel() for weight in unet.parameters())
    print(f"\n{size} x {size} x {data_channels}, {parameters / 1e6:.1f} M, {prediction_type}: ", end="")
    print(f"{100 * median(shares):.2f} % of the time outside the network")
    assert median(shares) <= 0.03
