"""The argparse type of files that a script writes at its end."""

from __future__ import annotations

import argparse
from pathlib import Path


def output_file(text: str) -> Path:
    """Return the path of a file that is written at the end of a script. Its folder is created at the start.

    Raises:
        ArgumentTypeError: if the path is a folder or has no suffix, which selects the format of the file, or if its
            folder cannot be created. argparse adds the name of the option.
    """
    path = Path(text)
    if text.endswith("/") or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder. Add the name of a file")
    if not path.suffix:
        raise argparse.ArgumentTypeError(f"{text!r} has no suffix, which selects the format. Add that of the default")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is in a folder that cannot be created: {error}") from error
    return path
