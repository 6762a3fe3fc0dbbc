"""Image generation with a Poisson flow: latents of the prior follow field lines to images."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..physics.denoiser import Denoiser
from ..physics.tensors import Generators
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.stepping import scheduler_steps
from ..solvers.adaptive import integrate_adaptive
from .base import PoissonFlowPipeline
from .calls import Callback, check_callback_inputs, copy_scheduler
from .class_conditioning import CountedModel, Label, as_list
from .inputs import check_inputs, latents_shape
from .outputs import postprocess


@dataclass
class PFGMPipelineOutput(BaseOutput):
    """Output of `PFGMPipeline` and `PFGMEditingPipeline`.

    Attributes:
        images: B PIL images, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in [0, 1]; for
            output_type "latent" the final state (B, C, H, W) itself, not clamped.
        nfe: the number of network calls. Each call evaluates the whole batch.
    """

    images: Any
    nfe: int


class PFGMPipeline(PoissonFlowPipeline):
    """Image generation with a Poisson flow.

    The pipeline can be called from several threads at once, and from its own callbacks, because each call steps a copy
    of the scheduler.

    Args:
        unet: a `UNet2DModel`, or a model that is called like it, such as `ChargeField`. Its output is the quantity that
            `scheduler.config.prediction_type` names.
        scheduler: a `PoissonFlowScheduler`, or a scheduler of diffusers that fits the network: an EDM scheduler for a
            network with `sigma_data`, one of the DDPM family for a network with a beta schedule. Make it by
            `from_config`, so that it keeps the network's settings.
        id2label: the names of the classes by number, from 0, for a network that was trained with class labels.

    Examples:
        >>> from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
        >>> charges = torch.rand(10, 1, 8, 8) * 2 - 1  # your own images in [-1, 1]; no training
        >>> pipe = PFGMPipeline(unet=ChargeField(charges), scheduler=PoissonFlowScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> output = pipe(batch_size=2, num_inference_steps=15, generator=torch.Generator().manual_seed(0))
        >>> len(output.images), output.nfe
        (2, 15)
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int = 20,
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
        """Generate images.

        Args:
            batch_size: the number of images B. By default that of `latents` or `class_labels`, or 1 without them.
            num_inference_steps: the number of fixed steps, with one network call each for the solvers "multistep" and
                "euler". A consistency model allows 1 to the number of its `consistency_sigmas`, so pass it for one.
                Defaults to 20.
            generator: one generator, or a list of B generators, one for each image. With a list an image does not
                depend on the rest of the batch.
            latents: (B, C, H, W), latents at the first noise level, as `scheduler.sample_prior` draws them, or any
                Gaussian noise times that σ. If that level is σ_max, they are moved along their rays to the scheduler's
                `prior`, as drawn ones are; with `sigmas` that begin below it, the latents may be noisy images and are
                not moved. By default they are drawn with `generator`.
            output_type: "pil", "np", "pt", or "latent" for the final state itself. Defaults to "pil".
            return_dict: whether to return an output object instead of a tuple. Defaults to True.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step. If it returns
                {"latents": ...}, the next step starts from these. It may read `pipe.num_timesteps`, set
                `pipe._guidance_scale` for the following steps (0 for no guidance), or set `pipe._interrupt = True` to
                skip them. A callback class of diffusers, such as `SDCFGCutoffCallback`, has its own `tensor_inputs`.
            callback_on_step_end_tensor_inputs: the names of the tensors that are passed to the callback, from
                "latents", "pred_original_sample" (x̂, the denoised sample) and "prompt_embeds". The last, which
                callbacks of diffusers use, is the condition: the class labels (B,), or an empty tensor (B, 0) for a
                network without classes. Defaults to ("latents",).
            sigmas: the noise levels σ of the steps, decreasing, in place of `num_inference_steps`.
            class_labels: the class of each image, or one for all, by number or name. By default a network that was
                also trained without labels draws from all classes.
            guidance_scale: the scale of classifier-free guidance to `class_labels`; 1 for no guidance. With guidance a
                step is still one network call, on twice the batch. A consistency model that has learned guidance
                (`consistency_guidance`) always has that scale, at no further cost, and accepts no other but 1, which
                has no effect. Defaults to 1.
            tolerance: the relative and absolute tolerance of the adaptive solver RK45, which the paper uses, in place
                of `num_inference_steps`. None for fixed steps.

        Returns:
            `PFGMPipelineOutput` with `images` and `nfe`, or the tuple of both.

        Raises:
            ValueError: if `tolerance` is combined with `sigmas` or a callback; if an argument is out of its range; if
                the shape of `latents`, the labels, the network's channels or the scheduler do not fit each other.
        """
        # 1. Check the arguments
        callback_inputs = check_callback_inputs(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        if tolerance is not None and (sigmas is not None or callback_on_step_end is not None):
            raise ValueError(
                "`tolerance` lets the solver choose its steps, so leave out `sigmas` and `callback_on_step_end`."
            )
        scheduler: Any = copy_scheduler(self.scheduler)
        converted = PoissonFlowScheduler.from_scheduler(scheduler, allow_consistency=tolerance is None)
        labels = as_list(class_labels)
        if batch_size is None and latents is None and labels is not None:
            batch_size = len(labels)
        check_inputs(self.unet.config, converted, batch_size, latents, output_type)
        shape = latents_shape(self.unet.config, batch_size, latents)

        # 2. Prepare the class labels, the timesteps and the latents
        device = self._execution_device
        model_kwargs = self.prepare_class_labels(labels, shape[0], device)

        @functools.lru_cache(maxsize=1)  # only a callback changes the scale between steps
        def model_at(scale: float) -> Callable[..., Any]:
            return self.prepare_model(converted, labels, model_kwargs, scale)

        model_at(guidance_scale)  # raises for a scale that is not allowed
        # The state is at least float32: norms of the prior may exceed float16, and rounding errors of the state add up.
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        if tolerance is not None:  # the adaptive solver starts at σ_max, whatever the scheduler's first timestep is
            scheduler, sigmas = converted, converted.sigma_range
        self.set_timesteps(scheduler, num_inference_steps, sigmas, device)
        if latents is None:
            latents = self.prepare_latents(scheduler, converted, shape, generator, device, dtype)
        else:
            latents = latents.to(device, dtype)
            if scheduler is converted and converted.sigmas[0] == converted.sigma_range[0]:
                latents = converted.move_to_prior(latents)

        # 3. Denoising loop
        nfe = 0
        with self._call_context(scheduler, guidance_scale) as call:
            if tolerance is not None:
                call.num_timesteps = 0
                latents, nfe = self._solve_adaptively(converted, model_at(guidance_scale), latents, tolerance)
            else:

                def model(sample: torch.Tensor, timestep: torch.Tensor) -> Any:
                    return model_at(call.current_guidance_scale)(sample, timestep, return_dict=False)

                with self.progress_bar(total=len(scheduler.timesteps)) as progress_bar:
                    for step in scheduler_steps(scheduler, model, latents, self.unet.dtype, generator):
                        self.end_step(step, callback_on_step_end, callback_inputs, model_kwargs)
                        latents = step.sample
                        nfe += 1
                        progress_bar.update()
                        if call.interrupt:
                            break

        # 4. Convert the final state to images
        images = postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        output = PFGMPipelineOutput(images=images, nfe=nfe)
        return output if return_dict else output.to_tuple()

    def _solve_adaptively(
        self, scheduler: PoissonFlowScheduler, model: Callable[..., Any], latents: torch.Tensor, tolerance: float
    ) -> tuple[torch.Tensor, int]:
        """Return the samples (B, C, *) of the adaptive solver, and its number of network calls."""
        sigma_max, sigma_min = scheduler.sigma_range
        with self.progress_bar(itertools.count()) as progress_bar:
            denoiser = Denoiser(CountedModel(model, progress_bar, self.unet.dtype), scheduler.parameterization)

            def denoise(x: torch.Tensor, sigma: Any) -> torch.Tensor:
                return denoiser(x, scheduler.sigma_of_samples(sigma))

            x = integrate_adaptive(denoise, latents * scheduler.data_scale(sigma_max), sigma_max, sigma_min, tolerance)
            if scheduler.config.final_sigmas_type == "zero":
                x = denoise(x, sigma_min)
        return x, denoiser.nfe
