"""The smallest network, for tests that call or save it hundreds of times."""

import torch
from diffusers import UNet2DModel


def make_smallest_unet(out_channels: int = 1, sample_size: int = 8, num_class_embeds: int | None = None) -> UNet2DModel:
    """A network of one block each way. Its weights are random, and the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=sample_size,
            in_channels=1,
            out_channels=out_channels,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            mid_block_type=None,
            norm_num_groups=4,
            num_class_embeds=num_class_embeds,
        ).eval()
