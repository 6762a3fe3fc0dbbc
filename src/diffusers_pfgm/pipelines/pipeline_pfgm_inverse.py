"""Inverse problems: samples of the posterior of images given a measurement, with a Poisson flow as the prior."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..flow.poisson_flow import PoissonFlow
from ..inverse.check_measurement import as_measurement, check_measurement
from ..inverse.latent_sampling import LatentSampler, LatentSamples
from ..inverse.linear_operator import Operator, measurement_like
from ..inverse.measurement_guidance import GUIDANCE_METHODS, GuidedByMeasurement
from ..physics.tensors import Generators
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.stepping import scheduler_steps
from ..utils.checks import check_whole_number
from .base import PoissonFlowPipeline
from .calls import Callback, check_callback_inputs, copy_scheduler
from .class_conditioning import Label, as_list
from .inputs import check_inputs, latents_shape
from .outputs import postprocess

INVERSE_METHODS = (*GUIDANCE_METHODS, "latent")


@dataclass
class PFGMInverseOutput(BaseOutput):
    """Output of `PFGMInversePipeline`.

    Attributes:
        images: B PIL images, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in [0, 1].
        samples: (B, C, H, W), the same images in data units, not clamped.
        nfe: the number of network calls. Each evaluates the whole batch or, for "latent", the chains that are not
            finished.
        decodes_per_sweep: the mean number of decodings of a chain in a sweep; None unless the method is "latent".
        acceptance: the share of accepted proposals for the radius, see `LatentSamples`; None unless the method is
            "latent".
    """

    images: Any
    samples: torch.Tensor
    nfe: int
    decodes_per_sweep: float | None = None
    acceptance: float | None = None


class PFGMInversePipeline(PoissonFlowPipeline):
    """Samples of the posterior of images given a measurement.

    Args:
        unet, scheduler, id2label: as in `PFGMPipeline`, whose saved folders this pipeline loads.

    Examples:
        >>> from diffusers_pfgm import ChargeField, Inpainting, PoissonFlowScheduler
        >>> charges = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> pipe = PFGMInversePipeline(unet=ChargeField(charges), scheduler=PoissonFlowScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> upper_half = Inpainting(torch.arange(8).unsqueeze(1) < 4)
        >>> generator = torch.Generator().manual_seed(0)
        >>> output = pipe(upper_half(charges[3:4]), upper_half, generator=generator)
        >>> torch.allclose(output.samples, charges[3:4], atol=1e-3), output.nfe
        (True, 40)
    """

    @torch.no_grad()
    def __call__(
        self,
        measurement: torch.Tensor,
        operator: Operator,
        noise_std: float = 0.05,
        method: str = "guidance",
        num_inference_steps: int = 20,
        num_sweeps: int = 40,
        batch_size: int | None = None,
        generator: Generators = None,
        class_labels: Label | Sequence[Label] | torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        data_std: float = 0.5,
    ) -> PFGMInverseOutput:
        """Draw images x in [-1, 1] given a measurement y = A x + noise_std · ε, ε standard normal.

        Args:
            measurement: y (B, *'), or (1, *') for B images of one measurement; real or complex.
            operator: A, a `LinearOperator`, or another function of x (B, C, H, W) that autograd can differentiate. It
                is called with all B images, so it may measure each of them differently.
            noise_std: σ_y, the standard deviation of the noise in the units of y; for a complex y that of its real and
                of its imaginary part. Defaults to 0.05.
            method: "guidance" (fast, approximate), "replacement" (for comparison; no noise, linear A only) or "latent"
                (Markov chains that start at a sample of "guidance" and converge to the exact posterior). Defaults to
                "guidance".
            num_inference_steps: the number of fixed steps, with two network calls each for "guidance". Defaults to 20.
            num_sweeps: the number of sweeps of the chains of "latent". A sweep takes about four decodings of 15 network
                calls each at D = 1. Defaults to 40.
            batch_size: B, by default the number of measurements.
            generator: one generator, or a list of B generators, one for each image. With a list an image does not
                depend on the rest of the batch.
            class_labels: the class of each image, or one for all, by number or name.
            output_type: "pil", "np", "pt", or "latent" for the same as `samples`. Defaults to "pil".
            return_dict: whether to return an output object instead of a tuple. Defaults to True.
            callback_on_step_end, callback_on_step_end_tensor_inputs: see `PFGMPipeline`, for the steps of "guidance"
                and "replacement". "latent" calls it in the steps of its first sample.
            data_std: s_data of the guidance, the standard deviation of the data, in data units. Defaults to 0.5.

        Returns:
            `PFGMInverseOutput`, or the tuple of its values that are not None.

        Raises:
            ValueError: if `measurement` has the wrong shape, is not finite, or is larger than images in [-1, 1] allow;
                if `operator` has a wrong adjoint or does not return one measurement for each image; if `method` is
                unknown; if another argument is out of its range.

        Reference:
            See `inverse/measurement_guidance.py` and `inverse/latent_sampling.py`.
        """
        # 1. Check the arguments
        callback_inputs = check_callback_inputs(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        scheduler: Any = copy_scheduler(self.scheduler)
        converted = PoissonFlowScheduler.from_scheduler(scheduler)
        if method not in INVERSE_METHODS:
            raise ValueError(f"`method` must be one of {INVERSE_METHODS}, but is {method!r}.")
        if method == "latent":  # the chains, which need these, only start after the guided samples
            if not 0 < noise_std < math.inf:
                raise ValueError(
                    f"`noise_std` must be a finite number > 0 for 'latent', whose likelihood has no density without "
                    f"noise, but is {noise_std}. Use 'guidance', or a small number such as 0.01."
                )
            num_sweeps = check_whole_number("num_sweeps", num_sweeps, 1)
            PoissonFlow(self.unet, scheduler)  # raises if the scheduler begins at infinite σ
        measurement = as_measurement(measurement)
        if batch_size is None:
            batch_size = len(measurement)
        check_inputs(self.unet.config, converted, batch_size, None, output_type)
        shape = latents_shape(self.unet.config, batch_size, None)
        device = self._execution_device
        dtype = torch.promote_types(self.unet.dtype, torch.float32)
        blank_images = torch.zeros(shape, device=device, dtype=dtype)
        measurement = check_measurement(measurement_like(measurement, blank_images), operator, noise_std, blank_images)

        # 2. Prepare the class labels, the guided network, the timesteps and the latents
        model_kwargs = self.prepare_class_labels(as_list(class_labels), shape[0], device)
        has_sigma_timesteps = scheduler is converted and converted.parameterization.train_sigmas is None
        guided = GuidedByMeasurement(
            self.unet,
            converted.parameterization,
            operator,
            measurement,
            noise_std,
            converted.kernel.aug_dim,
            data_std,
            "replacement" if method == "replacement" else "guidance",
            converted.sigma_of_call if has_sigma_timesteps else None,
            **model_kwargs,
        )
        self.set_timesteps(scheduler, num_inference_steps, None, device)
        samples = self.prepare_latents(scheduler, converted, shape, generator, device, dtype)

        # 3. Denoising loop
        with self._call_context(scheduler) as call, self.progress_bar(total=len(scheduler.timesteps)) as progress_bar:
            for step in scheduler_steps(scheduler, guided, samples, self.unet.dtype, generator):
                self.end_step(step, callback_on_step_end, callback_inputs, model_kwargs)
                samples = step.sample
                progress_bar.update()
                if call.interrupt:
                    break
        nfe = guided.denoiser.nfe

        # 4. Markov chains that start at these samples
        chain_statistics = {}
        if method == "latent" and not call.interrupt:
            chains = self._sample_latents(
                samples, operator, measurement, noise_std, num_sweeps, generator, model_kwargs
            )
            samples = chains.sample
            nfe += chains.nfe
            chain_statistics = {"decodes_per_sweep": chains.decodes_per_sweep, "acceptance": chains.acceptance}

        # 5. Convert the samples to images
        images = postprocess(samples, output_type)
        output = PFGMInverseOutput(images=images, samples=samples, nfe=nfe, **chain_statistics)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def _sample_latents(
        self,
        samples: torch.Tensor,
        operator: Operator,
        measurement: torch.Tensor,
        noise_std: float,
        num_sweeps: int,
        generator: Generators,
        model_kwargs: dict[str, Any],
    ) -> LatentSamples:
        """Return the ends of Markov chains that start at these samples. Its `nfe` includes encoding the samples."""

        def log_likelihood(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            # The operator needs the whole batch if it measures each image differently, such as by a mask for each.
            batch = x.new_zeros(len(measurement), *x.shape[1:]).index_copy(0, rows, x)
            errors = (measurement - operator(batch))[rows]
            norms = torch.linalg.vector_norm(errors.reshape(len(errors), -1), dim=1)
            return -norms.square() / (2 * noise_std**2)

        sampler = LatentSampler(PoissonFlow(self.unet, self.scheduler), log_likelihood, generator, **model_kwargs)
        start, encoding_nfe = sampler.encode(samples)
        with self.progress_bar(total=num_sweeps) as progress_bar:
            chains = sampler(start, num_sweeps, lambda sweeps: progress_bar.update(sweeps - progress_bar.n))
        chains.nfe += encoding_nfe
        return chains
