"""The base class of the pipelines: components, steps, class labels and guidance."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel

from ..physics.tensors import Generators
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.sigma_steps import check_steps_of_model
from ..schedulers.stepping import SchedulerStep
from ..utils.checks import check_whole_number
from .calls import Callback, PipelineCalls
from .class_conditioning import ClassLabels, GuidedModel, Label
from .saving import PipelineSaving


class PoissonFlowPipeline(PipelineCalls, PipelineSaving, DiffusionPipeline):
    """Base class of the pipelines for Poisson flow models. Each task has a subclass with its own `__call__`.

    Each pipeline loads the folders that any other of them has saved.

    Args:
        unet, scheduler, id2label: as in `PFGMPipeline`.

    Raises:
        ValueError: if `id2label` is not a dictionary, its keys are not 0, 1, 2, ..., or the network has neither as many
            embeddings as there are names nor one more.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents", "pred_original_sample", "prompt_embeds"]

    unet: UNet2DModel
    scheduler: SchedulerMixin

    # diffusers reads these annotations as types, so this file must not import annotations from __future__.
    def __init__(self, unet: torch.nn.Module, scheduler: SchedulerMixin, id2label: dict | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        if id2label is not None and not isinstance(id2label, Mapping):
            raise ValueError(
                f"`id2label` must be a dictionary of names by number, but is a {type(id2label).__name__}. Make it "
                "from a list of names by `dict(enumerate(names))`."
            )
        # A saved configuration is JSON, which turns the numbers into strings.
        numbered = id2label and {int(key) if str(key).isdigit() else key: name for key, name in id2label.items()}
        self.register_to_config(id2label=numbered)
        self._classes()  # raises unless the classes are those of the network

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """Make a pipeline of this class from the components of another, as in diffusers.

        diffusers takes over a network only if its class is the annotated one. Here it may be of any class.
        """
        unet = pipeline.components.get("unet")
        return super().from_pipe(pipeline, **(kwargs if unet is None else {"unet": unet} | kwargs))

    def prepare_latents(
        self,
        scheduler: Any,
        converted: PoissonFlowScheduler,
        shape: tuple[int, ...],
        generator: Generators,
        device: torch.device,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Draw the latents (B, C, *) at the first timestep from the prior.

        Args:
            scheduler: the scheduler that is stepped.
            converted: the same scheduler as a `PoissonFlowScheduler`; the same object if it is one.
            shape: the shape (B, C, *) of the latents.
            generator: one generator, or a list of B generators.
            device: the device of the latents.
            dtype: the dtype of the latents.
        """
        if scheduler is converted:
            return converted.move_to_prior(converted.sample_prior(shape, generator, device, dtype))
        return converted.sample_noise(shape, generator, device, dtype) * float(scheduler.init_noise_sigma)

    def set_timesteps(
        self, scheduler: Any, num_inference_steps: int, sigmas: Sequence[float] | None, device: torch.device
    ) -> None:
        """Set the timesteps of the scheduler: those at `sigmas`, or without them `num_inference_steps` of its own.

        Args:
            scheduler: the scheduler of the call.
            num_inference_steps: the number of steps; without effect if there are `sigmas`.
            sigmas: the noise levels σ of the steps, decreasing; None for those of the scheduler.
            device: the device of the timesteps.

        Raises:
            ValueError: if `sigmas` is not None and the scheduler's `set_timesteps` has no such argument, or reads it as
                positions in its `sigma_schedule`, as EDMEulerScheduler does; if the scheduler's `sigma_steps` for this
                number were fitted to another network; or if the scheduler rejects the values.
        """
        if sigmas is None:
            steps = check_whole_number("num_inference_steps", num_inference_steps, 1)
            if isinstance(scheduler, PoissonFlowScheduler):
                check_steps_of_model(self.unet, scheduler, steps)
            scheduler.set_timesteps(steps, device=device)
        elif isinstance(scheduler, PoissonFlowScheduler):
            scheduler.set_timesteps(device=device, sigmas=sigmas)
        elif (
            "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
            and "sigma_schedule" not in scheduler.config
        ):
            levels = [float(sigma) for sigma in sigmas]
            # A scheduler of diffusers ends at the last of them.
            scheduler.set_timesteps(device=device, sigmas=levels if levels[-1:] == [0] else [*levels, 0.0])
        else:
            raise ValueError(f"`sigmas` were given, but {type(scheduler).__name__} takes none. Leave them out.")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    def end_step(
        self, step: SchedulerStep, callback: Callback | None, names: Sequence[str], model_kwargs: dict[str, Any]
    ) -> None:
        """Call the user's callback after a step, and continue from the latents that it returns, if any.

        Args:
            step: the step that has just been made.
            callback: the user's `callback_on_step_end`.
            names: the names of the tensors that are passed to the callback.
            model_kwargs: the result of `prepare_class_labels`.
        """
        if callback is None:
            return
        tensors = {
            "latents": step.sample,
            "pred_original_sample": step.denoised,
            "prompt_embeds": model_kwargs.get("class_labels", step.sample.new_zeros(len(step.sample), 0)),
        }
        changed = callback(self, step.index, step.timestep, {name: tensors[name] for name in names}) or {}
        step.sample = changed.pop("latents", step.sample)

    def prepare_class_labels(self, labels: list[Label] | None, batch_size: int, device: torch.device) -> dict[str, Any]:
        """Return the keyword arguments of the network for class labels: `class_labels` (B,), or none without classes.

        Args:
            labels: the user's labels, one for each sample or one for all; None for no condition.
            batch_size: B.
            device: the device of the result.

        Raises:
            ValueError: if a label is unknown, or the number of labels is neither 1 nor B.
        """
        numbers = self._classes().numbers(labels, batch_size)
        return {} if numbers is None else {"class_labels": torch.tensor(numbers, device=device)}

    def _classes(self) -> ClassLabels:
        config = getattr(self.unet, "config", None)
        return ClassLabels(getattr(config, "num_class_embeds", None), self.config.id2label)

    def prepare_model(
        self,
        scheduler: PoissonFlowScheduler,
        labels: list[Label] | None,
        model_kwargs: dict[str, Any],
        guidance_scale: float,
    ) -> Callable[..., Any]:
        """Return the network, conditioned and guided, as a function of sample and timestep only.

        Args:
            scheduler: the scheduler.
            labels: the user's labels; None for no condition.
            model_kwargs: the result of `prepare_class_labels`.
            guidance_scale: the scale of classifier-free guidance; 1 for no guidance.

        Raises:
            ValueError: if `guidance_scale` is not a finite number, is not 1 while there are no labels or the network
                has no null class, or is neither 1 nor the scale that a consistency model has learned.
        """
        if guidance_scale is None or not math.isfinite(guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, 1 for no guidance, but is {guidance_scale}.")
        learned = scheduler.config.consistency_guidance
        if learned is not None and guidance_scale not in (1, learned):
            raise ValueError(
                f"`guidance_scale` must be {learned:g}, the scale that this consistency model has learned, but is "
                f"{guidance_scale}. Leave it out."
            )
        if guidance_scale == 1 or (guidance_scale == learned and labels is not None):
            return functools.partial(self.unet, **model_kwargs) if model_kwargs else self.unet
        null_class = self._classes().null_class
        if labels is None or null_class is None:
            raise ValueError(
                f"`guidance_scale` = {guidance_scale} needs `class_labels`, and a network that was also trained "
                "without labels, by `--class_conditional` with `--label_dropout` > 0. Set `guidance_scale` to 1."
            )
        return GuidedModel(
            self.unet, scheduler.parameterization, model_kwargs["class_labels"], null_class, guidance_scale
        )

    @property
    def components(self) -> dict[str, Any]:
        """The arguments of another pipeline with the same components, as in `PFGMEditingPipeline(**pipe.components)`.

        They include `id2label`, which diffusers itself would leave out.
        """
        id2label = self.config.id2label
        return super().components | ({} if id2label is None else {"id2label": dict(id2label)})
