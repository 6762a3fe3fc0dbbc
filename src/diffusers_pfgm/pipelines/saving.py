"""Saving a pipeline to a folder, and publishing it on the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import create_repo, file_exists, list_repo_files, upload_folder

from ..hub.model_card import CARD, make_model_card, save_model_card
from ..hub.serialization import add_loader_code, atomic_directory, outdated, restore_class_name

# The keyword arguments of `save_pretrained` that belong to `push_to_hub`.
HUB_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")


class PipelineSaving(DiffusionPipeline):
    """A pipeline whose folder has a model card, and the code by which diffusers loads the classes of this package."""

    unet: Any

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save network and scheduler to a folder that `from_pretrained` of this package and of diffusers can load.

        A model card is added unless the folder has one. Existing files are replaced atomically, one by one.

        Args:
            save_directory: the folder.
            safe_serialization, variant, max_shard_size: as in `DiffusionPipeline.save_pretrained`.
            push_to_hub: whether to upload the pipeline too, saved in the same way; see `push_to_hub`.
            **kwargs: the other arguments of `DiffusionPipeline.save_pretrained`, and those of `push_to_hub`.

        Raises:
            ValueError: if `unet` cannot be saved. This is so for a `ChargeField`, which is made from its charges.
            OSError: if the folder cannot be written, for instance because the disk is full. Its files are then
                unchanged.
        """
        if not hasattr(self.unet, "save_pretrained"):
            raise ValueError(
                f"`unet` is a {type(self.unet).__name__}, which has nothing to save. Save the scheduler by "
                "`pipe.scheduler.save_pretrained(folder)`, and make the pipeline from the charges again."
            )
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        with atomic_directory(save_directory) as partial:
            super().save_pretrained(partial, safe_serialization, variant, max_shard_size, **kwargs)
            add_loader_code(partial)
        if not (Path(save_directory) / CARD).exists():
            save_model_card(make_model_card(self), save_directory)
        if push_to_hub:
            repo_id = options.pop("repo_id", Path(save_directory).resolve().name)
            options |= {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
            self.push_to_hub(repo_id, **options, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Upload the pipeline to the Hugging Face Hub, with a model card unless the repository has one.

        A card describes a whole repository, so a `subfolder` gets none, as in diffusers. Weights of the same variant
        that were uploaded earlier in another format are removed from the repository.

        Args:
            repo_id: the name of the repository, which is created if it does not exist.
            commit_message, private, token, create_pr, safe_serialization, variant, subfolder: see
                `DiffusionPipeline.push_to_hub`.
            **kwargs: the other arguments of `save_pretrained`.

        Returns:
            The URL of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, **kwargs)
            repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            card = Path(folder) / CARD
            prefix = f"{subfolder.strip('/')}/" if subfolder else ""
            if subfolder or file_exists(repo_id, card.name, token=token):
                card.unlink()
            else:
                make_model_card(self, repo_id=repo_id).save(card)
            published = list_repo_files(repo_id, token=token)
            present = [name.removeprefix(prefix) for name in published if name.startswith(prefix)]
            written = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
            return upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                path_in_repo=subfolder,
                token=token,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                create_pr=create_pr,
                delete_patterns=outdated(present, written) or None,
            )

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        return restore_class_name(super()._dict_from_json_file(json_file))
