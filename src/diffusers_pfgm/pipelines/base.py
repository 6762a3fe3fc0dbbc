"""What every pipeline of this package has in common: its components, classes, saving and publishing."""

import functools
import inspect
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from huggingface_hub import create_repo, file_exists, list_repo_files, upload_folder

from ..hub.model_card import make_model_card, save_model_card
from ..hub.serialization import add_loader_code, atomic_directory, outdated, restore_class_name
from ..physics.tensors import Generators
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.stepping import SchedulerStep
from .calls import Callback, PipelineCalls
from .class_conditioning import ClassLabels, GuidedModel, Label

HUB_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")  # of `save_pretrained`


class PoissonFlowPipeline(PipelineCalls, DiffusionPipeline):
    """Base of the pipelines for Poisson flow models; each task has its own `__call__`.

    All of them load what any of them saves.

    Args:
        unet: a `UNet2DModel`, or anything called like it, such as `ChargeField`, that predicts what
            `scheduler.config.prediction_type` says.
        scheduler: a `PoissonFlowScheduler`, or a scheduler of diffusers that fits the network: EDM's for one with
            `sigma_data`, those of the DDPM family for one with a beta schedule; best made by `from_config`.
        id2label: names of the classes by number, from 0, for a network that was trained with classes.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents", "pred_original_sample", "prompt_embeds"]

    unet: UNet2DModel
    scheduler: SchedulerMixin

    # diffusers reads these annotations as types, so this file does not import them from __future__.
    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, id2label: dict | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        # JSON makes strings of the numbers.
        self.register_to_config(id2label=id2label and {int(number): name for number, name in id2label.items()})

    def prepare_latents(
        self,
        scheduler: Any,
        flow: PoissonFlowScheduler,
        shape: tuple[int, ...],
        generator: Generators,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The state (B, C, *) at the first timestep, drawn from the prior."""
        if scheduler is flow:
            return flow.sample_prior(shape, generator, device, dtype)
        return flow.sample_noise(shape, generator, device, dtype) * float(scheduler.init_noise_sigma)

    def set_timesteps(
        self, scheduler: Any, num_inference_steps: int, sigmas: Sequence[float] | None, device: torch.device
    ) -> None:
        """Choose the noise levels of a run: `sigmas`, or else those of so many steps.

        Raises:
            ValueError: if the scheduler does not accept them.
        """
        if sigmas is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        elif "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(device=device, sigmas=sigmas)
        else:
            raise ValueError(f"`sigmas` were given, but {type(scheduler).__name__} takes none. Leave them out.")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    def end_step(
        self, step: SchedulerStep, callback: Callback | None, names: Sequence[str], class_labels: dict[str, Any]
    ) -> None:
        """Call the user's callback after a step, and go on from the latents that it returns.

        Args:
            step: the step that has just been made.
            callback: `callback_on_step_end`.
            names: of the tensors that the callback is given.
            class_labels: what `prepare_class_labels` has returned.
        """
        if callback is None:
            return
        tensors = {
            "latents": step.sample,
            "pred_original_sample": step.denoised,
            "prompt_embeds": class_labels.get("class_labels", step.sample.new_zeros(len(step.sample), 0)),
        }
        changed = callback(self, step.index, step.timestep, {name: tensors[name] for name in names}) or {}
        step.sample = changed.pop("latents", step.sample)

    def prepare_class_labels(self, labels: list[Label] | None, batch_size: int, device: torch.device) -> dict[str, Any]:
        """The network's argument for the classes: `class_labels` (B,), or nothing for a network without classes.

        Raises:
            ValueError: if a label is unknown, or their number is not that of the samples.
        """
        numbers = self._classes().numbers(labels, batch_size)
        return {} if numbers is None else {"class_labels": torch.tensor(numbers, device=device)}

    def _classes(self) -> ClassLabels:
        return ClassLabels(getattr(self.unet.config, "num_class_embeds", None), self.config.id2label)

    def prepare_model(
        self,
        flow: PoissonFlowScheduler,
        labels: list[Label] | None,
        options: dict[str, Any],
        guidance_scale: float,
    ) -> Callable[..., Any]:
        """The network as a function of sample and timestep alone; `options` are its `prepare_class_labels`."""
        if guidance_scale is None or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, 1 for no guidance, but is {guidance_scale}.")
        if guidance_scale == 1:
            return functools.partial(self.unet, **options) if options else self.unet
        null = self._classes().null
        if labels is None or null is None:
            raise ValueError(
                f"`guidance_scale` = {guidance_scale} needs `class_labels`, and a network that has also learned to do "
                "without them, by `--class_conditional` with `--label_dropout` > 0. Set it to 1."
            )
        return GuidedModel(self.unet, flow.parameterization, options["class_labels"], null, guidance_scale)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save network and scheduler as a folder that `from_pretrained` and plain diffusers load; see diffusers.

        A folder without a model card gets one. Files that are there already are replaced one by one, whole.

        Raises:
            ValueError: if `unet` is no network: a `ChargeField` is made from its charges again.
            OSError: if the folder cannot be written, a full disk for instance; it is then as it was.
        """
        if not hasattr(self.unet, "save_pretrained"):
            raise ValueError(
                f"`unet` is a {type(self.unet).__name__}, which has nothing to save. Save the scheduler by "
                "`pipe.scheduler.save_pretrained(folder)`, and make the pipeline from the charges again."
            )
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        with atomic_directory(save_directory) as partial:
            super().save_pretrained(partial, **kwargs)
            add_loader_code(partial)
        if not (Path(save_directory) / "README.md").exists():
            save_model_card(make_model_card(self), save_directory)
        if push_to_hub:
            repo_id = options.pop("repo_id", Path(save_directory).resolve().name)
            variants = {name: kwargs[name] for name in ("variant", "safe_serialization") if name in kwargs}
            self.push_to_hub(repo_id, **options, **variants)

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
    ) -> str:
        """Publish the saved folder with its card; a card that the repository has stays. See diffusers.

        Weights of the same variant that an earlier push has left in another format are removed from the repository.
        """
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            card = Path(folder) / "README.md"
            if file_exists(repo_id, card.name, token=token):
                card.unlink()
            else:
                make_model_card(self, repo_id=repo_id).save(card)
            prefix = f"{subfolder.strip('/')}/" if subfolder else ""
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

    @property
    def components(self) -> dict[str, Any]:
        """What another pipeline is made of by `PFGMEditingPipeline(**pipe.components)`: the names of classes too."""
        names = self.config.id2label
        return super().components | ({} if names is None else {"id2label": dict(names)})

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        return restore_class_name(super()._dict_from_json_file(json_file))
