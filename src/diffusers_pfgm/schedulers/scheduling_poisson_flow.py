"""The Poisson flow as a diffusers scheduler: noise levels, prior, noise, and the steps of the backward ODE."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..hub.serialization import PACKAGE, add_component_code
from ..physics.kernel import PoissonKernel
from ..physics.noise_estimate import NoiseEstimate
from ..physics.parameterization import Parameterization
from ..physics.tensors import Generators, cast_clamped
from ..solvers.spacing import check_knots
from .beta_schedule import beta_tables
from .consistency import NO_ODE, ConsistencyMixin
from .conversion import convert_scheduler
from .diffusers_configs import (
    DDPM_COMPATIBLES,
    EDM_COMPATIBLES,
    complete_config,
    convert_config,
    hidden_defaults,
    refuse_noise,
)
from .network_input import NetworkInputMixin
from .options import LEARNED_VARIANCE_TYPES, checked_options
from .sigma_schedule import RunSigmas, SigmaSchedule
from .sigma_steps import check_sigma_steps
from .state_convention import StateConvention


@dataclass
class PoissonFlowSchedulerOutput(BaseOutput):
    """The result of `PoissonFlowScheduler.step`.

    Attributes:
        prev_sample: (B, C, *), the state at the next, smaller σ.
        pred_original_sample: (B, C, *), x̂, the posterior mean (denoised sample) at the current σ.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class PoissonFlowScheduler(NetworkInputMixin, ConsistencyMixin, SchedulerMixin, ConfigMixin):
    """Scheduler of Poisson flow models: solves the backward ODE dx/dσ = (x − x̂)/σ from the prior to the data.

    At D = 1 (`aug_dim`) σ is the z of PFGM (arXiv 2209.11178); other D are PFGM++ (arXiv 2302.04265) at the augmented
    radius r = σ√D, and D = ∞ is the diffusion model of EDM (arXiv 2206.00364). `len(scheduler.timesteps)` is the number
    of network calls (NFE) of a run.

    With a beta schedule it runs networks of the DDPM family: `timesteps` are diffusers' own integers, and the state is
    x / √(1 + σ²). `from_config` accepts the configuration of a DDPM-family or EDM scheduler of diffusers.

    Args:
        aug_dim: D > 0; None for ∞. Defaults to 1.
        sigma_min: the smallest σ (z_min) of the network, in data units. Without `sigma_knots` it is that of the last
            call. The step from there goes to σ = 0, where x = x̂, so it may be larger than the paper's 1e-3, at which
            the paper's ODE ends. In an exact field of 64 dimensions 0.7 % of the samples are still between charges at
            σ = 0.01, and 0.03 % at σ = 0.001. Defaults to 0.01.
        sigma_max: the first σ (z_max), in data units. Defaults to 40.
        prediction_type: what the network predicts: "field" (C + 1 channels), "sample" (x̂), "epsilon" ((x − x̂)/σ) or
            "v_prediction". Defaults to "field".
        gamma: γ of the normalized field, in data units. Defaults to 5.
        sigma_data: standard deviation of the data for a network with EDM's preconditioning; None for a network without.
        data_mean, mean_square_std: μ and √V of the data for a network with the Student-t preconditioning, which is
            EDM's at the noise level estimated from each sample (`physics.noise_estimate`). They have no effect at
            D = ∞. None for other networks.
        solver: "multistep" (one network call per step), "heun" (two calls) or "euler" (one call). Defaults to
            "multistep".
        solver_order: order of the multistep solver, 1 to 3. Defaults to 3.
        use_corrector: whether the multistep solver corrects each step with the x̂ that is computed after it, which
            needs no further network call. Defaults to True.
        sigma_steps: a dictionary from `fit_sigmas(..., num_inference_steps=n)`: "sigmas", the n noise levels of every
            run of n steps, and "aug_dim" and "num_parameters", the D and the size of the network that they were fitted
            for. None for no such run.
        sigma_knots: σ's from σ_max to σ_min between which equal shares of the steps are placed, from `fit_sigmas`. The
            last step is as long as the others: with n steps it goes to σ = 0 from the σ at (n − 1)/n of the way to
            σ_min. None for steps in equal ratios of σ, or with a beta schedule for `timestep_spacing`.
        final_sigmas_type: "zero" to end at σ = 0, "sigma_min" to end at σ_min. Defaults to "zero".
        max_norm: largest norm ‖x‖ of a prior sample, in data units; the `upper_norm` of the training. A radius beyond
            it is drawn again. None for the whole, heavy-tailed prior of an exact field.
        prior: where pipelines start, see `move_to_prior`: "plane", the whole heavy-tailed prior on the plane σ_max;
            "shell", one norm on that plane, with which every D needs as few steps as D = ∞; or "hemisphere", the points
            of the same rays at one distance in N + D dimensions, with another σ for each sample. None for "shell" from
            64 dimensions on and "plane" below.
        M: exponent of the training perturbation from which `sigma_max` and `max_norm` were computed. It is only saved.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2" for a network of the DDPM family. The noise
            levels are those of its training, and `sigma_min` and `sigma_max` are None.
        trained_betas: list of betas, in place of `beta_schedule`.
        num_train_timesteps, beta_start, beta_end, rescale_betas_zero_snr: parameters of the beta schedule, as in
            diffusers. Default to 1000, 0.0001, 0.02 and False.
        timestep_spacing: "leading", "trailing" or "linspace", as in diffusers. Defaults to "leading".
        steps_offset: offset added to the timesteps of the "leading" spacing. Defaults to 0.
        timesteps_from: class name of the diffusers scheduler whose `set_timesteps` chooses the timesteps and σ's;
            `from_config` sets it. None for equal ratios of σ, or with a beta schedule for the timesteps of
            DDIMScheduler.
        variance_type: "learned" or "learned_range" for a network that also predicts a variance, in C further channels,
            which are ignored. The other values of diffusers are accepted, and mean that no variance is predicted.
        consistency_boundary: σ_b of a consistency model, in data units, which training/tune_consistency.py sets. Such a
            network predicts the end of a field line in one call, and each step but the last adds new noise to it
            (`schedulers.consistency`). None for other networks.
        consistency_sigmas: noise levels σ of a consistency model's calls, decreasing; n steps use the first n of them.
        consistency_guidance: scale of the classifier-free guidance that a consistency model has learned; None if it was
            tuned without guidance.
        consistency_clip: whether a consistency model's prediction is clamped to [-1, 1], the range of images, before
            new noise is added to it, as `clip_denoised` of diffusers' `CMStochasticIterativeScheduler`. Defaults to
            False.

    Raises:
        ValueError: if an argument has another type or value than listed here, or two arguments contradict each other.

    Examples:
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
        data_mean: float | None = None,
        mean_square_std: float | None = None,
        prior: Literal["plane", "shell", "hemisphere"] | None = None,
        consistency_boundary: float | None = None,
        consistency_sigmas: list[float] | None = None,
        consistency_guidance: float | None = None,
        consistency_clip: bool = False,
        sigma_steps: dict[str, Any] | None = None,
    ) -> None:
        self.register_to_config(**checked_options(self.config))
        config = self.config
        has_betas = config.beta_schedule is not None or config.trained_betas is not None
        self.kernel = PoissonKernel(config.aug_dim)
        train_sigmas: tuple[float, ...] | None = None
        if has_betas:
            self.betas, self.alphas_cumprod, train_sigmas = beta_tables(config)
        noise_estimate = None
        if config.mean_square_std is not None and math.isfinite(self.kernel.aug_dim):
            statistics = config.data_mean, config.sigma_data, config.mean_square_std
            noise_estimate = NoiseEstimate(self.kernel.aug_dim, *statistics)
        self.parameterization = Parameterization(
            config.prediction_type,
            config.gamma,
            config.sigma_data,
            train_sigmas,
            learns_variance=config.variance_type in LEARNED_VARIANCE_TYPES,
            noise_estimate=noise_estimate,
            boundary=config.consistency_boundary,
        )
        # Before `set_timesteps` there is a run of one step, which some schedulers of `timesteps_from` cannot make. The
        # schedule raises for a range or spacing that is not allowed, before knots are compared with the range.
        schedule = SigmaSchedule(FrozenDict({**config, "timesteps_from": None}), self.parameterization)
        if config.sigma_knots is not None:
            check_knots(config.sigma_knots, self.sigma_range)
        if config.sigma_steps is not None:
            check_sigma_steps(config.sigma_steps, config.aug_dim, self.sigma_range[0])
        if "_use_default_values" in self.config:
            hidden = hidden_defaults(self.config._use_default_values, has_betas)
            self.register_to_config(_use_default_values=hidden)
        self.num_inference_steps: int | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._denoised: list[torch.Tensor] = []  # x̂ of the latest network calls, newest first
        self._convention = StateConvention(self.parameterization)
        self._set_sigmas(schedule, schedule.choose(1))

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make a scheduler from the configuration of a `PoissonFlowScheduler` or of another diffusers scheduler.

        The configuration of a diffusers scheduler is read as its own class reads it: missing options have that class's
        defaults. The new scheduler uses the same timesteps and σ's, and D = ∞, with which such networks are trained. A
        finite `aug_dim` is allowed, with a warning. Keyword arguments may also set options of the diffusers scheduler.
        See diffusers for the arguments.

        Raises:
            ValueError: if an option is not allowed, or `config` belongs to a scheduler whose network does not define a
                Poisson flow, such as one of flow matching or a consistency model.
        """
        if "pretrained_model_name_or_path" in kwargs:  # diffusers still accepts a folder in place of a configuration
            config = kwargs.pop("pretrained_model_name_or_path")
        if isinstance(config, str | os.PathLike):
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        if isinstance(config, dict):
            is_own = "aug_dim" in config or config.get("_class_name") == cls.__name__
            convert = complete_config if is_own else convert_config
            config = convert(config, kwargs, cls._get_init_keys(cls))
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_scheduler(cls, scheduler: Any, allow_consistency: bool = False) -> PoissonFlowScheduler:
        """Return a scheduler as a `PoissonFlowScheduler`: itself if it is one, else a conversion.

        Args:
            scheduler: a `PoissonFlowScheduler` or a diffusers scheduler.
            allow_consistency: whether the scheduler may be that of a consistency model, which solves no ODE. Defaults
                to False.

        Raises:
            ValueError: if `scheduler` is no scheduler, or does not solve the ODE of a Poisson flow; the message states
                the reason.
        """
        if isinstance(scheduler, PoissonFlowScheduler):
            if scheduler.is_consistency_model and not allow_consistency:
                raise ValueError(f"`scheduler` is {NO_ODE}.")
            return scheduler
        converted: PoissonFlowScheduler = cls.from_config(
            convert_scheduler(scheduler), sigma_knots=None, sigma_steps=None
        )
        return converted

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the configuration, and the code from which a diffusers pipeline imports this class. See diffusers.

        A process that has not imported this package loads the pipeline with `trust_remote_code=True`.
        """
        if type(self).__module__ == PACKAGE:
            add_component_code(save_directory, type(self).__name__, "SchedulerMixin")
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def __len__(self) -> int:
        """`num_train_timesteps`, as of diffusers' schedulers. Without a beta schedule no timesteps are numbered."""
        train_sigmas = self.parameterization.train_sigmas
        return self.config.num_train_timesteps if train_sigmas is None else len(train_sigmas)

    @property
    def compatibles(self) -> list[Any]:
        """Classes of diffusers schedulers that can be made from this configuration; not all can run the network."""
        names = EDM_COMPATIBLES if self.parameterization.train_sigmas is None else DDPM_COMPATIBLES
        return [scheduler_class for scheduler_class in self._get_compatibles() if scheduler_class.__name__ in names]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | torch.Tensor | None = None,
        timesteps: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        """Choose the noise levels of a run, and discard the state of the previous run.

        Args:
            num_inference_steps: number n of steps, from σ_max to σ_min and then to 0; with `sigma_knots` the last step
                to 0 starts above σ_min. Each step is one network call; a run of "heun" makes 2n − 1 calls.
            device: the device of `timesteps`.
            sigmas: custom σ's in place of `num_inference_steps`, positive and strictly decreasing. A final 0 is
                optional.
            timesteps: custom timesteps of the network in place of `num_inference_steps`, one for each step.

        Raises:
            ValueError: if not exactly one of `num_inference_steps`, `sigmas` and `timesteps` is given, if the number is
                not a whole number ≥ 1 or larger than the number of trained timesteps or of `consistency_sigmas`, or the
                list is not strictly decreasing or outside of the trained timesteps.
        """
        schedule = SigmaSchedule(self.config, self.parameterization)
        run = schedule.choose(num_inference_steps, sigmas, timesteps)
        self.num_inference_steps = len(run.sigmas)
        self._set_sigmas(schedule, run, device)

    def _set_sigmas(self, schedule: SigmaSchedule, run: RunSigmas, device: torch.device | str | None = None) -> None:
        self._run = run
        self._plan = self._make_plan([*run.sigmas, run.final])
        call_sigmas = [step.sigma for step in self._plan]
        timesteps = schedule.call_timesteps(run, call_sigmas)
        self._timestep_values = timesteps.tolist()
        self._rounded_timesteps = schedule.rounded_timesteps(run)
        self.timesteps = timesteps.to(device)
        self.sigmas = torch.tensor([*call_sigmas, run.final], dtype=torch.float32, device="cpu")
        self._begin_index = None
        self._step_index = None
        self._denoised = []
        self._latest_estimate = None
        self._sigma_factors = None
        self._convention.timestep_was_read = False

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
        """Follow the field line from the current σ to the next, smaller one.

        A consistency model jumps to the end of the field line instead, and adds noise of the next σ.

        Args:
            model_output: (B, C', *), the network's output at `sample`. C' is C + 1 for "field" and C otherwise, or 2 C
                with a learned variance.
            timestep: the element of `timesteps` at which the network was called. Only read at the first step.
            sample: (B, C, *), the state in data units, divided by √(1 + σ²) with a beta schedule.
            generator: one generator, or a list of B of them, for the noise of a consistency model. The flow itself is
                deterministic, and ignores it.
            return_dict: whether to return a `PoissonFlowSchedulerOutput` rather than a tuple. Defaults to True.
            eta, s_churn: must be 0; accepted because some of diffusers' pipelines pass them.
            use_clipped_model_output: ignored; accepted because some of diffusers' pipelines pass it.
            prev_timestep: the element of `timesteps` after the current one, which pipelines for UnCLIPScheduler pass,
                or None.

        Returns:
            The next state and x̂, both (B, C, *) in the dtype of `sample`. Arithmetic is in float32 or float64.

        Raises:
            ValueError: if `step` is called before `set_timesteps` or after the last step, `model_output` has the wrong
                shape, `eta` or `s_churn` is not 0, `prev_timestep` is another timestep than the next one, or the
                pipeline did not call `scale_model_input` with `sigma_data`, or `network_timestep` for samples on the
                hemisphere.

        Reference:
            PFGM, arXiv 2209.11178, section 3.3; PFGM++, arXiv 2302.04265, section 3.
        """
        if self.num_inference_steps is None:
            raise ValueError("The scheduler was used before `set_timesteps`. Call `scheduler.set_timesteps(20)` first.")
        refuse_noise(eta=eta, s_churn=s_churn)
        index = self._current_index(timestep)
        self._convention.check_step(index, self._sigma_factors is not None)
        if prev_timestep is not None and index + 1 not in self._indices_of(prev_timestep):
            raise ValueError(
                f"`prev_timestep` must be the element of `timesteps` after this one, or None after the last, but is "
                f"{prev_timestep}. Choose the timesteps of a run by `set_timesteps(timesteps=...)`."
            )
        step = self._plan[index]
        self.parameterization.check_output(model_output, sample)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(dtype)
        in_data_units = x if self.parameterization.train_sigmas is None else x * self.data_scale(step.sigma)
        noise_level = self.noise_level_of_call(sample, timestep)
        denoised = self.parameterization.denoised(model_output.to(dtype), in_data_units, noise_level)
        self._denoised.insert(0, denoised)
        prev_sample = step(x, self._denoised)
        self._step_index = index + 1
        self._latest_estimate = None
        remaining = self._plan[index + 1 :]
        if remaining and self.is_consistency_model:
            prev_sample = self.renoise(prev_sample, remaining[0].sigma, generator)
            self._sigma_factors = None  # after the first call from the hemisphere, all samples are on one plane
        # The next step reads no older x̂ than its weights need.
        self._denoised = self._denoised[: len(remaining[0].weights) - 1 if remaining else 0]
        if not remaining:
            self._convention.end_run()
        output = PoissonFlowSchedulerOutput(
            cast_clamped(prev_sample, sample.dtype), cast_clamped(denoised, sample.dtype)
        )
        return output if return_dict else output.to_tuple()
