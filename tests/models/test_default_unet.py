"""The default network and configured networks fit their images."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_pfgm.models.default_unet import make_unet


@pytest.mark.parametrize("resolution", [8, 28, 32])
def test_default_network_fits_its_images(resolution: int) -> None:
    unet = make_unet(resolution, 1, 2)
    assert unet(torch.zeros(1, 1, resolution, resolution), 1.0).sample.shape == (1, 2, resolution, resolution)


def test_own_network_must_fit(tmp_path: Path) -> None:
    make_unet(8, 3, 4).save_config(tmp_path)
    assert isinstance(make_unet(8, 3, 4, str(tmp_path)), UNet2DModel)
    with pytest.raises(ValueError, match=r"has \(in_channels, out_channels\) = \(3, 4\), but .* need \(1, 2\)"):
        make_unet(8, 1, 2, str(tmp_path))
    with pytest.raises(
        ValueError, match=r"`resolution` \(option `--resolution`\) must be a multiple of 4 .*, but is 30\."
    ):
        make_unet(30, 1, 2)


@pytest.mark.parametrize(("resolution", "millions"), [(8, 0.65), (32, 6.5)])
def test_default_network_has_the_documented_size(resolution: int, millions: float) -> None:
    assert make_unet(resolution, 3, 4).num_parameters() == pytest.approx(millions * 1e6, rel=0.02)


def written(folder: Path, **changes: object) -> str:
    """Write the configuration of a network for 8 x 8 pixels to a file, as a user would, and return its path."""
    values = {"sample_size": 8, "in_channels": 1, "out_channels": 2, "block_out_channels": [8, 16]}
    values |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": 4}
    kept = {name: value for name, value in (values | changes).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(kept))
    return str(folder / "config.json")


def test_the_resolution_is_that_of_the_images_drawn(tmp_path: Path) -> None:
    for size in (8, [8, 8], None, "absent"):
        assert make_unet(8, 1, 2, written(tmp_path, sample_size=size)).config.sample_size == 8
    for size in (8, [16, 8], [8, 16]):
        with pytest.raises(
            ValueError, match=r"has the sample_size .*8.*, but `resolution` \(option `--resolution`\) is 16"
        ):
            make_unet(16, 1, 2, written(tmp_path, sample_size=size))


def test_a_configuration_that_cannot_serve_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"`--resolution`\) must be a multiple of 2, since the 2 blocks of .*, but is 9\."
    ):
        make_unet(9, 1, 2, written(tmp_path, sample_size=None))
    with pytest.raises(ValueError, match="describes a UNet2DConditionModel, but must describe a UNet2DModel"):
        make_unet(8, 1, 2, written(tmp_path, _class_name="UNet2DConditionModel"))
    with pytest.raises(
        ValueError, match=r"`config` \(option `--model_config_name_or_path`\) .*nowhere.* cannot be read"
    ):
        make_unet(8, 1, 2, str(tmp_path / "nowhere"))
    (tmp_path / "torn.json").write_text('{"sample_size": 8,')
    with pytest.raises(
        ValueError, match=r"`config` \(option `--model_config_name_or_path`\) .*torn\.json.* cannot be read"
    ):
        make_unet(8, 1, 2, str(tmp_path / "torn.json"))
    with pytest.raises(
        ValueError, match=r"`config` \(option `--model_config_name_or_path`\) .* does not describe a network"
    ):
        make_unet(8, 1, 2, written(tmp_path, block_out_channels=[8]))
