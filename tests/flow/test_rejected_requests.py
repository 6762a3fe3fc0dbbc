"""Requests that have no answer raise an error that names the cause."""

import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DModel,
)

from diffusers_pfgm import Parameterization, PoissonFlow, PoissonFlowScheduler, SuperResolution
from diffusers_pfgm.inverse.measurement_guidance import GuidedByMeasurement
from diffusers_pfgm.pipelines.class_conditioning import GuidedModel
from tests.flow.known_densities import charges_in, flow_of_charges
from tests.networks import make_tiny_unet


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        EulerAncestralDiscreteScheduler(),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    ],
)
def test_log_prob_of_stochastic_schedulers_raises(scheduler: Any) -> None:
    flow = PoissonFlow(make_tiny_unet(out_channels=1), scheduler)
    with pytest.raises(ValueError, match="adds noise at every step, so data and prior have no one-to-one map"):
        flow.log_prob(torch.zeros(1, 1, 8, 8))


def test_log_prob_of_guided_models_raises() -> None:
    unet, parameterization = make_tiny_unet(), Parameterization()
    by_class = GuidedModel(unet, parameterization, torch.zeros(1, dtype=torch.int64), 10, 2.0)
    by_measurement = GuidedByMeasurement(unet, parameterization, SuperResolution(2), torch.zeros(1, 1, 4, 4), 0.1)
    for guided in (by_class, by_measurement):
        with pytest.raises(
            ValueError,
            match=rf"`model` \({type(guided).__name__}\) is guided.*likelihood of the model.*Set `guidance_scale=1`",
        ) as error:
            PoissonFlow(guided, PoissonFlowScheduler()).log_prob(torch.zeros(1, 1, 8, 8))
        with pytest.raises(ValueError) as divergence_error:
            PoissonFlow(guided, PoissonFlowScheduler()).divergence(torch.zeros(1, 1, 8, 8), 1.0)
        assert str(divergence_error.value) == str(error.value)


def test_invalid_arguments_raise() -> None:
    flow = flow_of_charges(charges_in(3))
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 2] = math.nan
    for call in (flow.encode, flow.log_prob, lambda x: flow.divergence(x, 1.0)):
        with pytest.raises(ValueError, match="`x` must be finite, but index 1 holds NaN"):
            call(x)
        for other in (x.numpy(), x * 1j):
            with pytest.raises(
                ValueError, match=r"`x` must be a tensor of real numbers, but is (ndarray|torch\.compl)"
            ):
                call(other)
    with pytest.raises(ValueError, match="`latents` must be finite"):
        flow.decode(x)
    for options in ({}, {"shape": (2, 3), "latents": torch.ones(2, 3)}):
        with pytest.raises(ValueError, match="Pass either the `shape`"):
            flow.sample(**options)
    for call in (flow.encode, flow.log_prob, lambda x: flow.divergence(x, 1.0)):
        with pytest.raises(
            ValueError, match=r"`x` must have the shape \(B, \*\) of one point or more, but has \(0, 3\)"
        ):
            call(torch.zeros(0, 3))
        with pytest.raises(ValueError, match=r"but has \(3,\). A single point \(N,\) is `x.unsqueeze\(0\)`"):
            call(torch.zeros(3))
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be a whole number >= 1, but is 0"):
        flow.encode(x, 0)
    with pytest.raises(ValueError, match="`tolerance` must be a finite number > 0"):
        flow.decode(x, 10, tolerance=0.0)
    with pytest.raises(ValueError, match="`num_probes` must be a whole number >= 1, but is 0"):
        flow.log_prob(x, divergence="hutchinson", num_probes=0)
    with pytest.raises(ValueError, match=r"`sigma` must be a noise level of the model, from 0.01 to 40, but is 41"):
        flow.divergence(x, 41.0)
    with pytest.raises(ValueError, match=r"`aug_dim` of the field is 1.0, but that of the scheduler is 64.0"):
        PoissonFlow(flow.model, PoissonFlowScheduler(aug_dim=64.0))
    zero_snr = PoissonFlowScheduler(beta_schedule="linear", rescale_betas_zero_snr=True, prediction_type="sample")
    with pytest.raises(ValueError, match="begins at infinite sigma"):
        PoissonFlow(torch.nn.Identity(), zero_snr)


def test_a_network_that_returns_nan_raises() -> None:
    class Broken(UNet2DModel):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.full_like(sample, math.nan),)

    flow = PoissonFlow(Broken(**make_tiny_unet().config), PoissonFlowScheduler(prediction_type="sample"))
    with pytest.raises(ValueError, match="`model` gives NaN or infinity at sigma"):
        flow.encode(torch.zeros(1, 1, 8, 8), 3)
    trace_of_nan = PoissonFlow(lambda x, t: (x * math.nan,), PoissonFlowScheduler(prediction_type="sample"))
    with pytest.raises(ValueError, match="`model` must be finite"):
        trace_of_nan.divergence(torch.zeros(2, 3), 1.0)


@pytest.mark.parametrize("scheduler", [None, "ddim", {"aug_dim": 1.0}])
def test_what_is_no_scheduler_is_refused(scheduler: Any) -> None:
    with pytest.raises(ValueError, match=r"`scheduler` must be a PoissonFlowScheduler or .* diffusers, but is a "):
        PoissonFlow(torch.nn.Identity(), scheduler)
