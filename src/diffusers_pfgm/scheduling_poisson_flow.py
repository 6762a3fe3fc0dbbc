"""The Poisson flow as a diffusers scheduler: prior, noise and the z-anchored backward ODE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, logging

from .physics.kernel import Generators, PoissonKernel, draw
from .physics.parameterization import Parameterization
from .physics.solvers import MAX_ORDER, SOLVERS, Step, plan

logger = logging.get_logger(__name__)

REDRAWS = 1000  # of the prior's radius before a limit counts as out of reach


@dataclass
class PoissonFlowSchedulerOutput(BaseOutput):
    """What `PoissonFlowScheduler.step` returns.

    Attributes:
        prev_sample: (B, C, *), the state at the next, smaller σ.
        pred_original_sample: (B, C, *), x̂, the data that the network sees from here.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class PoissonFlowScheduler(SchedulerMixin, ConfigMixin):
    """The backward ODE of Poisson flow models, dx/dσ = (x − x̂)/σ, from a hemisphere of charges' field lines to data.

    At D = 1 (`aug_dim`) σ is the z of PFGM (arXiv 2209.11178); other D are PFGM++ (arXiv 2302.04265) at r = σ√D, and
    D = ∞ is the diffusion model of EDM (arXiv 2206.00364). `len(scheduler.timesteps)` is the number of network calls.

    Args:
        aug_dim: D > 0; None for ∞.
        sigma_min: the last σ (z_min) at which the network is called, in data units. The step from there goes to σ = 0,
            where x = x̂, so it may be larger than the paper's 1e-3, whose ODE ends there. In an exact field of 64
            dimensions 0.7 % of points still lie between charges at 0.01, and 0.03 % at 0.001.
        sigma_max: the first σ (z_max), in data units.
        prediction_type: what the network returns: "field" (C + 1 channels), "sample" (x̂), "epsilon" ((x − x̂)/σ) or
            "v_prediction".
        gamma: γ of the normalised field, in data units.
        sigma_data: standard deviation of the data for a network with EDM's preconditioning; None for a plain network.
        solver: "multistep" (one call a step), "heun" (two) or "euler".
        solver_order: of "multistep", 1 to 3.
        use_corrector: of "multistep": redo each step with the x̂ that follows it, at no further call.
        max_norm: largest norm ‖x‖ of a prior sample, in data units: the `upper_norm` that training has seen. A radius
            beyond it is drawn again. None for the whole, heavy-tailed prior of an exact field.
        M: exponent of the training perturbation that led to `sigma_max` and `max_norm`, for the record.

    Raises:
        ValueError: if an argument is not one of these.

    Example:
        >>> scheduler = PoissonFlowScheduler()
        >>> scheduler.set_timesteps(10)
        >>> len(scheduler.timesteps), scheduler.timesteps[0].item()
        (10, 40.0)
    """

    _compatibles: list[str] = []

    @register_to_config
    def __init__(
        self,
        aug_dim: float | None = 1.0,
        sigma_min: float = 0.01,
        sigma_max: float = 40.0,
        prediction_type: Literal["field", "sample", "epsilon", "v_prediction"] = "field",
        gamma: float = 5.0,
        sigma_data: float | None = None,
        solver: Literal["multistep", "heun", "euler"] = "multistep",
        solver_order: int = 3,
        use_corrector: bool = True,
        max_norm: float | None = None,
        M: int | None = None,
    ) -> None:
        if aug_dim is not None and math.isinf(aug_dim):
            self.register_to_config(aug_dim=None)  # JSON has no infinity
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"`sigma_min` and `sigma_max` must satisfy 0 < sigma_min < sigma_max < inf, but are {sigma_min} and "
                f"{sigma_max}."
            )
        if solver not in SOLVERS:
            raise ValueError(f"`solver` must be one of {SOLVERS}, but is {solver!r}.")
        if not (isinstance(solver_order, int) and 1 <= solver_order <= MAX_ORDER):
            raise ValueError(f"`solver_order` must be 1, 2 or 3, but is {solver_order}.")
        if max_norm is not None and not 0 < max_norm < math.inf:
            raise ValueError(f"`max_norm` must be a finite number > 0 or None, but is {max_norm}.")
        self.kernel = PoissonKernel(aug_dim)
        self.parameterization = Parameterization(prediction_type, gamma, sigma_data)
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._denoised: list[torch.Tensor] = []  # x̂ of the latest calls, newest first
        self._set_sigmas([sigma_max], device=None)

    @property
    def order(self) -> int:
        """Network calls per step, as diffusers counts them."""
        return 2 if self.config.solver == "heun" else 1

    @property
    def init_noise_sigma(self) -> float:
        """Scale of the prior against `sample_noise`, as diffusers' pipelines expect it."""
        return self._sigmas[0]

    @property
    def step_index(self) -> int | None:
        """Index of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, if it was set."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at `timesteps[begin_index]`, as image-to-image pipelines do.

        Raises:
            ValueError: if there is no such timestep.
        """
        if not 0 <= begin_index < len(self.timesteps):
            raise ValueError(f"`begin_index` must be from 0 to {len(self.timesteps) - 1}, but is {begin_index}.")
        self._begin_index = int(begin_index)

    # Noise and prior

    def sample_noise(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Unit-scale kernel noise (B, *), Student-t with D degrees of freedom; `add_noise` is x + σ · noise."""
        return self.kernel.sample(shape, 1.0, generator, device, dtype)

    def sample_prior(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Starting points at the first σ, in data units: uniform on the hemisphere, projected onto z = z_max (D = 1).

        That is σ_max, or the first of the `sigmas` that `set_timesteps` was given.

        Args:
            shape: (B, *).
            generator: one generator, or a list of B of them.
            device: where the result lies.
            dtype: of the result; in float16 a heavy-tailed prior can overflow, so keep the state in float32.

        Returns:
            Tensor of `shape`, each row of norm ≤ `max_norm` if that is set.

        Raises:
            ValueError: if a list of generators has another length than B, or `max_norm` is out of reach.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3. Radii beyond `max_norm` are redrawn, not clipped onto one shell.
        """
        sigma, limit = self.init_noise_sigma, self.config.max_norm

        def within_limit(
            shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device
        ) -> torch.Tensor:
            prior = self.kernel.sample(shape, sigma, generator, device, dtype)
            for _ in range(REDRAWS):
                beyond = (prior.flatten(1).float().norm(dim=1) > limit).nonzero().flatten()
                if not len(beyond):
                    return prior
                prior[beyond] = self.kernel.sample((len(beyond), *shape[1:]), sigma, generator, device, dtype)
            raise ValueError(
                f"`max_norm` = {limit} is out of reach: after {REDRAWS} draws at sigma = {sigma} some norms are "
                "still larger. Set it to the `upper_norm` of training, or to None."
            )

        if limit is None:
            return self.kernel.sample(shape, sigma, generator, device, dtype)
        return draw(within_limit, tuple(shape), generator, torch.device(device or "cpu"))

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x + σ · noise, with `noise` from `sample_noise` and `timesteps` () or (B,) as in `self.timesteps`."""
        labels = timesteps.to(original_samples.device, torch.float32).reshape(-1, *[1] * (original_samples.ndim - 1))
        sigma = torch.as_tensor(self.parameterization.sigma(labels))
        return original_samples + sigma.to(original_samples.dtype) * noise

    # The run

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """Choose the heights of a run and forget the last one.

        Args:
            num_inference_steps: number of steps, from σ_max to σ_min in equal ratios and then to 0. Each is one
                network call, except for "heun", which makes 2n − 1.
            device: where `timesteps` lie.
            sigmas: your own σ's in place of a number, falling and positive; a last 0 may be given or left out.
            timesteps: the same as the values that the network sees, once for each step.

        Raises:
            ValueError: if not exactly one of the three is given, or it is not of this kind.
        """
        given = [value is not None for value in (num_inference_steps, sigmas, timesteps)]
        if sum(given) != 1:
            raise ValueError(
                "Pass exactly one of `num_inference_steps`, `sigmas` and `timesteps`, but got "
                f"num_inference_steps={num_inference_steps}, sigmas={sigmas}, timesteps={timesteps}."
            )
        if num_inference_steps is not None:
            if not num_inference_steps >= 1 or int(num_inference_steps) != num_inference_steps:
                raise ValueError(f"`num_inference_steps` must be a whole number >= 1, but is {num_inference_steps}.")
            values = self._spaced_sigmas(num_inference_steps)
        else:
            given_values = torch.as_tensor(timesteps if sigmas is None else sigmas, dtype=torch.float64)
            values = given_values.flatten().float().tolist()  # float32, as the network sees them
            if timesteps is not None:
                values = [float(self.parameterization.sigma(label)) for label in values]
            if len(values) > 1 and values[-1] == 0:
                values = values[:-1]
            falling = all(a > b for a, b in itertools.pairwise(values))
            if not (given_values.ndim == 1 and values and falling and values[-1] > 0 and math.isfinite(values[0])):
                name = "sigmas" if timesteps is None else "timesteps"
                raise ValueError(
                    f"`{name}` must be a list that falls strictly and stays positive in float32 (a last 0 aside), "
                    f"but is {given_values.tolist()}."
                )
        self.num_inference_steps = len(values)
        self._set_sigmas(values, device)

    def _spaced_sigmas(self, count: int) -> list[float]:
        """σ's at equal steps of λ = −log σ."""
        log_max, log_min = math.log(self.config.sigma_max), math.log(self.config.sigma_min)
        return torch.linspace(log_max, log_min, int(count), dtype=torch.float64).exp().tolist()

    def _set_sigmas(self, sigmas: list[float], device: torch.device | str | None) -> None:
        # Rounded first, so that the network sees just the σ's of the coefficients.
        self._sigmas = [*torch.tensor(sigmas, dtype=torch.float32).tolist(), 0.0]
        self._plan = self._planned(self._sigmas)
        calls = [step.sigma for step in self._plan]
        labels = torch.tensor([self.parameterization.label(sigma) for sigma in calls], dtype=torch.float32)
        self._labels: list[float] = labels.tolist()
        self.timesteps = labels.to(device)
        self.sigmas = torch.tensor([*calls, 0.0], dtype=torch.float32)
        self._begin_index = self._step_index = None
        self._denoised = []

    def _planned(self, sigmas: list[float]) -> list[Step]:
        return plan(sigmas, self.config.solver, self.config.solver_order, self.config.use_corrector)

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index of a timestep in `timesteps`; for one that is not there, with a warning, 0.

        An element of `timesteps` itself is found without reading it back from the device.
        """
        if isinstance(timestep, torch.Tensor):
            if timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
                return int(timestep.storage_offset())
            timestep = timestep.item()
        # Heun calls twice at a height; the second time begins a step, as in diffusers.
        found = [i for i, label in enumerate(self._labels) if label == timestep]
        if not found:
            logger.warning(f"The timestep {timestep} is none of `scheduler.timesteps`; starting at the first.")
        return found[-1] if found else 0

    def _current_index(self, timestep: float | torch.Tensor) -> int:
        if self.num_inference_steps is None:
            raise ValueError("The scheduler was used before `set_timesteps`. Call `scheduler.set_timesteps(20)` first.")
        if self._step_index is None:
            self._step_index = self._start(timestep)
        if self._step_index >= len(self._plan):
            raise ValueError(
                f"`step` was called after the last of {len(self._plan)} timesteps. Call `set_timesteps` to start again."
            )
        return self._step_index

    def _start(self, timestep: float | torch.Tensor) -> int:
        begin = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if begin:  # no past to extrapolate from
            steps = self._planned(self._sigmas[math.ceil(begin / self.order) :])
            if begin % self.order:  # the second call of a Heun step, whose first was left out: stay, then begin
                steps.insert(0, Step(steps[0].sigma, 1.0, (0.0,)))
            self._plan[begin:] = steps
        return begin

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """The input that the network sees: `sample` itself, or c_in · `sample` with `sigma_data`."""
        if self.config.sigma_data is None:
            return sample
        return sample * self.parameterization.input_scale(self._plan[self._current_index(timestep)].sigma)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> PoissonFlowSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Follow the field line from this σ to the next, smaller one.

        Args:
            model_output: (B, C', *), the network's output at `sample`; C' = C + 1 for "field", else C.
            timestep: the element of `timesteps` that the network has seen. Read at the first step only.
            sample: (B, C, *), the state, in data units.
            generator: not used, the flow is deterministic; accepted because diffusers' pipelines pass it.
            return_dict: whether to return an output object rather than a tuple.

        Returns:
            The next state and x̂, both in sample's dtype. Arithmetic is in float32 at least.

        Raises:
            ValueError: before `set_timesteps`, after the last step, or if `model_output` has the wrong shape.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3; PFGM++, arXiv 2302.04265, section 3.
        """
        index = self._current_index(timestep)
        step = self._plan[index]
        self.parameterization.check_output(model_output, sample)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(dtype)
        denoised = self.parameterization.denoised(model_output.to(dtype), x, step.sigma)
        self._denoised.insert(0, denoised)
        prev_sample = step(x, self._denoised).to(sample.dtype)
        self._step_index = index + 1
        following = self._plan[index + 1 : index + 2]
        del self._denoised[len(following[0].weights) - 1 if following else 0 :]  # no step needs older ones
        output = PoissonFlowSchedulerOutput(prev_sample, denoised.to(sample.dtype))
        return output if return_dict else output.to_tuple()
