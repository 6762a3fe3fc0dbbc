"""Networks and generators of the tests."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DModel

from diffusers_pfgm import Parameterization, PFGMPipeline, PoissonFlowScheduler, posterior_mean


def make_smallest_unet(out_channels: int = 1, sample_size: int = 8, num_class_embeds: int | None = None) -> UNet2DModel:
    """A network of one block each way, for tests that call or save it hundreds of times. Its weights are fixed."""
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
