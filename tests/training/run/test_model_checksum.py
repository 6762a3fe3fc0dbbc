"""A checksum notices each change of the weights, in any dtype and shape."""

import zlib

import pytest
import torch

from diffusers_pfgm.training.run.model_checksum import weights_checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checksum_depends_on_every_number(dtype: torch.dtype) -> None:
    network = torch.nn.Linear(3, 2).to(dtype)
    network.register_buffer("steps", torch.tensor(1.0, dtype=dtype))  # without a dimension
    before = weights_checksum(network)
    assert weights_checksum(network) == before
    for values in (network.weight, network.bias, network.steps):
        with torch.no_grad():
            values.view(-1)[-1] += 1
        assert weights_checksum(network) != before
        before = weights_checksum(network)


def test_the_checksum_is_that_of_the_bytes() -> None:  # a resumed tuning compares it with that of its checkpoint
    network = torch.nn.Linear(3, 2)
    expected = zlib.crc32(
        network.bias.detach().numpy().tobytes(), zlib.crc32(network.weight.detach().numpy().tobytes())
    )
    assert weights_checksum(network) == expected
