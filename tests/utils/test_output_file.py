"""Output files are checked when the arguments are parsed, before any work."""

import argparse
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from diffusers_pfgm.plots.image_grid import save_image_grid
from diffusers_pfgm.utils.output_file import figure_file, image_file, output_file


def test_the_folder_of_an_output_file_is_created(tmp_path: Path) -> None:
    path = tmp_path / "été 1" / "grid.PNG"
    assert output_file(".png")(str(path)) == path and path.parent.is_dir()


@pytest.mark.parametrize(
    "name, message",
    [
        ("grids/", "is a folder"),
        ("grids", "is a folder"),
        ("v1.5/", "is a folder"),
        ("missing/grid", r"must end with the suffix of a format that can be written: \.png, \.jpg$"),
        ("missing/grid.foo", "must end with the suffix"),
    ],
)
def test_folders_and_other_formats_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "grids").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        output_file(".png", ".jpg")(f"{tmp_path}/{name}")


def test_the_formats_of_the_scripts_can_be_written(tmp_path: Path) -> None:
    formats = [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf"]
    for suffix in [*formats, ".bmp", ".gif"]:
        for channels in range(1, 5):
            save_image_grid(image_file(f"{tmp_path}/{channels}{suffix}"), torch.rand(1, channels, 4, 4))
    for suffix in [*formats, ".svg", ".eps"]:
        Figure(figsize=(1, 1)).savefig(figure_file(f"{tmp_path}/figure{suffix}"))
