"""Any module is a model of a flow, in its own dtype."""

import functools
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from diffusers_pfgm import PoissonFlow, PoissonFlowScheduler
from tests.flow.known_densities import SmoothNetwork, charges_in, flow_of_charges
from tests.networks import make_tiny_unet, seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_flow_of_any_module(dtype: torch.dtype) -> None:
    flow = PoissonFlow(SmoothNetwork().to(dtype), PoissonFlowScheduler(prediction_type="sample"))
    latents = flow.encode(torch.zeros(2, 2), 20).latents
    assert flow.decode(latents, 20).sample.abs().max() < 1e-4
    assert flow.sample((3, 2), 5, seeded()).sample.dtype == dtype
    assert flow.log_prob(torch.zeros(2, 2), tolerance=1e-3).log_prob.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_latents_are_at_least_float32(dtype: torch.dtype) -> None:
    flow = flow_of_charges(charges_in(3), sigma_max=1e6)
    x = torch.ones(2, 3, dtype=dtype)
    latents = flow.encode(x).latents
    assert latents.dtype == flow.log_prob(x, 10).latents.dtype == torch.float32
    assert latents.norm() > torch.finfo(torch.float16).max
    assert torch.allclose(flow.decode(latents).sample, torch.ones(2, 3), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_need_few_calls(dtype: torch.dtype) -> None:
    unet = make_tiny_unet(out_channels=1).to(dtype)
    flow = PoissonFlow(unet, PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5, sigma_max=100.0))
    for options in ({"tolerance": 1e-6}, {"num_inference_steps": 20}):
        result = flow.encode(torch.full((1, 1, 8, 8), 0.1), **options)
        assert result.latents.isfinite().all() and result.nfe < 300


def without_dtype(network: Any) -> Any:
    """The network as a function without an attribute `dtype`."""
    return lambda sample, timestep: network(sample, timestep)


@pytest.mark.parametrize(
    "wrap", [without_dtype, functools.partial, lambda network: network.forward, torch.nn.DataParallel]
)
def test_wrapped_models_are_called_in_their_dtype(wrap: Any) -> None:
    network = SmoothNetwork()
    network.first.register_forward_pre_hook(lambda module, inputs: dtypes.add(inputs[0].dtype))
    scheduler, x, dtypes = PoissonFlowScheduler(prediction_type="sample"), torch.zeros(2, 2), set()
    for options in ({"num_inference_steps": 20, "step_tolerance": 1e-4}, {"tolerance": 1e-4}):
        latents = PoissonFlow(wrap(network), scheduler).encode(x, **options).latents
        assert torch.equal(latents, PoissonFlow(network, scheduler).encode(x, **options).latents)
    PoissonFlow(wrap(network), scheduler).log_prob(x, 5)
    assert dtypes == {torch.float32}


def test_samples_of_an_offloaded_network_are_drawn_where_it_computes() -> None:
    scheduler, network = PoissonFlowScheduler(), make_tiny_unet()
    expected = PoissonFlow(network, scheduler).sample((2, 1, 8, 8), 3, seeded()).sample
    cpu_offload(network, torch.device("cpu"))
    assert network.device.type == "meta"  # between calls, as with `pipe.enable_sequential_cpu_offload()`
    assert torch.equal(PoissonFlow(network, scheduler).sample((2, 1, 8, 8), 3, seeded()).sample, expected)
