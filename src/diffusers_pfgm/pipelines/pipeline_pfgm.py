"""Generation by a Poisson flow: from the hemisphere along field lines to images."""

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
from .inputs import check_inputs
from .outputs import postprocess


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


class PFGMPipeline(PoissonFlowPipeline):
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
        """Draw images.

        Args:
            batch_size: number of images, 1 by default; as many as `latents` or `class_labels` if they are given.
            num_inference_steps: number of fixed steps, with one network call each for the solvers "multistep" and
                "euler".
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
            sigmas: the noise levels of the steps, in place of `num_inference_steps`.
            class_labels: the class of each image, or one for all, by number or name. Without it, a network that has
                learned both draws from all classes.
            guidance_scale: of classifier-free guidance to `class_labels`; 1 for none. A step remains one call, of twice
                the batch.
            tolerance: relative and absolute error of a step of the adaptive solver RK45, which the paper uses, in place
                of `num_inference_steps`. None for fixed steps.

        Returns:
            `PFGMPipelineOutput` with `images` and `nfe`, or the tuple of both.

        Raises:
            ValueError: if an argument, the scheduler or the network's channels do not fit.
        """
        # Check the arguments
        callback_inputs = check_callback_inputs(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        if tolerance is not None and not (sigmas is callback_on_step_end is None):
            raise ValueError(
                "`tolerance` lets the solver choose its steps, so leave out `sigmas` and `callback_on_step_end`."
            )
        scheduler: Any = copy_scheduler(self.scheduler)
        flow = PoissonFlowScheduler.from_scheduler(scheduler)
        labels = as_list(class_labels)
        if batch_size is None and latents is None and labels is not None:
            batch_size = len(labels)
        shape = check_inputs(self.unet.config, flow, batch_size, latents, output_type)

        # Prepare the classes, the noise levels and the latents
        device = self._execution_device
        class_options = self.prepare_class_labels(labels, shape[0], device)
        model_at = functools.lru_cache(1)(functools.partial(self.prepare_model, flow, labels, class_options))
        model_at(guidance_scale)  # raises for a scale that is not allowed
        # The state stays in float32: a prior's radius may exceed float16, and each step needs the last one's digits.
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        if tolerance is not None:
            scheduler, sigmas = flow, flow.sigma_range
        self.set_timesteps(scheduler, num_inference_steps, sigmas, device)
        if latents is None:
            latents = self.prepare_latents(scheduler, flow, shape, generator, device, dtype)
        latents, nfe = latents.to(device, dtype), 0

        # Follow the flow
        with self._calling(scheduler, guidance_scale) as call:
            if tolerance is not None:
                call.num_timesteps = 0
                latents, nfe = self._solve_adaptively(flow, model_at(guidance_scale), latents, tolerance)
            else:

                def model(sample: torch.Tensor, timestep: torch.Tensor) -> Any:
                    return model_at(call.current_guidance_scale)(sample, timestep, return_dict=False)

                with self.progress_bar(total=len(scheduler.timesteps)) as progress_bar:
                    for step in scheduler_steps(scheduler, model, latents, self.unet.dtype, generator):
                        self.end_step(step, callback_on_step_end, callback_inputs, class_options)
                        latents, nfe = step.sample, nfe + 1
                        progress_bar.update()
                        if call.interrupt:
                            break

        images = postprocess(latents, output_type)
        self.maybe_free_model_hooks()
        output = PFGMPipelineOutput(images=images, nfe=nfe)
        return output if return_dict else output.to_tuple()

    def _solve_adaptively(
        self, flow: PoissonFlowScheduler, model: Callable[..., Any], latents: torch.Tensor, tolerance: float
    ) -> tuple[torch.Tensor, int]:
        """The samples (B, C, *) of the adaptive solver, and its number of network calls."""
        high, low = flow.sigma_range
        with self.progress_bar(itertools.count()) as progress_bar:
            denoiser = Denoiser(CountedModel(model, progress_bar, self.unet.dtype), flow.parameterization)
            x = integrate_adaptive(denoiser, latents * flow.data_scale(high), high, low, tolerance)
            if flow.config.final_sigmas_type == "zero":
                x = denoiser(x, low)
        return x, denoiser.nfe
