"""Noise levels that are fitted to one number of steps of one network."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlow, PoissonFlowScheduler, fit_sigmas
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.schedulers import fit_sigmas as fitting
from diffusers_pfgm.solvers import step_search
from diffusers_pfgm.solvers.multistep import integrate
from diffusers_pfgm.solvers.step_search import end_errors
from tests.networks import ExactNetwork, make_tiny_unet, seeded


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow field lines in fewer steps, for tests that do not ask how good the spacing is."""
    monkeypatch.setattr(fitting, "FINE_STEPS", 50)
    monkeypatch.setattr(fitting, "REFERENCE_STEPS", 30)


STEPS = {"sigmas": [40.0, 2.0, 0.3], "aug_dim": 1.0, "num_parameters": 7}


@pytest.mark.slow
def test_five_calls_end_closer_to_many_steps(digits: torch.Tensor) -> None:
    digits = digits[:600].float()
    field = ChargeField(digits, 1.0, "sample")
    plain = PoissonFlowScheduler(prediction_type="sample")
    scheduler = fit_sigmas(field, plain, (1, 8, 8), seeded(), num_inference_steps=5)
    steps = scheduler.config.sigma_steps
    assert steps["aug_dim"] == 1 and len(steps["sigmas"]) == 5
    scheduler.set_timesteps(1)
    starts = scheduler.move_to_prior(scheduler.sample_prior((300, 1, 8, 8), seeded(9)))  # not those of the search
    spaced = PoissonFlowScheduler.from_config(scheduler.config, sigma_steps=None)
    ends = []
    for each, count in ((spaced, 200), (spaced, 5), (scheduler, 5)):
        each.set_timesteps(count)
        ends.append(integrate(Denoiser(field, each.parameterization), starts, each.sigmas.tolist()))
    errors = [end_errors(few, ends[0]).mean().item() for few in ends[1:]]
    assert errors[1] < 0.9 * errors[0]


def test_searched_steps_are_used_by_runs_of_that_many_steps_only() -> None:
    scheduler = PoissonFlowScheduler(sigma_steps=STEPS, sigma_knots=[40.0, 1.0, 0.01])
    scheduler.set_timesteps(3)
    assert scheduler.sigmas.tolist() == pytest.approx([40.0, 2.0, 0.3, 0.0])
    scheduler.set_timesteps(5)
    assert scheduler.sigmas.tolist() == pytest.approx([40.0, 40**0.6, 40**0.2, 0.01**0.2, 0.01**0.6, 0.0])


@pytest.mark.parametrize(("gain", "is_kept"), [(0.2, True), (0.01, False), (0.0, False), (-0.2, False)])
def test_searched_steps_are_kept_only_if_they_are_clearly_better(
    coarse: None, monkeypatch: pytest.MonkeyPatch, digits: torch.Tensor, gain: float, is_kept: bool
) -> None:
    scatter = 0.1 * torch.randn(16, generator=seeded(), dtype=torch.float64)
    scatter -= scatter.mean()
    # Errors of the searched noise levels and of the spacing on other field lines
    errors = iter([0.5 - gain + scatter, torch.full((16,), 0.5)])
    monkeypatch.setattr(fitting, "search_sigmas", lambda *arguments: [40.0, 3.0, 0.2])
    monkeypatch.setattr(fitting, "end_errors", lambda ends, reference: next(errors))
    field = ChargeField(digits[:20], 1.0, "sample")
    scheduler = PoissonFlowScheduler(prediction_type="sample")
    steps = fit_sigmas(field, scheduler, (1, 8, 8), seeded(), 32, num_inference_steps=3).config.sigma_steps
    assert (steps is not None) == is_kept


@pytest.mark.parametrize("options", [{"solver": "heun"}, {"solver": "euler"}, {"final_sigmas_type": "sigma_min"}])
def test_other_solvers_begin_with_their_own_spacing(
    monkeypatch: pytest.MonkeyPatch, digits: torch.Tensor, options: dict[str, Any]
) -> None:
    starts = []

    def search(run: Any, reference: torch.Tensor, spacing: Any, num_steps: int) -> list[float]:
        sigmas: list[float] = spacing([step / num_steps for step in range(num_steps)])
        starts.append((run(sigmas) - reference).abs().max().item())
        return sigmas

    monkeypatch.setattr(fitting, "search_sigmas", search)
    scheduler = PoissonFlowScheduler(prediction_type="sample", **options)
    field = ChargeField(digits[:2], 1.0, "sample")
    fit_sigmas(field, scheduler, (1, 8, 8), seeded(), 8, num_inference_steps=20)
    assert starts[0] < 0.5


def test_networks_with_a_beta_schedule_have_searched_steps(
    coarse: None, monkeypatch: pytest.MonkeyPatch, digits: torch.Tensor
) -> None:
    monkeypatch.setattr(step_search, "EVALUATIONS", 5)
    for options in ({}, {"final_sigmas_type": "sigma_min"}, {"solver": "heun"}):
        scheduler = PoissonFlowScheduler(
            None, None, None, "epsilon", beta_schedule="linear", timestep_spacing="trailing", **options
        )
        network = ExactNetwork(digits[:20], scheduler.parameterization)
        fitted = fit_sigmas(network, scheduler, (1, 8, 8), seeded(), 8, num_inference_steps=3)
        fitted.set_timesteps(3)
        assert len(fitted.sigmas) in (4, 6)


