"""Pictures to latents and back by one flow: reconstruction, interpolation, temperature and class swaps."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from ..flow.poisson_flow import NUM_STEPS, STEP_TOLERANCE, PoissonFlow
from ..flow.results import FlowLatents
from ..physics.hemisphere import HemisphereLatents, interpolate, with_temperature
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..utils.checks import check_whole_number
from .base import PoissonFlowPipeline
from .class_conditioning import CountedModel, Label, as_list
from .inputs import check_inputs, images_to_tensor
from .outputs import postprocess
from .pipeline_pfgm import PFGMPipelineOutput

Labels = Label | Sequence[Label] | torch.Tensor | None


class PFGMEditingPipeline(PoissonFlowPipeline):
    """Editing of given pictures by the latents that a Poisson flow has for them.

    A picture is followed up to the prior and down again. Under the same class it returns; under another it becomes a
    picture of that class that begins at the same latent, and so keeps what the class does not tell, such as slant and
    weight of handwriting.

    Args:
        unet, scheduler, id2label: as of `PFGMPipeline`, whose saved folders it loads.

    Example:
        >>> from diffusers_pfgm import ChargeField, PoissonFlowScheduler
        >>> charges = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> pipe = PFGMEditingPipeline(unet=ChargeField(charges), scheduler=PoissonFlowScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pictures = charges[:2] / 2 + 0.5
        >>> latents = pipe.encode(pictures, num_inference_steps=30).latents
        >>> back = pipe.decode(latents, num_inference_steps=30, output_type="pt").images
        >>> torch.allclose(back, pictures, atol=1e-3)
        True
    """

    def encode(
        self,
        images: Any,
        class_labels: Labels = None,
        num_inference_steps: int = NUM_STEPS,
        tolerance: float | None = None,
        step_tolerance: float = STEP_TOLERANCE,
    ) -> FlowLatents:
        """The latents of pictures.

        Args:
            images: a PIL image or a list of them, an array (B, H, W, C) or a tensor (B, C, H, W), the last two in
                [0, 1].
            class_labels: the class of each picture, or one for all, by number or name.
            num_inference_steps, tolerance, step_tolerance: as in `PoissonFlow.encode`.

        Returns:
            `latents` (B, C, H, W) in data units at σ_max, and `nfe`.

        Raises:
            ValueError: if a picture or a label does not fit the network, or a fixed step is too long to be undone.
        """
        x = images_to_tensor(images, self.unet.config)
        x = x.to(self._execution_device, torch.promote_types(x.dtype, self.unet.dtype))
        check_inputs(self.unet.config, PoissonFlowScheduler.from_scheduler(self.scheduler), None, x, "pt")
        with self.progress_bar(itertools.count()) as progress_bar:
            found = self._flow(class_labels, 1.0, x, progress_bar).encode(
                x, num_inference_steps, tolerance, step_tolerance
            )
        self.maybe_free_model_hooks()
        return found

    def decode(
        self,
        latents: torch.Tensor,
        class_labels: Labels = None,
        num_inference_steps: int = NUM_STEPS,
        output_type: str = "pil",
        tolerance: float | None = None,
        step_tolerance: float = STEP_TOLERANCE,
        guidance_scale: float = 1.0,
        return_dict: bool = True,
    ) -> PFGMPipelineOutput:
        """Pictures of latents: the inverse of `encode` for the same class, steps and tolerance.

        Args:
            latents: (B, C, H, W), in data units at σ_max.
            class_labels: the class of each, or one for all.
            num_inference_steps, tolerance, step_tolerance: as in `encode`.
            output_type: "pil", "np", "pt", or "latent" for the state itself, in data units.
            guidance_scale: of classifier-free guidance to `class_labels`. Another field than that of `encode` where it
                is not 1: what it makes of a latent is no longer the picture that the latent came from.
            return_dict: whether to return an output object rather than a tuple.

        Raises:
            ValueError: if an argument does not fit.
        """
        check_inputs(self.unet.config, PoissonFlowScheduler.from_scheduler(self.scheduler), None, latents, output_type)
        x = latents.to(self._execution_device)
        with self.progress_bar(itertools.count()) as progress_bar:
            flow = self._flow(class_labels, guidance_scale, x, progress_bar)
            found = flow.decode(x, num_inference_steps, tolerance, step_tolerance)
        images = postprocess(found.sample, output_type)
        self.maybe_free_model_hooks()
        output = PFGMPipelineOutput(images=images, nfe=found.nfe)
        return output if return_dict else output.to_tuple()

    def interpolate(
        self,
        first_images: Any,
        second_images: Any,
        num: int = 7,
        class_labels: Labels = None,
        num_inference_steps: int = NUM_STEPS,
        output_type: str = "pil",
        tolerance: float | None = None,
        step_tolerance: float = STEP_TOLERANCE,
        return_dict: bool = True,
    ) -> PFGMPipelineOutput:
        """Pictures on the way from each of B pictures to another, ends included.

        Args:
            first_images: B pictures, as of `encode`.
            second_images: as many.
            num: pictures of a way, at equal shares.
            class_labels: the class of each pair, or one for all. Without it, a network that has learned both goes by
                all classes.
            num_inference_steps, tolerance, step_tolerance: as in `encode`.
            output_type: "pil", "np", "pt", or "latent" for the state itself, in data units.
            return_dict: whether to return an output object rather than a tuple.

        Returns:
            B · num pictures, way by way, and `nfe`.

        Raises:
            ValueError: if an argument does not fit.
        """
        num = check_whole_number("num", num, 2, ", the ends included")
        solver = _solver_options(num_inference_steps, tolerance, step_tolerance)
        first = self.encode(first_images, class_labels, **solver)
        second = self.encode(second_images, class_labels, **solver)
        start, end = (HemisphereLatents.from_latents(found.latents) for found in (first, second))
        paths = interpolate(start, end, torch.linspace(0, 1, num)).to_latents().transpose(0, 1).flatten(0, 1)
        labels = as_list(class_labels)
        if labels is not None and len(labels) > 1:
            labels = [label for label in labels for _ in range(num)]
        output = self.decode(paths, labels, output_type=output_type, **solver)
        output.nfe += first.nfe + second.nfe
        return output if return_dict else output.to_tuple()

    def __call__(
        self,
        image: Any,
        class_labels: Labels = None,
        target_class_labels: Labels = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        num_inference_steps: int = NUM_STEPS,
        output_type: str = "pil",
        return_dict: bool = True,
        tolerance: float | None = None,
        step_tolerance: float = STEP_TOLERANCE,
    ) -> PFGMPipelineOutput:
        """Edit pictures: up under one class, down under another.

        Args:
            image: pictures, as of `encode`.
            class_labels: the class of each picture, or one for all.
            target_class_labels: what it shall become; by default its own class.
            guidance_scale: of classifier-free guidance to the target on the way down; 1 for none.
            temperature: the factor of the latents' radius (PFGM, arXiv 2209.11178, section 4.3).
            num_inference_steps, tolerance, step_tolerance: as in `encode`.
            output_type: "pil", "np", "pt", or "latent" for the state itself, in data units.
            return_dict: whether to return an output object rather than a tuple.

        Returns:
            `PFGMPipelineOutput` with `images` and `nfe` of both ways, or the tuple of both.

        Raises:
            ValueError: if an argument does not fit.
        """
        solver = _solver_options(num_inference_steps, tolerance, step_tolerance)
        encoded = self.encode(image, class_labels, **solver)
        latents = with_temperature(HemisphereLatents.from_latents(encoded.latents), temperature).to_latents()
        target = class_labels if target_class_labels is None else target_class_labels
        output = self.decode(latents, target, output_type=output_type, guidance_scale=guidance_scale, **solver)
        output.nfe += encoded.nfe
        return output if return_dict else output.to_tuple()

    def _flow(self, class_labels: Labels, guidance_scale: float, x: torch.Tensor, progress_bar: Any) -> PoissonFlow:
        """The flow of a class, whose calls the bar counts."""
        scheduler = PoissonFlowScheduler.from_scheduler(self.scheduler)
        labels = as_list(class_labels)
        options = self.prepare_class_labels(labels, len(x), x.device)
        model = self.prepare_model(scheduler, labels, options, guidance_scale)
        return PoissonFlow(CountedModel(model, progress_bar, self.unet.dtype), scheduler)


def _solver_options(num_inference_steps: int, tolerance: float | None, step_tolerance: float) -> dict[str, Any]:
    return {"num_inference_steps": num_inference_steps, "tolerance": tolerance, "step_tolerance": step_tolerance}
