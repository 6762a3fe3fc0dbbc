"""Networks fit their images."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_pfgm.training.network import make_unet


@pytest.mark.parametrize("resolution", [8, 28, 32])
def test_default_network_fits_its_images(resolution: int) -> None:
    unet = make_unet(resolution, 1, 2)
    assert unet(torch.zeros(1, 1, resolution, resolution), 1.0).sample.shape == (1, 2, resolution, resolution)


def test_own_network_must_fit(tmp_path: Path) -> None:
    make_unet(8, 3, 4).save_config(tmp_path)
    assert isinstance(make_unet(8, 3, 4, str(tmp_path)), UNet2DModel)
    with pytest.raises(ValueError, match=r"has \(in_channels, out_channels\) = \(3, 4\), but .* need \(1, 2\)"):
        make_unet(8, 1, 2, str(tmp_path))
    with pytest.raises(ValueError, match="`--resolution` 30 is not a multiple of 4"):
        make_unet(30, 1, 2)


@pytest.mark.parametrize(("resolution", "millions"), [(8, 0.65), (32, 6.5)])
def test_default_network_has_the_size_it_says(resolution: int, millions: float) -> None:
    assert make_unet(resolution, 3, 4).num_parameters() == pytest.approx(millions * 1e6, rel=0.02)
