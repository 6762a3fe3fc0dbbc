"""Generation by a Poisson flow: from the hemisphere along field lines to images."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.utils import BaseOutput

from .physics.charges import check_finite
from .physics.kernel import Generators
from .scheduling_poisson_flow import PoissonFlowScheduler


@dataclass
class PFGMPipelineOutput(BaseOutput):
    """What `PFGMPipeline` returns.

    Attributes:
        images: B PIL images, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in [0, 1].
        nfe: number of network calls (of the whole batch).
    """

    images: Any
    nfe: int


class PFGMPipeline(DiffusionPipeline):
    """Image generation by a Poisson flow.

    Args:
        unet: a `UNet2DModel`, or anything called like it, such as `ChargeField`, that predicts what
            `scheduler.config.prediction_type` says.
        scheduler: a `PoissonFlowScheduler`.

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
    _callback_tensor_inputs = ["latents", "pred_original_sample"]

    unet: UNet2DModel
    scheduler: PoissonFlowScheduler

    # diffusers reads these annotations as types, so this file does not import them from __future__.
    def __init__(self, unet: UNet2DModel, scheduler: PoissonFlowScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        sigmas: Sequence[float] | None = None,
    ) -> PFGMPipelineOutput:
        """Draw images.

        Args:
            batch_size: number of images, 1 by default; as many as `latents` if they are given.
            num_inference_steps: steps of the solver, 20 by default; one network call each for "multistep" and "euler".
            generator: one generator, or a list of one for each image, which makes an image the same in any batch.
            latents: (B, C, H, W), points of the prior at σ_max (`scheduler.sample_prior`) to start from.
            output_type: "pil", "np" or "pt".
            return_dict: whether to return an output object rather than a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step; may return
                {"latents": ...} to go on from there.
            callback_on_step_end_tensor_inputs: which of "latents" and "pred_original_sample" (x̂) it is given.
            sigmas: your own heights in place of `num_inference_steps`.

        Returns:
            `PFGMPipelineOutput` with `images` and `nfe`, or the tuple of both.

        Raises:
            ValueError: if an argument, or the network's channels, do not fit.
        """
        if isinstance(callback_on_step_end_tensor_inputs, str):
            callback_on_step_end_tensor_inputs = [callback_on_step_end_tensor_inputs]
        shape = self._check_inputs(batch_size, latents, output_type, callback_on_step_end_tensor_inputs)
        device = self._execution_device
        if sigmas is None and num_inference_steps is None:
            num_inference_steps = 20
        self.scheduler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas)
        self.scheduler.set_begin_index(0)

        # The state stays in float32: a prior's radius may exceed float16, and each step needs the last one's digits.
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        if latents is None:
            latents = self.scheduler.sample_prior(shape, generator, device, dtype)
        latents = latents.to(device, dtype)

        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)
                model_output = self.unet(model_input, t, return_dict=False)[0]
                latents, pred_original_sample = self.scheduler.step(model_output, t, latents, return_dict=False)

                if callback_on_step_end is not None:
                    tensors = {"latents": latents, "pred_original_sample": pred_original_sample}
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, i, t, given) or {}).pop("latents", latents)
                progress_bar.update()

        images = (latents / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).float().cpu().numpy()
            if output_type == "pil":
                images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        output = PFGMPipelineOutput(images=images, nfe=len(self.scheduler.timesteps))
        return output if return_dict else output.to_tuple()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save network and scheduler as a folder that `from_pretrained` loads; see diffusers for the options.

        Raises:
            ValueError: if `unet` is no network: a `ChargeField` is made from its charges again.
        """
        if not hasattr(self.unet, "save_pretrained"):
            raise ValueError(
                f"`unet` is a {type(self.unet).__name__}, which has nothing to save. Save the scheduler by "
                "`pipe.scheduler.save_pretrained(folder)`, and make the pipeline from the charges again."
            )
        super().save_pretrained(save_directory, **kwargs)

    def _check_inputs(
        self, batch_size: int | None, latents: torch.Tensor | None, output_type: str, tensor_inputs: Sequence[str]
    ) -> tuple[int, ...]:
        """The shape of the run; raises a ValueError that says what to change."""
        if not isinstance(self.scheduler, PoissonFlowScheduler):
            raise ValueError(f"`scheduler` must be a PoissonFlowScheduler, but is a {type(self.scheduler).__name__}.")
        config, form = self.unet.config, self.scheduler.parameterization
        channels = config.in_channels
        # What a ChargeField says of itself; a network's configuration does not know.
        for name in ("aug_dim", "prediction_type", "gamma"):
            if hasattr(config, name) and getattr(config, name) != self.scheduler.config[name]:
                raise ValueError(
                    f"`{name}` is {getattr(config, name)} of the field, but {self.scheduler.config[name]} of the "
                    "scheduler. Make both the same."
                )
        if config.out_channels != form.output_channels(channels):
            raise ValueError(
                f"`unet` returns {config.out_channels} channels for {channels}, but prediction_type "
                f"{form.prediction_type!r} of the scheduler needs {form.output_channels(channels)}. "
                "Change `out_channels` of the network or `prediction_type` of the scheduler."
            )
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', but is {output_type!r}.")
        if output_type == "pil" and channels not in (1, 2, 3, 4):
            raise ValueError(f"output_type 'pil' cannot show {channels} channels. Use 'np' or 'pt'.")
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, but has {unknown}."
            )
        if batch_size is None:
            batch_size = 1 if latents is None else latents.shape[0]
        if int(batch_size) != batch_size or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number >= 1, but is {batch_size}.")
        size = config.sample_size
        if size is None:
            if latents is None:
                raise ValueError("`unet` has no `sample_size`, so pass `latents` of the size that you want.")
            size = latents.shape[2:]
        shape = (int(batch_size), channels, *((size, size) if isinstance(size, int) else size))
        if output_type != "pt" and len(shape) != 4:
            raise ValueError(f"output_type {output_type!r} is for images (B, C, H, W), not {shape}. Use 'pt'.")
        if latents is not None:
            check_finite("latents", latents)
            if latents.shape != shape:
                raise ValueError(
                    f"`latents` must have the shape {shape} for this network and batch, but have "
                    f"{tuple(latents.shape)}. Draw them with `scheduler.sample_prior(shape)`."
                )
        return shape
