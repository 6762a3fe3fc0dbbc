"""Output files are checked when the arguments are parsed, before any work."""

import argparse
from pathlib import Path

import pytest

from diffusers_pfgm.utils.output_file import output_file


def test_the_folder_of_an_output_file_is_created(tmp_path: Path) -> None:
    path = tmp_path / "été 1" / "grid.png"
    assert output_file(str(path)) == path and path.parent.is_dir()


@pytest.mark.parametrize(
    "name, message",
    [("grids/", "is a folder"), ("grids", "is a folder"), ("v1.5/", "is a folder"), ("missing/grid", "has no suffix")],
)
def test_folders_and_names_without_suffix_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "grids").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        output_file(f"{tmp_path}/{name}")