def test_a_wrapped_network_is_recognized() -> None:
    unet = make_tiny_unet()
    steps = STEPS | {"num_parameters": unet.num_parameters()}
    scheduler = PoissonFlowScheduler(sigma_steps=steps)
    samples = PoissonFlow(functools.partial(unet, return_dict=True), scheduler).sample((1, 1, 8, 8), 3)
    assert samples.sample.isfinite().all()
    field = ChargeField(torch.zeros(1, 1, 8, 8))  # its size is unknown
    assert PoissonFlow(field, scheduler).sample((1, 1, 8, 8), 3).nfe == 3


def test_searched_steps_are_saved_with_a_pipeline(tmp_path: Path) -> None:
    unet = make_tiny_unet()
    steps = STEPS | {"num_parameters": unet.num_parameters()}
    PFGMPipeline(unet, PoissonFlowScheduler(sigma_steps=steps)).save_pretrained(tmp_path)
    pipe = PFGMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.sigma_steps == steps
    assert pipe(1, 3, seeded(), output_type="pt").images.isfinite().all()


@pytest.mark.parametrize("prior", ["plane", "shell", "hemisphere"])
def test_the_result_does_not_depend_on_the_batch_size(
    coarse: None, monkeypatch: pytest.MonkeyPatch, digits: torch.Tensor, prior: str
) -> None:
    monkeypatch.setattr(step_search, "EVALUATIONS", 5)
    monkeypatch.setattr(fitting, "MARGIN", -math.inf)  # keep what the search has found
    field = ChargeField(digits[:20], 1.0, "sample")
    scheduler = PoissonFlowScheduler(prediction_type="sample", prior=prior)
    fits = [fit_sigmas(field, scheduler, (1, 8, 8), seeded(), 32, size, 3).config for size in (None, 5)]
    assert fits[0].sigma_steps is not None
    assert fits[0].sigma_steps["sigmas"] == pytest.approx(fits[1].sigma_steps["sigmas"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aug_dim": 64.0}, "`sigma_steps` were fitted for `aug_dim` = 1.0, but it is 64.0"),
        ({"aug_dim": None}, "`sigma_steps` were fitted for `aug_dim` = 1.0, but it is None"),
        ({"sigma_max": 80.0}, "`sigma_steps` were fitted from 40.0, but the largest sigma is 80.0"),
        ({"sigma_steps": {"sigmas": [40.0]}}, "must have 'sigmas', positive"),
        ({"sigma_steps": STEPS | {"sigmas": [1.0, 2.0]}}, "must have 'sigmas', positive"),
        ({"sigma_steps": STEPS | {"sigmas": 5.0}}, "must have 'sigmas', positive"),
        ({"sigma_steps": STEPS | {"sigmas": ["a"]}}, "must have 'sigmas', positive"),
        ({"sigma_steps": STEPS | {"solver": "euler"}}, "must have 'sigmas', positive"),
        ({"sigma_steps": [40.0, 1.0]}, "`sigma_steps` must be a dictionary or None"),
    ],
)
def test_steps_of_another_flow_are_refused(changes: dict[str, Any], message: str) -> None:
    config = PoissonFlowScheduler(sigma_steps=STEPS).config
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler.from_config(config, **changes)


def test_steps_of_another_network_are_refused() -> None:
    pipe = PFGMPipeline(make_tiny_unet(), PoissonFlowScheduler(sigma_steps=STEPS))
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="were fitted for a network of 7 parameters, but this one has"):
        pipe(1, 3)
    with pytest.raises(ValueError, match="were fitted for a network of 7 parameters, but this one has"):
        PoissonFlow(pipe.unet, pipe.scheduler).sample((1, 1, 8, 8), 3)
    assert pipe(1, 4, seeded(), output_type="pt").nfe == 4


def test_encode_and_decode_keep_the_whole_range(digits: torch.Tensor) -> None:
    field = ChargeField(digits[:20], 1.0, "sample")
    steps = STEPS | {"sigmas": [40.0, *(20.0 * 0.8**i for i in range(19))]}
    flow = PoissonFlow(field, PoissonFlowScheduler(prediction_type="sample", sigma_steps=steps))
    plain = PoissonFlow(field, PoissonFlowScheduler(prediction_type="sample"))
    latents = [each.encode(digits[:2] + 0.05, num_inference_steps=20).latents for each in (flow, plain)]
    assert torch.equal(*latents)


@pytest.mark.parametrize("count", [0, 1.5, math.nan])
def test_the_number_of_steps_is_checked(count: Any, digits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`num_inference_steps`"):
        fit_sigmas(ChargeField(digits[:9]), PoissonFlowScheduler(), (1, 8, 8), num_inference_steps=count)
