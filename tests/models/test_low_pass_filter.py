"""Resampling with a low-pass filter equals inserting zeros, padding, convolving and taking every other pixel."""

import pytest
import torch
from torch.nn import functional

from diffusers_pfgm.models.edm_blocks import ResamplingConv
from diffusers_pfgm.models.ncsnpp_blocks import FIR_FILTER, InputResidual, InputSkip, OutputSkip

FILTER = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8


def filtered(x: torch.Tensor, before: int, after: int, gain: float = 1.0) -> torch.Tensor:
    """Convolve each row and column with the filter, one pixel after the other, after padding with zeros."""
    x = functional.pad(x, (before, after, before, after))
    for dim in (2, 3):
        count = x.shape[dim] - len(FILTER) + 1
        pixels = [sum(FILTER[k] * x.select(dim, i + 3 - k) for k in range(4)) for i in range(count)]
        x = torch.stack(pixels, dim=dim)  # type: ignore[arg-type]
    return gain * x


def downsampled(x: torch.Tensor) -> torch.Tensor:
    return filtered(x, 1, 1)[:, :, ::2, ::2]


def upsampled(x: torch.Tensor) -> torch.Tensor:
    zeros = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    zeros[:, :, ::2, ::2] = x
    return filtered(zeros, 2, 1, gain=4)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 5, 4, 10)])
def test_resampling(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    for resample, expected in (("down", downsampled(x)), ("up", upsampled(x))):
        module = ResamplingConv(shape[1], shape[1], 0, resample, FIR_FILTER).double()
        assert not [*module.parameters()] and not module.state_dict()
        assert torch.allclose(module(x), expected, atol=1e-14)
    ones = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    assert torch.allclose(upsampled(ones)[..., 2:-2, 2:-2], torch.ones(12, 12, dtype=torch.float64))


def test_image_pyramids() -> None:
    """Levels of the pyramids of NCSN++ (arXiv 2011.13456, appendix H) against the slow resampling."""
    image, h = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 16, 4, 4, dtype=torch.float64)

    residual = InputResidual(3, 16).double()
    weight, bias = residual.conv.weight, residual.conv.bias
    assert weight is not None
    # The 3 × 3 convolution and the filter share one padding, of 2 pixels.
    expected = (functional.conv2d(filtered(image, 2, 2), weight, bias, stride=2) + h) / 2**0.5
    next_image, features = residual(image, h)
    assert torch.equal(next_image, features) and torch.allclose(features, expected, atol=1e-12)

    skip = InputSkip(3, 16).double()
    next_image, features = skip(image, h)
    assert torch.allclose(next_image, downsampled(image), atol=1e-14)
    assert torch.allclose(features, skip.conv(downsampled(image)) + h, atol=1e-12)

    output = OutputSkip(16, 3).double()
    small = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.allclose(output(h, small), output(h, None) + upsampled(small), atol=1e-12)
