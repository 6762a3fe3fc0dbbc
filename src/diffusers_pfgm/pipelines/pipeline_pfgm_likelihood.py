"""Likelihoods of images under a Poisson flow model, in nats and bits per dimension."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..flow.densities import even_batch_size
from ..flow.dequantization import bits_per_dim, check_num_levels, dequantize
from ..flow.poisson_flow import PoissonFlow
from ..physics.tensors import Generators, move_to
from ..utils.checks import check_whole_number
from .base import PoissonFlowPipeline
from .class_conditioning import Label, as_list
from .inputs import images_to_tensor


@dataclass
class PFGMLikelihoodOutput(BaseOutput):
    """Output of `PFGMLikelihoodPipeline`.

    Attributes:
        log_prob: (B,), in nats, the log-density at σ_min of the dequantized images in [-1, 1].
        bits_per_dim: (B,), the negative log-likelihood of the quantized images in bits per dimension; None without
            dequantization.
        standard_error: (B,), in nats, the standard error of `log_prob` from a random divergence; 0 for an exact
            divergence, None for a single probe.
        truncation: (B,), in nats, an estimate of the largest error of `log_prob`, see `FlowLogProb`.
        latents: (B, C, H, W), the latents of the images, in data units at σ_max.
        nfe: the number of network calls for an image.
    """

    log_prob: torch.Tensor
    bits_per_dim: torch.Tensor | None
    standard_error: torch.Tensor | None
    truncation: torch.Tensor
    latents: torch.Tensor
    nfe: int


class PFGMLikelihoodPipeline(PoissonFlowPipeline):
    """Likelihoods of images, by the change of variables along the flow.

    Args:
        unet, scheduler, id2label: as in `PFGMPipeline`, whose saved folders this pipeline loads.

    Examples:
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
        batch_size: int | None = None,
        tolerance: float | None = None,
        guidance_scale: float = 1.0,
        return_dict: bool = True,
        step_tolerance: float | None = None,
    ) -> PFGMLikelihoodOutput:
        """Compute log-densities and bits per dimension of images.

        Args:
            images: PIL images, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in [0, 1].
            class_labels: the class of each image, or one for all. By default the likelihood is that under all classes.
            num_inference_steps: the number of fixed steps; None for the adaptive solver.
            divergence: "hutchinson", "hutch++", or "exact", which takes N vector-Jacobian products for each network
                call. Defaults to "hutchinson".
            num_probes: the number of random probes of "hutchinson" and "hutch++", which is that of their
                vector-Jacobian products for each network call; a multiple of 3 for "hutch++". Defaults to 1.
            generator: the source of the dequantization noise and the probes: one generator, or a list of B generators,
                one for each image.
            num_levels: the number of values of a pixel, 256 for 8 bits; None for the density of the images as they are,
                without dequantization. Defaults to 256.
            batch_size: the largest number of images that are evaluated at once, by default as many as have 65,536
                numbers (21 of 3 x 32 x 32), since each needs the memory of a backward pass. On a GPU with free memory
                more are faster.
            tolerance: the tolerance of the adaptive solver in nats, by default 3e-4; see `PoissonFlow.log_prob`.
            guidance_scale: must be 1, because a guided sampler has no likelihood. Defaults to 1.
            return_dict: whether to return an output object instead of a tuple of its values that are not None. Defaults
                to True.
            step_tolerance: relative tolerance of the equation of each fixed step; see `PoissonFlow.log_prob`.

        Returns:
            `PFGMLikelihoodOutput`, or the tuple of its values that are not None.

        Raises:
            ValueError: if `guidance_scale` is not 1; if the images or labels do not fit the network; if the scheduler
                is stochastic; if another argument is out of its range.
        """
        # 1. Check the arguments
        if guidance_scale != 1:
            raise ValueError(
                f"`guidance_scale` = {guidance_scale} would ask for the likelihood of a guided sampler, whose field is "
                "a combination of two fields and not the field of a data distribution. Set it to 1, and pass "
                "`class_labels` for the likelihood under a class."
            )
        if num_levels is not None:
            check_num_levels(num_levels)
        if batch_size is not None:
            check_whole_number("batch_size", batch_size, 1)

        # 2. Prepare the images, the flow and the class labels
        data = move_to(images_to_tensor(images, self.unet.config), self._execution_device)
        flow = PoissonFlow(self.unet, self.scheduler)
        model_kwargs = self.prepare_class_labels(as_list(class_labels), len(data), data.device)
        batch_size = even_batch_size(data, batch_size)
        if isinstance(generator, list | tuple) and len(generator) != len(data):
            raise ValueError(
                f"`generator` is a list of {len(generator)}, but there are {len(data)} images. Pass one generator for "
                "each image, or one for all."
            )

        # 3. Compute the log-densities
        batches = []
        for first in self.progress_bar(range(0, len(data), batch_size)):
            rows = slice(first, first + batch_size)
            generators = generator[rows] if isinstance(generator, list | tuple) else generator
            x = data[rows] if num_levels is None else dequantize(data[rows], num_levels, generators)
            batch_kwargs: dict[str, Any] = {name: value[rows] for name, value in model_kwargs.items()}
            batches.append(
                flow.log_prob(
                    x,
                    num_inference_steps,
                    divergence,
                    num_probes,
                    generators,
                    tolerance=tolerance,
                    step_tolerance=step_tolerance,
                    batch_size=batch_size,
                    **batch_kwargs,
                )
            )
        self.maybe_free_model_hooks()

        # 4. Join the batches
        log_prob = torch.cat([batch.log_prob for batch in batches])
        errors = [batch.standard_error for batch in batches if batch.standard_error is not None]
        output = PFGMLikelihoodOutput(
            log_prob=log_prob,
            bits_per_dim=None if num_levels is None else bits_per_dim(log_prob, data[0].numel(), num_levels),
            standard_error=torch.cat(errors) if errors else None,
            truncation=torch.cat([batch.truncation for batch in batches]),
            latents=torch.cat([batch.latents for batch in batches]),
            nfe=max(batch.nfe for batch in batches),
        )
        return output if return_dict else output.to_tuple()
