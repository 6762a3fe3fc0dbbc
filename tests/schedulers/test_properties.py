"""For any shape, dtype, D, noise levels and steps: states are finite, nothing warns, and no argument is modified."""

import logging
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from diffusers_pfgm import PoissonFlowScheduler, PoissonKernel, posterior_mean
from tests.networks import seeded

CASES = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
RUNS = settings(CASES, max_examples=120)
AUG_DIMS = st.one_of(st.none(), st.floats(0.1, 1e4), st.just(1.0))
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
SOLVERS = st.sampled_from(["multistep", "heun", "euler"])


class Silence(logging.Handler):
    """Turns every warning, of Python or of a logger, into an error."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage())

    def __enter__(self) -> None:
        self.setLevel(logging.WARNING)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("error")
        logging.getLogger().addHandler(self)

    def __exit__(self, *error: Any) -> None:
        logging.getLogger().removeHandler(self)
        self.caught.__exit__(*error)


@pytest.mark.slow
@RUNS
@given(
    batch=st.integers(1, 4),
    shape=SHAPES,
    dtype=DTYPES,
    aug_dim=AUG_DIMS,
    solver=SOLVERS,
    order=st.integers(1, 3),
    corrector=st.booleans(),
    kind=st.sampled_from(["field", "sample", "epsilon", "v_prediction"]),
    sigma_data=st.one_of(st.none(), st.floats(0.05, 20)),
    sigma_min=st.floats(1e-4, 1.0),
    ratio=st.floats(1.5, 1e5),
    steps=st.integers(1, 30),
    final=st.sampled_from(["zero", "sigma_min"]),
)
def test_any_run(
    batch: int,
    shape: list[int],
    dtype: torch.dtype,
    aug_dim: float | None,
    solver: str,
    order: int,
    corrector: bool,
    kind: str,
    sigma_data: float | None,
    sigma_min: float,
    ratio: float,
    steps: int,
    final: str,
) -> None:
    assume(steps == 1 or ratio ** (1 / steps) > 1 + 1e-5)
    with Silence():
        scheduler = PoissonFlowScheduler(
            aug_dim,
            sigma_min,
            sigma_min * ratio,
            kind,
            sigma_data=sigma_data,
            solver=solver,
            solver_order=order,
            use_corrector=corrector,
            final_sigmas_type=final,
        )
        scheduler.set_timesteps(steps)
        # Within the range of float16, and at norms that occur in training.
        x = sigma_min * ratio * torch.randn(batch, *shape, generator=seeded())
        x = x.clamp(-1e4, 1e4).to(dtype)
        for i, t in enumerate(scheduler.timesteps):
            model_input = scheduler.scale_model_input(x, t)
            output = torch.tanh(model_input.float() / (1 + abs(t))).to(dtype)
            if kind == "field":
                output = torch.cat([output, -torch.ones_like(output[:, :1])], dim=1)
            copies = x.clone(), output.clone()
            prev_sample = scheduler.step(output, t, x).prev_sample
            assert torch.equal(x, copies[0]) and torch.equal(output, copies[1])
            assert prev_sample.isfinite().all() and prev_sample.shape == x.shape and prev_sample.dtype == dtype
            x = prev_sample
            assert scheduler.step_index == i + 1
        calls = steps if solver != "heun" else 2 * steps - (final == "zero")
        assert len(scheduler.timesteps) == calls


@pytest.mark.slow
@RUNS
@given(
    batch=st.integers(1, 3),
    shape=SHAPES,
    dtype=DTYPES,
    solver=SOLVERS,
    kind=st.sampled_from(["sample", "epsilon", "v_prediction"]),
    schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    trained=st.integers(2, 1000),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    steps=st.integers(1, 30),
    zero_snr=st.booleans(),
)
def test_any_run_of_the_ddpm_family(
    batch: int,
    shape: list[int],
    dtype: torch.dtype,
    solver: str,
    kind: str,
    schedule: str,
    trained: int,
    spacing: str,
    steps: int,
    zero_snr: bool,
) -> None:
    assume(steps <= trained)
    zero_snr = zero_snr and kind != "epsilon" and solver != "heun"
    with Silence():
        scheduler = PoissonFlowScheduler(
            None,
            prediction_type=kind,
            solver=solver,
            num_train_timesteps=trained,
            beta_schedule=schedule,
            rescale_betas_zero_snr=zero_snr,
            timestep_spacing=spacing,
        )
        scheduler.set_timesteps(steps)
        x = torch.randn(batch, *shape, generator=seeded()).to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, scheduler.scale_model_input(x, t)).prev_sample
        assert x.isfinite().all() and x.dtype == dtype


@pytest.mark.slow
@CASES
@given(
    batch=st.integers(1, 5),
    shape=SHAPES,
    dtype=DTYPES,
    aug_dim=AUG_DIMS,
    sigma=st.floats(1e-3, 100),
    seed=st.integers(0, 99),
)
def test_any_draw_of_the_kernel(
    batch: int, shape: list[int], dtype: torch.dtype, aug_dim: float | None, sigma: float, seed: int
) -> None:
    kernel, before = PoissonKernel(aug_dim), torch.get_rng_state()
    with Silence():
        x = kernel.sample((batch, *shape), sigma, seeded(seed), dtype=dtype)
        assert x.isfinite().all() and x.shape == (batch, *shape) and x.dtype == dtype
        assert kernel.log_prob(x.double(), sigma).isfinite().all()
        assert torch.equal(x, kernel.sample((batch, *shape), sigma, seeded(seed), dtype=dtype))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
@CASES
@given(
    batch=st.integers(1, 4),
    count=st.integers(1, 6),
    shape=SHAPES,
    aug_dim=AUG_DIMS,
    sigma=st.floats(1e-4, 1e4),
    spread=st.floats(1e-3, 1e3),
)
def test_any_posterior_mean_is_in_the_bounding_box_of_the_charges(
    batch: int, count: int, shape: list[int], aug_dim: float | None, sigma: float, spread: float
) -> None:
    charges = spread * torch.randn(count, *shape, generator=seeded(), dtype=torch.float64)
    x = (sigma + spread) * torch.randn(batch, *shape, generator=seeded(1), dtype=torch.float64)
    copies = x.clone(), charges.clone()
    with Silence():
        mean = posterior_mean(x, sigma, charges, aug_dim)
    assert torch.equal(x, copies[0]) and torch.equal(charges, copies[1])
    margin = 1e-9 * (sigma + spread) * math.sqrt(x[0].numel())
    assert (mean <= charges.amax(0) + margin).all() and (mean >= charges.amin(0) - margin).all()
