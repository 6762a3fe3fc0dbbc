"""Image editing by the latents of a Poisson flow: reconstruction, interpolation, temperature and change of class."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from ..flow.poisson_flow import NUM_STEPS, STEP_TOLERANCE, PoissonFlow
from ..flow.results import FlowLatents
from ..physics.hemisphere import HemisphereLatents, check_temperature, interpolate, with_temperature
from ..physics.tensors import move_to
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..utils.checks import check_whole_number
from .base import PoissonFlowPipeline
from .class_conditioning import CountedModel, Label, as_list
from .inputs import check_inputs, images_to_tensor
from .outputs import postprocess
from .pipeline_pfgm import PFGMPipelineOutput

Labels = Label | Sequence[Label] | torch.Tensor | None


class PFGMEditingPipeline(PoissonFlowPipeline):
    """Editing of images by their latents under a Poisson flow.

    An image is encoded, from data to the prior, and its latent is decoded. With the same class the image is recovered.
    With another class the same latent becomes an image of that class, which keeps the features that do not depend on
    the class, such as slant and stroke width of handwriting.

    Args:
        unet, scheduler, id2label: as in `PFGMPipeline`, whose saved folders this pipeline loads.

    Examples:
        >>> from diffusers_pfgm import ChargeField, PoissonFlowScheduler
        >>> charges = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> pipe = PFGMEditingPipeline(unet=ChargeField(charges), scheduler=PoissonFlowScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> images = charges[:2] / 2 + 0.5
        >>> latents = pipe.encode(images, num_inference_steps=30).latents
        >>> decoded = pipe.decode(latents, num_inference_steps=30, output_type="pt").images
        >>> torch.allclose(decoded, images, atol=1e-3)
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
        """Encode images: follow the flow from data to the prior.

        Args:
            images: a PIL image or a list of them, an array (B, H, W, C) or a tensor (B, C, H, W), the last two in
                [0, 1].
            class_labels: the class of each image, or one for all, by number or name.
            num_inference_steps, tolerance, step_tolerance: see `PoissonFlow.encode`.

        Returns:
            `FlowLatents` with `latents` (B, C, H, W) in data units at σ_max, and `nfe`.

        Raises:
            ValueError: if the images do not have the network's channels and size or are outside [0, 1], if a label is
                unknown, or if a fixed step is too long to be inverted.
        """
        x = move_to(images_to_tensor(images, self.unet.config), self._execution_device)
        x = x.to(torch.promote_types(x.dtype, self.unet.dtype))
        check_inputs(self.unet.config, PoissonFlowScheduler.from_scheduler(self.scheduler), None, x, "pt")
        with self.progress_bar(itertools.count()) as progress_bar:
            flow = self._flow(class_labels, 1.0, x, progress_bar)
            encoded = flow.encode(x, num_inference_steps, tolerance, step_tolerance)
        self.maybe_free_model_hooks()
        return encoded

    def decode(
        self,
        latents: torch.Tensor,
        class_labels: Labels = None,
        num_inference_steps: int = NUM_STEPS,
        output_type: str = "pil",
        tolerance: float | None = None,
        guidance_scale: float = 1.0,
        return_dict: bool = True,
        step_tolerance: float = STEP_TOLERANCE,
    ) -> PFGMPipelineOutput:
        """Decode latents: follow the flow from the prior to images. The inverse of `encode` for equal arguments.

        Args:
            latents: (B, C, H, W), in data units at σ_max.
            class_labels: the class of each image, or one for all.
            num_inference_steps, tolerance, step_tolerance: see `encode`.
            output_type: "pil", "np", "pt", or "latent" for the final state itself, in data units. Defaults to "pil".
            guidance_scale: the scale of classifier-free guidance to `class_labels`; 1 for no guidance. Guidance changes
                the field, so that with another value than 1 `decode` is not the inverse of `encode`. Defaults to 1.
            return_dict: whether to return an output object instead of a tuple. Defaults to True.

        Returns:
            `PFGMPipelineOutput` with `images` and `nfe`, or the tuple of both.

        Raises:
            ValueError: if the shape of `latents` or a label does not fit the network, if `output_type` or
                `guidance_scale` is not allowed, or if a fixed step is too long to be solved.
        """
        check_inputs(self.unet.config, PoissonFlowScheduler.from_scheduler(self.scheduler), None, latents, output_type)
        x = move_to(latents, self._execution_device)
        with self.progress_bar(itertools.count()) as progress_bar:
            flow = self._flow(class_labels, guidance_scale, x, progress_bar)
            decoded = flow.decode(x, num_inference_steps, tolerance, step_tolerance)
        images = postprocess(decoded.sample, output_type)
        self.maybe_free_model_hooks()
        output = PFGMPipelineOutput(images=images, nfe=decoded.nfe)
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
        return_dict: bool = True,
        step_tolerance: float = STEP_TOLERANCE,
    ) -> PFGMPipelineOutput:
        """Interpolate between the latents of pairs of images: B paths of `num` images, both ends included.

        Args:
            first_images: the B images at which the paths start, in a form that `encode` takes.
            second_images: the B images at which the paths end.
            num: the number of images of a path, at equal distances, at least 2. Defaults to 7.
            class_labels: the class of each pair, or one for all. By default a network that was also trained without
                labels uses all classes.
            num_inference_steps, tolerance, step_tolerance: see `encode`.
            output_type: "pil", "np", "pt", or "latent" for the final state itself, in data units. Defaults to "pil".
            return_dict: whether to return an output object instead of a tuple. Defaults to True.

        Returns:
            `PFGMPipelineOutput` with B · num `images`, path after path, and `nfe` of encoding and decoding, or the
            tuple of both.

        Raises:
            ValueError: if `num` is not a whole number ≥ 2, if there are not as many `second_images` as `first_images`,
                or as in `encode` and `decode`.
        """
        num = check_whole_number("num", num, 2, ", the ends included")
        counts = [len(images_to_tensor(images, self.unet.config)) for images in (first_images, second_images)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"`first_images` and `second_images` must be pairs, but are {counts[0]} and {counts[1]}. Repeat images "
                "that are the end of several paths."
            )
        self._check_decoding(second_images, class_labels, 1.0, output_type)
        solver = _solver_options(num_inference_steps, tolerance, step_tolerance)
        first = self.encode(first_images, class_labels, **solver)
        second = self.encode(second_images, class_labels, **solver)
        start, end = (HemisphereLatents.from_latents(encoded.latents) for encoded in (first, second))
        shares = torch.linspace(0, 1, num, device=first.latents.device)
        paths = interpolate(start, end, shares).to_latents().transpose(0, 1).flatten(0, 1)
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
        """Edit images: encode them with one class, and decode their latents with another.

        Args:
            image: the images, in a form that `encode` takes.
            class_labels: the class of each image, or one for all.
            target_class_labels: the class that each image is changed to; by default `class_labels`.
            guidance_scale: the scale of classifier-free guidance to the target class in decoding; 1 for no guidance.
                Defaults to 1.
            temperature: the factor by which the norms of the latents are multiplied (PFGM, arXiv 2209.11178, section
                4.3). Defaults to 1.
            num_inference_steps, tolerance, step_tolerance: see `encode`.
            output_type: "pil", "np", "pt", or "latent" for the final state itself, in data units. Defaults to "pil".
            return_dict: whether to return an output object instead of a tuple. Defaults to True.

        Returns:
            `PFGMPipelineOutput` with `images` and `nfe` of encoding and decoding, or the tuple of both.

        Raises:
            ValueError: if `temperature` is not a finite number > 0, or as in `encode` and `decode`.
        """
        check_temperature(temperature)
        target = class_labels if target_class_labels is None else target_class_labels
        self._check_decoding(image, target, guidance_scale, output_type)
        solver = _solver_options(num_inference_steps, tolerance, step_tolerance)
        encoded = self.encode(image, class_labels, **solver)
        latents = with_temperature(HemisphereLatents.from_latents(encoded.latents), temperature).to_latents()
        output = self.decode(latents, target, output_type=output_type, guidance_scale=guidance_scale, **solver)
        output.nfe += encoded.nfe
        return output if return_dict else output.to_tuple()

    def _check_decoding(self, images: Any, class_labels: Labels, guidance_scale: float, output_type: str) -> None:
        """Raise a ValueError for an argument of `decode` that is not allowed, before the images are encoded."""
        x = images_to_tensor(images, self.unet.config)
        check_inputs(self.unet.config, PoissonFlowScheduler.from_scheduler(self.scheduler), None, x, output_type)
        self._flow(class_labels, guidance_scale, x, None)

    def _flow(self, class_labels: Labels, guidance_scale: float, x: torch.Tensor, progress_bar: Any) -> PoissonFlow:
        """Return the flow for these classes. The progress bar counts its network calls."""
        scheduler = PoissonFlowScheduler.from_scheduler(self.scheduler)
        labels = as_list(class_labels)
        model_kwargs = self.prepare_class_labels(labels, len(x), x.device)
        model = self.prepare_model(scheduler, labels, model_kwargs, guidance_scale)
        return PoissonFlow(CountedModel(model, progress_bar, self.unet.dtype), scheduler)


def _solver_options(num_inference_steps: int, tolerance: float | None, step_tolerance: float) -> dict[str, Any]:
    return {"num_inference_steps": num_inference_steps, "tolerance": tolerance, "step_tolerance": step_tolerance}
