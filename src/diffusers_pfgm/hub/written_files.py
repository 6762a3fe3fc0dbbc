"""The list of files that a training run has written into its output folder. No other files are published.

The folder may also contain the user's own files, even of the same types, so file names cannot distinguish them.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path, PurePosixPath

from diffusers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME

from ..utils.atomic_file import atomic_file
from .model_card import CARD, is_generated_card
from .serialization import CODE, INDEX, PACKAGE

LIST = ".written.json"
SHARD = re.compile(r"diffusion_pytorch_model-\d{5}-of-\d{5}\.safetensors")


class WrittenFiles:
    """Names of the files, other than the pipeline's, that a run has written. They are saved in the output folder.

    Args:
        folder: the output folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._list = self.folder / LIST

    def names(self) -> list[str]:
        """Return the names that were added, relative to the folder and with "/"."""
        try:
            names = json.loads(self._list.read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def add(self, name: str) -> None:
        """Add a name to the list.

        Raises:
            OSError: if the list cannot be written, for instance on a full disk; then it is unchanged.
        """
        names = self.names()
        if name not in names:
            with atomic_file(self._list) as partial:
                partial.write_text(json.dumps([*names, name], indent=1))

    def published(self) -> list[str]:
        """Return the files to publish: those of the pipeline, its model card, and those on the list, if they exist.

        A model card that the user has written is left out, unless it is on the list. Targets of symbolic links are
        left out with a warning.
        """
        names = [*_pipeline_files(self.folder), *self.names()]
        if is_generated_card(self.folder / CARD):
            names.append(CARD)
        existing = [name for name in dict.fromkeys(names) if (self.folder / name).exists()]
        linked = [name for name in existing if not _is_inside(self.folder, name)]
        if linked:
            warnings.warn(f"Not published, because a symbolic link leads to it: {', '.join(linked)}.", stacklevel=2)
        return [name for name in existing if name not in linked]


def _pipeline_files(folder: Path) -> list[str]:
    """Return the names of the files that `PFGMPipeline.save_pretrained` writes."""
    names = [INDEX, CODE, f"unet/{CONFIG_NAME}", "scheduler/scheduler_config.json", f"scheduler/{PACKAGE}.py"]
    if (folder / "unet" / SAFETENSORS_WEIGHTS_NAME).exists():
        return [*names, f"unet/{SAFETENSORS_WEIGHTS_NAME}"]
    index = folder / "unet" / SAFE_WEIGHTS_INDEX_NAME
    shards = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else set()
    return [
        *names,
        f"unet/{SAFE_WEIGHTS_INDEX_NAME}",
        *sorted(f"unet/{name}" for name in shards if SHARD.fullmatch(name)),
    ]


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name is a regular file in the folder, and no part of its path is a symbolic link."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        return False
    paths = [folder.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return paths[-1].is_file() and not any(path.is_symlink() for path in paths)
