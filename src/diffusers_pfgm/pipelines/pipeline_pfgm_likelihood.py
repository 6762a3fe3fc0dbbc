"""How likely pictures are under a Poisson flow model, in nats and bits per dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..flow.dequantization import bits_per_dim, check_num_levels, dequantize
from ..flow.poisson_flow import PoissonFlow
from ..physics.tensors import Generators
from ..utils.checks import check_whole_number
from .base import PoissonFlowPipeline
from .class_conditioning import Label, as_list
from .inputs import images_to_tensor


@dataclass
class PFGMLikelihoodOutput(BaseOutput):
    """What `PFGMLikelihoodPipeline` returns.

    Attributes:
        log_prob: (B,), in nats: the density at σ_min of a dequantised picture in [-1, 1].
        bits_per_dim: (B,), of pictures in whole levels; None without dequantisation.
        standard_error: (B,), in nats, of a random divergence; 0 for an exact one, None for a single probe.
        truncation: (B,), in nats: an estimate of the largest error of `log_prob`, see `FlowLogProb`.
        latents: (B, C, H, W), where the pictures come from.
        nfe: network calls of a picture.
    """

    log_prob: torch.Tensor
    bits_per_dim: torch.Tensor | None
    standard_error: torch.Tensor | None
    truncation: torch.Tensor
    latents: torch.Tensor
    nfe: int


class PFGMLikelihoodPipeline(PoissonFlowPipeline):
    """Likelihoods of pictures, by the change of variables along the flow; loads what `PFGMPipeline` saves.

    Args:
        unet, scheduler, id2label: as in `PFGMPipeline`.

    Example:
        >>> from diffusers_pfgm import ChargeField, PoissonFlowScheduler
        >>> charges = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> pipe = PFGMLikelihoodPipeline(ChargeField(charges), PoissonFlowScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(charges[:2] / 2 + 0.5, num_levels=None).log_prob.shape
        torch.Size([2])
    """

    def __call__(
        self,
        images: Any,
        class_labels: Label | Sequence[Label] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        divergence: str = "hutchinson",
        num_probes: int = 1,
        generator: Generators = None,
        num_levels: int | None = 256,
        batch_size: int = 64,
        tolerance: float | None = None,
        guidance_scale: float = 1.0,
        return_dict: bool = True,
    ) -> PFGMLikelihoodOutput:
        """Log-densities and bits per dimension.

        Args:
            images: PIL images, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in [0, 1].
            class_labels: the class of each picture, or one for all; without it, the likelihood under all classes.
            num_inference_steps: number of fixed steps; None for the adaptive solver.
            divergence: "hutchinson", "hutch++" or "exact" (N products a call).
            num_probes: products a call of the first two.
            generator: of dequantisation and probes, one, or a list of one for each picture.
            num_levels: of a pixel, 256 for 8 bits; None for the density of the pictures as they are.
            batch_size: pictures at a time.
            tolerance: of the adaptive solver, 3e-4 nats by default; see `PoissonFlow.log_prob`.
            guidance_scale: must be 1: a guided sampler has no such likelihood.
            return_dict: whether to return an output object rather than a tuple of its values that are not None.

        Raises:
            ValueError: if an argument does not fit, or the sampler is guided or stochastic.
        """
        if guidance_scale != 1:
            raise ValueError(
                f"`guidance_scale` = {guidance_scale} would ask for the likelihood of a guided sampler, whose field is "
                "a mixture of two that belongs to no distribution of data. Set it to 1, and pass `class_labels` for "
                "the likelihood under a class."
            )
        if num_levels is not None:
            check_num_levels(num_levels)
        pictures = images_to_tensor(images, self.unet.config).to(self._execution_device)
        flow = PoissonFlow(self.unet, self.scheduler)
        labels = self.prepare_class_labels(as_list(class_labels), len(pictures), pictures.device)
        batch_size = check_whole_number("batch_size", batch_size, 1)
        found = []
        for first in self.progress_bar(range(0, len(pictures), batch_size)):
            rows = slice(first, first + batch_size)
            given = generator[rows] if isinstance(generator, list | tuple) else generator
            points = pictures[rows] if num_levels is None else dequantize(pictures[rows], num_levels, given)
            options: dict[str, Any] = {name: value[rows] for name, value in labels.items()}
            found.append(
                flow.log_prob(
                    points, num_inference_steps, divergence, num_probes, given, tolerance=tolerance, **options
                )
            )
        self.maybe_free_model_hooks()
        log_prob, truncation, latents = (
            torch.cat([getattr(part, name) for part in found]) for name in ("log_prob", "truncation", "latents")
        )
        errors = [part.standard_error for part in found if part.standard_error is not None]
        output = PFGMLikelihoodOutput(
            log_prob,
            None if num_levels is None else bits_per_dim(log_prob, pictures[0].numel(), num_levels),
            torch.cat(errors) if errors else None,
            truncation,
            latents,
            max(part.nfe for part in found),
        )
        return output if return_dict else output.to_tuple()
