"""What a run can do without: a failure of it is a warning, and training goes on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...utils.messages import one_line
from .checkpoints import newest_whole_checkpoint


@contextlib.contextmanager
def side_output(what: str, output_dir: str | Path) -> Iterator[None]:
    """Turn an error into a warning that names what failed, why, and the last good checkpoint.

    Args:
        what: is written, drawn or measured inside, as the beginning of a sentence.
        output_dir: of the run.
    """
    try:
        yield
    except Exception as error:  # a full disk and a full memory have errors of many classes
        warnings.warn(
            f"{what} failed ({one_line(error)}). The run goes on. {last_checkpoint(output_dir)}", stacklevel=3
        )


def last_checkpoint(output_dir: str | Path) -> str:
    """A sentence that names the newest checkpoint in the output folder that is whole."""
    found = newest_whole_checkpoint(output_dir)
    return "There is no checkpoint yet." if found is None else f"The last good checkpoint is {found}."
