"""Generation by a Poisson flow: from the hemisphere along field lines to images."""

import functools
import inspect
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput
from huggingface_hub import create_repo, file_exists, list_repo_files, upload_folder

from ..hub.model_card import make_model_card, save_model_card
from ..hub.serialization import add_loader_code, atomic_directory, outdated, restore_class_name
from ..physics.denoiser import Denoiser
from ..physics.tensors import Generators, cast_clamped
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..solvers.adaptive import integrate_adaptive
from .calls import Callback, PipelineCall, PipelineCalls, check_callback_inputs, copy_scheduler
from .class_conditioning import ClassLabels, CountedModel, GuidedModel, Label, as_list
from .inputs import check_inputs
from .outputs import postprocess

HUB_OPTIONS = ("repo_id", "commit_message", "private", "token", "create_pr")  # of `save_pretrained`


@dataclass
class PFGMPipelineOutput(BaseOutput):
    """What `PFGMPipeline` returns.

    Attributes:
        images: B PIL images, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in [0, 1]; for
            output_type "latent" the final state (B, C, H, W) itself, not clamped.
        nfe: number of network calls (of the whole batch).
    """

    images: Any
    nfe: int


class PFGMPipeline(PipelineCalls, DiffusionPipeline):
    """Image generation by a Poisson flow.

    It can be called from several threads at once, and within a callback of its own: each call steps a copy of the
    scheduler.

    Args:
        unet: a `UNet2DModel`, or anything called like it, such as `ChargeField`, that predicts what
            `scheduler.config.prediction_type` says.
        scheduler: a `PoissonFlowScheduler`, or a scheduler of diffusers that fits the network: EDM's for one with
            `sigma_data`, those of the DDPM family for one with a beta schedule; best made by `from_config`.
        id2label: names of the classes by number, from 0, of a network that was trained with them.

    Example:
        >>> from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
        >>> charges = torch.rand(10, 1, 8, 8) * 2 - 1  # your own images in [-1, 1]; no training
        >>> pipe = PFGMPipeline(unet=ChargeField(charges), scheduler=PoissonFlowScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> output = pipe(batch_size=2, num_inference_steps=15, generator=torch.Generator().manual_seed(0))
        >>> len(output.images), output.nfe
        (2, 15)
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

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        sigmas: Sequence[float] | None = None,
        class_labels: Label | Sequence[Label] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        tolerance: float | None = None,
    ) -> PFGMPipelineOutput:
        """Draw images.

        Args:
            batch_size: number of images, 1 by default; as many as `latents` or `class_labels` if they are given.
            num_inference_steps: steps of the solver, 20 by default; one network call each for "multistep" and "euler".
            generator: one generator, or a list of one for each image, which makes an image the same in any batch.
            latents: (B, C, H, W), points of the prior at the first σ (`scheduler.sample_prior`) to start from.
            output_type: "pil", "np", "pt", or "latent" for the final state itself.
            return_dict: whether to return an output object rather than a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step; may return
                {"latents": ...} to go on from there. It may read `pipe.num_timesteps`, set `pipe._guidance_scale` for
                the steps that follow, 0 for no guidance, or set `pipe._interrupt = True` to leave them out. One of
                diffusers' own, such as `SDCFGCutoffCallback`, names its tensors itself.
            callback_on_step_end_tensor_inputs: which of "latents", "pred_original_sample" (x̂) and "prompt_embeds" it
                is given. The last, which diffusers' callbacks ask for, is the condition: the class labels (B,), or an
                empty (B, 0) for a network without classes.
            sigmas: your own heights in place of `num_inference_steps`.
            class_labels: the class of each image, or one for all, by number or name. Without it, a network that has
                learned both draws from all classes.
            guidance_scale: of classifier-free guidance to `class_labels`; 1 for none. A step remains one call, of twice
                the batch.
            tolerance: solve by RK45, as the paper does, with this relative and absolute error of a step, in place of
                `num_inference_steps`. Needs torchdiffeq.

        Returns:
            `PFGMPipelineOutput` with `images` and `nfe`, or the tuple of both.

        Raises:
            ValueError: if an argument, the scheduler or the network's channels do not fit.
        """
        callback_inputs = check_callback_inputs(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        scheduler: Any = copy_scheduler(self.scheduler)
        flow = PoissonFlowScheduler.from_scheduler(scheduler)
        labels = as_list(class_labels)
        if batch_size is None and latents is None and labels is not None:
            batch_size = len(labels)
        shape = check_inputs(self.unet.config, flow, batch_size, latents, output_type)
        if tolerance is not None and not (num_inference_steps is sigmas is callback_on_step_end is None):
            raise ValueError(
                "`tolerance` lets the solver choose its steps, so leave out `num_inference_steps`, `sigmas` and "
                "`callback_on_step_end`."
            )
        device = self._execution_device
        options = self.prepare_class_labels(labels, shape[0], device)
        model_at = functools.lru_cache(1)(functools.partial(self._conditioned, flow, labels, options))
        model_at(guidance_scale)  # raises for a scale that does not fit

        # The state stays in float32: a prior's radius may exceed float16, and each step needs the last one's digits.
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        if tolerance is not None:
            scheduler, sigmas = flow, flow.sigma_range
        self._set_timesteps(scheduler, num_inference_steps, sigmas, device)
        if latents is None:
            latents = self._prior(scheduler, flow, shape, generator, device, dtype)
        latents = latents.to(device, dtype)

        with self._calling(scheduler, guidance_scale) as call:
            if tolerance is None:
                latents, nfe = self._follow(
                    call, model_at, latents, generator, callback_on_step_end, callback_inputs, options
                )
            else:
                call.num_timesteps = 0
                latents, nfe = self._solve_adaptively(flow, model_at(guidance_scale), latents, tolerance)

        images = postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        output = PFGMPipelineOutput(images=images, nfe=nfe)
        return output if return_dict else output.to_tuple()

    def _prior(
        self,
        scheduler: Any,
        flow: PoissonFlowScheduler,
        shape: tuple[int, ...],
        generator: Generators,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The state that the scheduler begins from."""
        if scheduler is flow:
            return flow.sample_prior(shape, generator, device, dtype)
        return flow.sample_noise(shape, generator, device, dtype) * float(scheduler.init_noise_sigma)

    def _set_timesteps(
        self, scheduler: Any, num_inference_steps: int | None, sigmas: Sequence[float] | None, device: torch.device
    ) -> None:
        if sigmas is None:
            scheduler.set_timesteps(20 if num_inference_steps is None else num_inference_steps, device=device)
        elif "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
        else:
            raise ValueError(f"`sigmas` were given, but {type(scheduler).__name__} takes none. Leave them out.")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    def _follow(
        self,
        call: PipelineCall,
        model_at: Callable[[float], Callable[..., Any]],
        latents: torch.Tensor,
        generator: Generators,
        callback: Callback | None,
        callback_inputs: Sequence[str],
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, int]:
        """The loop of the scheduler's steps, and its calls of the network at a guidance scale, `model_at(scale)`."""
        scheduler = call.scheduler
        noise = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        nfe = 0
        with self.progress_bar(total=len(scheduler.timesteps)) as progress_bar:
            for i, t in enumerate(scheduler.timesteps):
                if call.interrupt:
                    break
                model = model_at(1.0 if call.guidance_off else call.guidance_scale)
                model_input = cast_clamped(scheduler.scale_model_input(latents, t), self.unet.dtype)
                output = scheduler.step(model(model_input, t, return_dict=False)[0], t, latents, **noise)
                latents = output.prev_sample
                nfe += 1

                if callback is not None:
                    tensors = {
                        "latents": latents,
                        "pred_original_sample": output.get("pred_original_sample"),
                        "prompt_embeds": options.get("class_labels", latents.new_zeros(len(latents), 0)),
                    }
                    given = {name: tensors[name] for name in callback_inputs}
                    latents = (callback(self, i, t, given) or {}).pop("latents", latents)
                progress_bar.update()
        return latents, nfe

    def _solve_adaptively(
        self, flow: PoissonFlowScheduler, model: Callable[..., Any], latents: torch.Tensor, tolerance: float
    ) -> tuple[torch.Tensor, int]:
        """The same by RK45, and its calls."""
        high, low = flow.sigma_range
        with self.progress_bar(itertools.count()) as progress_bar:
            denoiser = Denoiser(CountedModel(model, progress_bar, self.unet.dtype), flow.parameterization)
            x = integrate_adaptive(denoiser, latents * flow.data_scale(high), high, low, tolerance)
            if flow.config.final_sigmas_type == "zero":
                x = denoiser(x, low)
        return x, denoiser.nfe

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

    def prepare_class_labels(self, labels: list[Label] | None, batch_size: int, device: torch.device) -> dict[str, Any]:
        """What the network is told of its samples' classes: nothing where it has none."""
        numbers = self._classes().numbers(labels, batch_size)
        return {} if numbers is None else {"class_labels": torch.tensor(numbers, device=device)}

    def _classes(self) -> ClassLabels:
        return ClassLabels(getattr(self.unet.config, "num_class_embeds", None), self.config.id2label)

    def _conditioned(
        self,
        flow: PoissonFlowScheduler,
        labels: list[Label] | None,
        options: dict[str, Any],
        guidance_scale: float,
    ) -> Callable[..., Any]:
        """The network as a function of sample and timestep alone; `options` are its `_class_options`."""
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
