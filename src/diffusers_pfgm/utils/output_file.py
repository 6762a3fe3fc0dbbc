"""The argparse types of files that a script writes at its end."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf")  # formats of both Pillow and matplotlib


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """Return the argparse type of a file that is written at the end of a script. Its folder is created at the start.

    Args:
        *suffixes: the allowed suffixes, each of which selects a format.

    Returns:
        The type. It raises an ArgumentTypeError if the path is a folder or has another suffix, or if its folder cannot
        be created. argparse adds the name of the option.
    """

    def convert(text: str) -> Path:
        path = Path(text)
        if text.endswith("/") or path.is_dir():
            raise argparse.ArgumentTypeError(f"{text!r} is a folder. Add the name of a file")
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(
                f"{text!r} must end with the suffix of a format that can be written: {', '.join(suffixes)}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is in a folder that cannot be created: {error}") from error
        return path

    return convert


image_file = output_file(*SUFFIXES, ".bmp", ".gif")
figure_file = output_file(*SUFFIXES, ".svg", ".eps")
