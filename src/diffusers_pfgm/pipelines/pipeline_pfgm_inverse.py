"""Inverse problems: pictures that explain a measurement, by a Poisson flow as their prior."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..flow.poisson_flow import PoissonFlow
from ..inverse.latent_sampling import LatentSampler, LatentSamples
from ..inverse.measurement_guidance import GUIDANCE_METHODS, GuidedByMeasurement
from ..inverse.operators import Inpainting, LinearOperator, Measurement, beside, check_adjoint
from ..physics.charges import check_finite
from ..physics.tensors import Generators
from ..schedulers.scheduling_poisson_flow import PoissonFlowScheduler
from ..schedulers.stepping import scheduler_steps
from .base import PoissonFlowPipeline
from .calls import Callback, check_callback_inputs, copy_scheduler
from .class_conditioning import Label, as_list
from .inputs import check_inputs
from .outputs import postprocess

METHODS = (*GUIDANCE_METHODS, "latent")
OUTLIER, SLACK = 5.0, 1.1  # noise in standard deviations, and for a norm that is found from below


@dataclass
class PFGMInverseOutput(BaseOutput):
    """What `PFGMInversePipeline` returns.

    Attributes:
        images: B PIL images, a NumPy array (B, H, W, C) or a tensor (B, C, H, W), the last two in [0, 1].
        samples: (B, C, H, W), the same in data units, not clamped.
        nfe: network calls (of the whole batch; of the chains still under way for "latent").
        decodes_per_sweep, acceptance: of the chains of "latent", see `LatentSamples`; None for the others.
    """

    images: Any
    samples: torch.Tensor
    nfe: int
    decodes_per_sweep: float | None = None
    acceptance: float | None = None


class PFGMInversePipeline(PoissonFlowPipeline):
    """Samples of the posterior of pictures given a measurement; loads what `PFGMPipeline` saves.

    Args:
        unet, scheduler, id2label: as of `PFGMPipeline`.

    Example:
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
        operator: Measurement,
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
        """Draw pictures given y = A x + noise_std · ε, x in [-1, 1].

        Args:
            measurement: y (B, *'), or (1, *') for B pictures that explain one measurement; real or complex.
            operator: A, a `LinearOperator`; or any function of x (B, C, H, W) that autograd follows. It is called with
                all B pictures, so that it may measure each in its own way.
            noise_std: σ_y, in y's units; of a complex y the standard deviation of its real and imaginary part each.
            method: "guidance" (fast, approximate), "replacement" (for comparison: no noise, linear A) or "latent"
                (chains that begin at a guided sample and become exact as they grow).
            num_inference_steps: number of fixed steps, with two network calls each for "guidance".
            num_sweeps: of "latent", about four decodings of 15 calls each at D = 1.
            batch_size: B, as many as measurements by default.
            generator: one generator, or a list of one for each picture, which makes a picture the same in any batch.
            class_labels: the class of each picture, or one for all, by number or name.
            output_type: "pil", "np", "pt", or "latent" for the same as `samples`.
            return_dict: whether to return an output object rather than a tuple.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as of `PFGMPipeline`, for the steps of "guidance",
                those that "latent" begins with too, and "replacement".
            data_std: s_data of the guidance, in data units.

        Returns:
            `PFGMInverseOutput`, or the tuple of its values.

        Raises:
            ValueError: if an argument does not fit: a measurement of the wrong shape, with NaN or beyond what pictures
                in [-1, 1] could have; an operator whose adjoint is wrong; an unknown method.

        Reference:
            See `inverse/guidance.py` and `inverse/latent_sampling.py`.
        """
        callback_inputs = check_callback_inputs(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        scheduler: Any = copy_scheduler(self.scheduler)
        flow = PoissonFlowScheduler.from_scheduler(scheduler)
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {METHODS}, but is {method!r}.")
        if method == "latent" and not 0 < noise_std < math.inf:
            raise ValueError(
                f"`noise_std` must be a finite number > 0 for 'latent', whose chains need room, but is {noise_std}. "
                "Use 'guidance', or a small number such as 0.01."
            )
        measurement = torch.as_tensor(measurement)
        if not measurement.ndim:
            raise ValueError("`measurement` must have the shape (B, ...), but is a single number.")
        if batch_size is None:
            batch_size = len(measurement)
        shape = check_inputs(self.unet.config, flow, batch_size, None, output_type)
        device, dtype = self._execution_device, torch.promote_types(self.unet.dtype, torch.float32)
        blank = torch.zeros(shape, device=device, dtype=dtype)
        measurement = _checked(beside(measurement, blank), operator, noise_std, blank)
        labels = self.prepare_class_labels(as_list(class_labels), shape[0], device)

        guided = GuidedByMeasurement(
            self.unet,
            flow.parameterization,
            operator,
            measurement,
            noise_std,
            flow.kernel.aug_dim,
            data_std,
            "replacement" if method == "replacement" else "guidance",
            **labels,
        )
        self.set_timesteps(scheduler, num_inference_steps, None, device)
        samples = self.prepare_latents(scheduler, flow, shape, generator, device, dtype)
        with self._calling(scheduler) as call, self.progress_bar(total=len(scheduler.timesteps)) as progress_bar:
            for step in scheduler_steps(scheduler, guided, samples, self.unet.dtype, generator):
                self.end_step(step, callback_on_step_end, callback_inputs, labels)
                samples = step.sample
                progress_bar.update()
                if call.interrupt:
                    break
        nfe, chains = guided.denoiser.nfe, {}
        if method == "latent" and not call.interrupt:
            found = self._sample_latents(samples, operator, measurement, noise_std, num_sweeps, generator, labels)
            samples, nfe = found.sample, nfe + found.nfe
            chains = {"decodes_per_sweep": found.decodes_per_sweep, "acceptance": found.acceptance}
        images = postprocess(samples, output_type)
        output = PFGMInverseOutput(images=images, samples=samples, nfe=nfe, **chains)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def _sample_latents(
        self,
        samples: torch.Tensor,
        operator: Measurement,
        measurement: torch.Tensor,
        noise_std: float,
        num_sweeps: int,
        generator: Generators,
        labels: dict[str, Any],
    ) -> LatentSamples:
        """The ends of chains that begin at these samples; its `nfe` counts the way up to their latents too."""

        def log_likelihood(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            # The operator may be of the whole batch, such as one with a mask for each picture.
            batch = x.new_zeros(len(measurement), *x.shape[1:]).index_copy(0, rows, x)
            errors = (measurement - operator(batch))[rows]
            norms = torch.linalg.vector_norm(errors.reshape(len(errors), -1), dim=1)
            return -norms.square() / (2 * noise_std**2)

        sampler = LatentSampler(PoissonFlow(self.unet, self.scheduler), log_likelihood, generator, **labels)
        start, nfe = sampler.encode(samples)
        with self.progress_bar(total=num_sweeps) as progress_bar:
            found = sampler(start, num_sweeps, lambda sweeps: progress_bar.update(sweeps - progress_bar.n))
        found.nfe += nfe
        return found


def _checked(measurement: torch.Tensor, operator: Measurement, noise_std: float, blank: torch.Tensor) -> torch.Tensor:
    """The measurement, one for each picture of a batch like `blank`, of an operator whose adjoint is right.

    Raises:
        ValueError: see `PFGMInversePipeline.__call__`.
    """
    count, made = len(blank), operator(blank)
    if not isinstance(made, torch.Tensor) or made.ndim == 0:
        raise ValueError(
            "`operator` must make a tensor (B, ...) with one measurement of each picture, but makes "
            f"{'one number for all' if isinstance(made, torch.Tensor) else type(made).__name__}."
        )
    if len(made) != count:
        raise ValueError(
            f"`operator` makes {len(made)} measurements of {count} pictures. It must make one of each: was it made, or "
            "its mask, for another `batch_size`?"
        )
    expected = tuple(made.shape[1:])
    if tuple(measurement.shape[1:]) != expected or len(measurement) not in (1, count):
        raise ValueError(
            f"`measurement` must have the shape {(count, *expected)}, or {(1, *expected)} for all, which `operator` "
            f"makes of pictures {tuple(blank.shape)}, but has {tuple(measurement.shape)}."
        )
    if measurement.is_complex() != made.is_complex():
        kinds = ["complex" if each.is_complex() else "real" for each in (measurement, made)]
        raise ValueError(
            f"`measurement` is {kinds[0]}, but `operator` makes {kinds[1]} numbers. Both must be the same."
        )
    measurement = measurement.expand(count, *expected)
    if isinstance(operator, Inpainting):
        measurement = operator(measurement)
    check_finite("measurement", measurement)
    if isinstance(operator, LinearOperator):
        check_adjoint(operator, blank)
        # Pictures in [-1, 1] are no longer than √N, and what A makes of them no longer than its norm times that.
        longest = float(torch.linalg.vector_norm(measurement.reshape(count, -1), dim=1).max())
        noise = OUTLIER * max(noise_std, 0.0) * math.sqrt(measurement[0].numel() * (2 if made.is_complex() else 1))
        room = operator.norm(blank) * math.sqrt(blank[0].numel()) + noise
        if longest > SLACK * room:
            raise ValueError(
                f"`measurement` has the norm {longest:.4g}, but of pictures in [-1, 1] it is at most {room:.4g}. Scale "
                "bytes by / 127.5 - 1 before they are measured, or state a larger `noise_std`."
            )
    return measurement
