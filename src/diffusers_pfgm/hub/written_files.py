"""The list of files that a run has written into its output folder; nothing else is published.

The folder may hold the user's own files as well, even of the same kinds, so that no pattern of names can tell them
apart.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path, PurePosixPath

from diffusers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME

from ..utils.atomic_file import atomic_file
from .model_card import CARD, is_generated_card
from .serialization import CODE, INDEX

LIST = ".written.json"
SHARD = re.compile(r"diffusion_pytorch_model-\d{5}-of-\d{5}\.safetensors")


class WrittenFiles:
    """Names of the files that a run has written beside its pipeline, kept in the output folder from start to start.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._list = self.folder / LIST

    def names(self) -> list[str]:
        """The names that were added, relative to the folder and with forward slashes."""
        try:
            found = json.loads(self._list.read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

    def add(self, name: str) -> None:
        """Put a name on the list.

        Raises:
            OSError: if the list cannot be written, a full disk for instance; it is then as it was.
        """
        names = self.names()
        if name not in names:
            self._write([*names, name])

    def published(self) -> list[str]:
        """The pipeline's files, its card, and those on the list, as far as they exist.

        A card that somebody else has written is left out, and so is, with a warning, what a symbolic link leads to.
        """
        names = [*_pipeline_files(self.folder), *self.names()]
        if is_generated_card(self.folder / CARD):
            names.append(CARD)
        found = [name for name in dict.fromkeys(names) if (self.folder / name).exists()]
        linked = [name for name in found if not _is_inside(self.folder, name)]
        if linked:
            warnings.warn(f"Not published, because a symbolic link leads to it: {', '.join(linked)}.", stacklevel=2)
        return [name for name in found if name not in linked]

    def _write(self, names: list[str]) -> None:
        with atomic_file(self._list) as partial:
            partial.write_text(json.dumps(names, indent=1))


def _pipeline_files(folder: Path) -> list[str]:
    """The files that `PFGMPipeline.save_pretrained` writes, by the names that diffusers gives them."""
    names = [INDEX, CODE, f"unet/{CONFIG_NAME}", "scheduler/scheduler_config.json", "scheduler/diffusers_pfgm.py"]
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
    """Whether a name is that of a regular file which is in the folder without a symbolic link on the way."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        return False
    way = [folder.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return way[-1].is_file() and not any(path.is_symlink() for path in way)
