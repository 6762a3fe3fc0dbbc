"""The Poisson flow as a diffusers scheduler: prior, noise and the z-anchored backward ODE."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, logging

from ..hub.serialization import PACKAGE, add_component_code
from ..physics.kernel import PoissonKernel
from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, cast_clamped
from ..solvers.multistep import Step, plan_steps, variance_preserving
from ..solvers.spacing import check_knots
from .beta_schedule import BetaSchedule
from .conversion import convert_scheduler
from .diffusers_configs import (
    DDPM_COMPATIBLES,
    EDM_COMPATIBLES,
    complete_config,
    convert_config,
    hidden_defaults,
    refuse_noise,
)
from .noising import NoisingMixin
from .options import LEARNED, checked_options
from .sigma_schedule import RunSigmas, SigmaSchedule
from .state_convention import StateConvention

logger = logging.get_logger(__name__)


@dataclass
class PoissonFlowSchedulerOutput(BaseOutput):
    """What `PoissonFlowScheduler.step` returns.

    Attributes:
        prev_sample: (B, C, *), the state at the next, smaller σ.
        pred_original_sample: (B, C, *), x̂, the data that the network sees from here.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class PoissonFlowScheduler(NoisingMixin, SchedulerMixin, ConfigMixin):
    """The backward ODE of Poisson flow models, dx/dσ = (x − x̂)/σ, from a hemisphere of charges' field lines to data.

    At D = 1 (`aug_dim`) σ is the z of PFGM (arXiv 2209.11178); other D are PFGM++ (arXiv 2302.04265) at r = σ√D, and
    D = ∞ is the diffusion model of EDM (arXiv 2206.00364). `len(scheduler.timesteps)` is the number of network calls.

    With a beta schedule it drives networks of the DDPM family: `timesteps` are diffusers' own integers, and the state
    is x / √(1 + σ²). `from_config` takes the configuration of such a scheduler, or of EDM's.

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
        sigma_knots: heights from σ_max to σ_min at equal shares of the steps, from `fit_sigmas`; None for steps in
            equal ratios of σ, or with a beta schedule for `timestep_spacing`.
        final_sigmas_type: "zero", or "sigma_min" to end there.
        max_norm: largest norm ‖x‖ of a prior sample, in data units: the `upper_norm` that training has seen. A radius
            beyond it is drawn again. None for the whole, heavy-tailed prior of an exact field.
        M: exponent of the training perturbation that led to `sigma_max` and `max_norm`, for the record.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2" for a network of the DDPM family. The heights
            are those of its training, and `sigma_min` and `sigma_max` are None.
        trained_betas: the betas themselves, in place of `beta_schedule`.
        num_train_timesteps, beta_start, beta_end, rescale_betas_zero_snr: of the beta schedule, as in diffusers.
        timestep_spacing: "leading", "trailing" or "linspace".
        steps_offset: added to the timesteps of "leading".
        timesteps_from: the name of a scheduler of diffusers whose timesteps and σ's are taken, as its `set_timesteps`
            makes them; `from_config` sets it. None for equal ratios of σ, or with a beta schedule for DDIMScheduler's.
        variance_type: "learned" or "learned_range" for a network that also predicts a variance, in C further channels,
            which are not used. The other values that diffusers has for it are allowed and mean none.

    Raises:
        ValueError: if an argument is not one of these.

    Example:
        >>> scheduler = PoissonFlowScheduler()
        >>> scheduler.set_timesteps(10)
        >>> len(scheduler.timesteps), scheduler.timesteps[0].item()
        (10, 40.0)
    """

    _compatibles = DDPM_COMPATIBLES + EDM_COMPATIBLES

    @register_to_config
    def __init__(
        self,
        aug_dim: float | None = 1.0,
        sigma_min: float | None = 0.01,
        sigma_max: float | None = 40.0,
        prediction_type: Literal["field", "sample", "epsilon", "v_prediction"] = "field",
        gamma: float = 5.0,
        sigma_data: float | None = None,
        solver: Literal["multistep", "heun", "euler"] = "multistep",
        solver_order: int = 3,
        use_corrector: bool = True,
        sigma_knots: list[float] | None = None,
        final_sigmas_type: Literal["zero", "sigma_min"] = "zero",
        max_norm: float | None = None,
        M: int | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None,
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading",
        steps_offset: int = 0,
        timesteps_from: str | None = None,
        variance_type: str | None = None,
    ) -> None:
        self.register_to_config(**checked_options(self.config))
        config = self.config
        has_betas = config.beta_schedule is not None or config.trained_betas is not None
        self.kernel = PoissonKernel(config.aug_dim)
        train_sigmas: tuple[float, ...] | None = None
        if has_betas:
            schedule = BetaSchedule(
                config.beta_schedule,
                config.trained_betas,
                config.num_train_timesteps,
                config.beta_start,
                config.beta_end,
                config.rescale_betas_zero_snr,
            )
            self.betas, self.alphas_cumprod = schedule.betas, schedule.alphas_cumprod
            train_sigmas = schedule.sigmas
        self.parameterization = Parameterization(
            config.prediction_type,
            config.gamma,
            config.sigma_data,
            train_sigmas,
            learns_variance=config.variance_type in LEARNED,
        )
        if config.sigma_knots is not None:
            check_knots(config.sigma_knots, self.sigma_range)
        if "_use_default_values" in self.config:
            hidden = hidden_defaults(self.config._use_default_values, has_betas)
            self.register_to_config(_use_default_values=hidden)
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._denoised: list[torch.Tensor] = []  # x̂ of the latest calls, newest first
        self._convention = StateConvention(config.sigma_data, has_betas, config.prediction_type)
        # Until `set_timesteps` there is one step, which not every scheduler of diffusers can make.
        one_step = FrozenDict({**self.config, "timesteps_from": None})
        self._set_sigmas(SigmaSchedule(one_step, self.parameterization).choose(1))

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler from a configuration: its own, or that of a diffusers scheduler whose network it is to drive.

        The latter is read as its own class reads it, so that options that are missing are at that class's defaults,
        and its timesteps and σ's are taken. D is ∞, with which such networks are trained. A finite `aug_dim` is
        allowed, with a warning. Options of the other scheduler can be set here too. See diffusers for the arguments.

        Raises:
            ValueError: if an option is wrong, or `config` is of a scheduler whose network follows no Poisson flow, such
                as one of flow matching or consistency.
        """
        if "pretrained_model_name_or_path" in kwargs:  # diffusers still takes a folder in place of a configuration
            config = kwargs.pop("pretrained_model_name_or_path")
        if isinstance(config, str | os.PathLike):
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        if isinstance(config, dict):
            is_own = "aug_dim" in config or config.get("_class_name") == cls.__name__
            config = (complete_config if is_own else convert_config)(config, kwargs, cls._get_init_keys(cls))
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> PoissonFlowScheduler:
        """The Poisson flow that a scheduler follows: the scheduler itself, or one made from that of diffusers.

        Raises:
            ValueError: if the scheduler does not follow a Poisson flow, with the reason.
        """
        if isinstance(scheduler, PoissonFlowScheduler):
            return scheduler
        found: PoissonFlowScheduler = cls.from_config(convert_scheduler(scheduler), sigma_knots=None)
        return found

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the configuration, and the code by which a pipeline of diffusers finds this class. See diffusers.

        A process that has not imported this package loads the pipeline with `trust_remote_code=True`.
        """
        if type(self).__module__ == PACKAGE:
            add_component_code(save_directory, type(self).__name__, "SchedulerMixin")
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @property
    def compatibles(self) -> list[Any]:
        """The schedulers of diffusers that share its configuration; not all can drive its network."""
        names = EDM_COMPATIBLES if self.parameterization.train_sigmas is None else DDPM_COMPATIBLES
        return [found for found in self._get_compatibles() if found.__name__ in names]

    @property
    def order(self) -> int:
        """Network calls per step, as diffusers counts them."""
        return 2 if self.config.solver == "heun" else 1

    @property
    def init_noise_sigma(self) -> float:
        """Scale of the prior against `sample_noise`, as diffusers' pipelines expect it."""
        self._convention.start_was_read = True
        return self._run.sigmas[0] if self.parameterization.train_sigmas is None else 1.0

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The highest and the lowest σ of its network, in data units."""
        train_sigmas = self.parameterization.train_sigmas
        if train_sigmas is not None:
            return train_sigmas[-1], train_sigmas[0]
        return self.config.sigma_max, self.config.sigma_min

    def data_scale(self, sigma: float) -> float:
        """What a state at σ is to be multiplied by to have data units: 1, or √(1 + σ²) with a beta schedule."""
        return 1.0 if self.parameterization.train_sigmas is None else math.sqrt(1 + sigma**2)

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
            raise ValueError(
                f"`begin_index` must be from 0 to {len(self.timesteps) - 1}, but is {begin_index}. In an image-to-image"
                f" pipeline {len(self.timesteps)} means that `strength` * `num_inference_steps` is less than 1, so that"
                " no step is left: raise one of them."
            )
        self._begin_index = int(begin_index)

    def sample_noise(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Unit-scale kernel noise (B, *), Student-t with D degrees of freedom; `add_noise` is x + σ · noise.

        Where `max_norm` limits the prior of a network that was trained at every σ on noise within the same share of it,
        so any but one that predicts the field, the noise is limited to that share as well.
        """
        limit = self.config.max_norm
        if limit is not None:
            limit = None if self.config.prediction_type == "field" else limit / self.sigma_range[0]
        return self.kernel.sample(shape, 1.0, generator, device, dtype, limit)

    def sample_prior(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """States at the first σ of the run: uniform on the hemisphere, projected onto z = z_max (D = 1).

        Args:
            shape: (B, *).
            generator: one generator, or a list of B of them.
            device: where the result lies.
            dtype: of the result; in float16 a heavy-tailed prior can overflow, so keep the state in float32.

        Returns:
            Tensor of `shape`, each row of norm ≤ `max_norm` if that is set; where a run begins below σ_max, of as much
            less for a network of neither the field nor a beta schedule, see `sample_noise`.

        Raises:
            ValueError: if a list of generators has another length than B, or `max_norm` is out of reach.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3. Radii beyond `max_norm` are redrawn, not clipped onto one shell.
        """
        max_norm = self.config.max_norm
        if max_norm is not None:
            shares = self.config.prediction_type != "field" and self.parameterization.train_sigmas is None
            share = self._run.sigmas[0] / self.sigma_range[0] if shares else 1.0
            max_norm *= share / self.data_scale(self._run.sigmas[0])
        return self.kernel.sample(shape, self.init_noise_sigma, generator, device, dtype, max_norm)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """Choose the noise levels of a run and forget the last run.

        Args:
            num_inference_steps: number of steps, from σ_max to σ_min and then to 0. Each is one network call, except
                for "heun", which makes 2n − 1.
            device: where `timesteps` lie.
            sigmas: your own σ's in place of a number, falling and positive; a last 0 may be given or left out.
            timesteps: the same as the values that the network sees, once for each step.

        Raises:
            ValueError: if not exactly one of the three is given, or it is not of this kind.
        """
        run = SigmaSchedule(self.config, self.parameterization).choose(num_inference_steps, sigmas, timesteps)
        self.num_inference_steps = len(run.sigmas)
        self._set_sigmas(run, device)

    def _set_sigmas(self, run: RunSigmas, device: torch.device | str | None = None) -> None:
        self._run, schedule = run, SigmaSchedule(self.config, self.parameterization)
        self._plan = self._planned([*run.sigmas, run.final])
        calls = [step.sigma for step in self._plan]
        timesteps = schedule.call_timesteps(run, calls)
        self._labels: list[float] = timesteps.tolist()
        self._rounded_timesteps = schedule.rounded_timesteps(run)
        self.timesteps = timesteps.to(device)
        self.sigmas = torch.tensor([*calls, run.final], dtype=torch.float32)
        self._begin_index = self._step_index = None
        self._denoised = []

    def _planned(self, sigmas: list[float]) -> list[Step]:
        steps = plan_steps(sigmas, self.config.solver, self.config.solver_order, self.config.use_corrector)
        return steps if self.parameterization.train_sigmas is None else variance_preserving(steps, sigmas[-1])

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Index of a timestep in `timesteps`; for one that is not there, with a warning, 0.

        An element of `timesteps` itself is found without reading it back from the device.
        """
        found = self._find(timestep)
        if not found:
            logger.warning(f"The timestep {timestep} is none of `scheduler.timesteps`; starting at the first.")
        # Heun calls twice at a height; the second time begins a step, as in diffusers.
        return found[-1] if found else 0

    def _find(self, timestep: float | torch.Tensor) -> list[int]:
        if isinstance(timestep, torch.Tensor):
            if timestep._base is self.timesteps:
                return [int(timestep.storage_offset())]
            timestep = timestep.item()
        return [i for i, label in enumerate(self._labels) if label == timestep]

    def _current_index(self, timestep: float | torch.Tensor) -> int:
        ended = self._step_index == len(self._plan)
        if ended and self._find(timestep):
            raise ValueError(
                f"`step` was called after the last of {len(self._plan)} timesteps. Call `set_timesteps` to start again."
            )
        if self._step_index is None or ended:  # a timestep of no run begins the run anew, with a warning
            self._step_index = self._start(timestep)
        return self._step_index

    def _start(self, timestep: float | torch.Tensor) -> int:
        begin = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if begin:  # no past to extrapolate from
            steps = self._planned([*self._run.sigmas, self._run.final][math.ceil(begin / self.order) :])
            if begin % self.order:  # the second call of a Heun step, whose first was left out: stay, then begin
                steps.insert(0, Step(self._plan[begin].sigma, 1.0, (0.0,)))
            self._plan[begin:] = steps
        return begin

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """The input that the network sees: the state itself, or c_in times it with `sigma_data`.

        Raises:
            ValueError: if `sample` is one number, as from a pipeline that scales σ for a state of its own.
        """
        self._convention.scaled(sample)
        if self.config.sigma_data is None:
            return sample
        return sample * self.parameterization.c_in(self._plan[self._current_index(timestep)].sigma)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        eta: float = 0.0,
        s_churn: float = 0.0,
        use_clipped_model_output: bool | None = None,
        prev_timestep: float | torch.Tensor | None = None,
    ) -> PoissonFlowSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Follow the field line from this σ to the next, smaller one.

        Args:
            model_output: (B, C', *), the network's output at `sample`; C' = C + 1 for "field", else C, or 2 C with a
                learned variance.
            timestep: the element of `timesteps` that the network has seen. Read at the first step only.
            sample: (B, C, *), the state, in data units or, with a beta schedule, those divided by √(1 + σ²).
            generator: not used, the flow is deterministic; accepted because diffusers' pipelines pass it.
            return_dict: whether to return an output object rather than a tuple.
            eta, s_churn, use_clipped_model_output: left alone; accepted because some of diffusers' pipelines pass them.
            prev_timestep: the element of `timesteps` that follows, as pipelines for UnCLIPScheduler pass it, or None.

        Returns:
            The next state and x̂, both in sample's dtype. Arithmetic is in float32 at least.

        Raises:
            ValueError: before `set_timesteps`, after the last step, if `model_output` has the wrong shape, for `eta` or
                `s_churn` other than 0 or another `prev_timestep`, or with `sigma_data` if `scale_model_input` was not
                called in this run.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3; PFGM++, arXiv 2302.04265, section 3.
        """
        if self.num_inference_steps is None:
            raise ValueError("The scheduler was used before `set_timesteps`. Call `scheduler.set_timesteps(20)` first.")
        refuse_noise(eta=eta, s_churn=s_churn)
        index = self._current_index(timestep)
        self._convention.check_step(index)
        if prev_timestep is not None and index + 1 not in self._find(prev_timestep):
            raise ValueError(
                f"`prev_timestep` must be the element of `timesteps` after this one, or None after the last, but is "
                f"{prev_timestep}. Choose the timesteps of a run by `set_timesteps(timesteps=...)`."
            )
        step = self._plan[index]
        self.parameterization.check_output(model_output, sample)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(dtype)
        in_data_units = x if self.parameterization.train_sigmas is None else x * self.data_scale(step.sigma)
        denoised = self.parameterization.denoised(model_output.to(dtype), in_data_units, step.sigma)
        self._denoised.insert(0, denoised)
        prev_sample = step(x, self._denoised)
        self._step_index = index + 1
        following = self._plan[index + 1 : index + 2]
        self._denoised = self._denoised[: len(following[0].weights) - 1 if following else 0]  # no step needs older ones
        if not following:
            self._convention.end_run()
        output = PoissonFlowSchedulerOutput(
            cast_clamped(prev_sample, sample.dtype), cast_clamped(denoised, sample.dtype)
        )
        return output if return_dict else output.to_tuple()
