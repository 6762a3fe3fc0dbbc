"""Networks fit their images, and used folders are refused."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_pfgm.training.network import check_output_dir, make_unet


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


def test_a_used_output_folder_is_refused(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "new")
    check_output_dir(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    check_output_dir(tmp_path, overwrite=True)
    check_output_dir(tmp_path, resume_from="latest")
    check_output_dir(tmp_path, resume_from=str(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match=r"is not empty and may hold another model.*`--overwrite_output_dir`"):
        check_output_dir(tmp_path)
    with pytest.raises(ValueError, match="is not empty"):  # another run's checkpoint
        check_output_dir(tmp_path, resume_from=str(tmp_path / "other" / "checkpoint-3"))
    with pytest.raises(ValueError, match="is a file"):
        check_output_dir(tmp_path / "model_index.json", overwrite=True)


def test_any_file_makes_an_output_folder_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        check_output_dir(tmp_path)


@pytest.mark.parametrize(("resolution", "millions"), [(8, 0.65), (32, 6.5)])
def test_default_network_has_the_size_it_says(resolution: int, millions: float) -> None:
    assert make_unet(resolution, 3, 4).num_parameters() == pytest.approx(millions * 1e6, rel=0.02)
