"""Optional outputs of a run, such as images and records. If one fails, the run warns and continues."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...utils.messages import one_line
from .checkpoints import newest_whole_checkpoint


@contextlib.contextmanager
def side_output(what: str, output_dir: str | Path) -> Iterator[None]:
    """A context that converts an error into a warning with the cause and the last good checkpoint.

    Args:
        what: The output that is made inside, as the subject of the sentence "... failed".
        output_dir: The output folder of the run.
    """
    try:
        yield
    except Exception as error:  # a full disk or memory raises errors of many classes
        warnings.warn(
            f"{what} failed ({one_line(error)}). The run continues. {last_checkpoint(output_dir)}", stacklevel=3
        )


def last_checkpoint(output_dir: str | Path) -> str:
    """Return a sentence that names the newest undamaged checkpoint in the output folder.

    Newer checkpoints that are damaged are skipped, with a warning for each.
    """
    path = newest_whole_checkpoint(output_dir)
    return "There is no checkpoint yet." if path is None else f"The last good checkpoint is {path}."
