"""Divergences of the flow: exact and estimated, and what they need of a model."""

from typing import Any

import pytest
import torch

from diffusers_pfgm import ChargeField, PoissonFlow, PoissonFlowScheduler
from tests.flow.known_densities import PosteriorMean, charges_in, density, draw_points, flow_of_charges
from tests.networks import make_tiny_unet, seeded


@pytest.mark.parametrize("aug_dim", [1.0, 2.5, 64.0, None])
def test_the_jacobian_of_these_tests_is_that_of_the_charge_field(aug_dim: float | None) -> None:
    charges = charges_in(5)
    x = draw_points(charges, aug_dim, 0.5, 4).requires_grad_()
    vector = torch.randn(4, 5, generator=seeded(1), dtype=torch.float64)
    outputs = ChargeField(charges, aug_dim, "sample")(x, 0.5).sample, PosteriorMean(charges, aug_dim)(x, 0.5)[0]
    products = [torch.autograd.grad(output, x, vector)[0] for output in outputs]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*products, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def random_case() -> tuple[PoissonFlow, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A flow, 200 points, their log-densities in closed form, and that of the first by an exact divergence."""
    charges = charges_in(32, 20)
    x = draw_points(charges, None, 0.3, 200)
    flow = flow_of_charges(charges, None, "sample", sigma_min=0.3, sigma_max=5000.0)
    return flow, x, density(x, charges, None, 0.3), flow.log_prob(x[:1]).log_prob


@pytest.mark.slow
@pytest.mark.parametrize(("method", "num_probes"), [("hutchinson", 10), ("hutch++", 30)])
def test_standard_error_of_random_divergences(random_case: tuple[Any, ...], method: str, num_probes: int) -> None:
    flow, x, expected, exact = random_case
    result = flow.log_prob(x, None, method, num_probes, seeded(), tolerance=1e-3)
    error = result.log_prob - expected
    within = (error.abs() <= result.standard_error + result.truncation).double().mean()
    # With ten estimates Student's t (9 degrees of freedom) is within ± 1 in 66 % of cases; 200 points: ± 10 % is 3 σ.
    assert 0.56 <= within <= 0.76 and abs(error.mean()) < 3 * error.std() / 200**0.5
    assert abs(exact - result.log_prob[0]) < 5 * result.standard_error[0] + 0.05


def test_one_probe_has_no_standard_error() -> None:
    x = draw_points(charges_in(3), 1.0, 0.3, 2)
    flow = flow_of_charges(charges_in(3), sigma_min=0.3)
    assert flow.log_prob(x, divergence="hutchinson", generator=seeded()).standard_error is None


def test_divergence_at_one_noise_level() -> None:
    flow = flow_of_charges(charges_in(5), 1.0, "sample", sigma_min=0.1)
    x = draw_points(charges_in(5), 1.0, 0.5, 3)
    exact = flow.divergence(x, 0.5)
    estimates = flow.divergence(x, 0.5, "hutchinson", 2000, seeded())
    assert exact.shape == (3, 1) and estimates.shape == (3, 2000)
    assert ((estimates.mean(1) - exact[:, 0]).abs() < 3 * estimates.std(1) / 2000**0.5).all()
    # For one charge y, dx/dσ = (x − y)/σ.
    assert torch.allclose(flow_of_charges(torch.zeros(1, 5)).divergence(x, 0.5), torch.full((3, 1), 10.0).double())


def test_log_prob_works_in_inference_mode() -> None:
    flow = flow_of_charges(charges_in(3), sigma_min=0.3)
    with torch.inference_mode():
        inference_flow = flow_of_charges(charges_in(3), sigma_min=0.3)  # its tensors are inference tensors
        x = torch.ones(2, 3, dtype=torch.float64)
        log_prob = inference_flow.log_prob(x, divergence="hutchinson", generator=seeded()).log_prob
        divergence = inference_flow.divergence(x, 1.0)
    x = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(log_prob, flow.log_prob(x, divergence="hutchinson", generator=seeded()).log_prob)
    assert torch.equal(divergence, flow.divergence(x, 1.0))


@pytest.mark.slow
def test_classes_work_in_inference_mode() -> None:
    flow = PoissonFlow(
        make_tiny_unet(out_channels=1, num_class_embeds=3), PoissonFlowScheduler(prediction_type="sample")
    )
    x = torch.zeros(2, 1, 8, 8)
    log_probs = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            labels = torch.tensor([0, 2])
            options = {"divergence": "hutchinson", "generator": seeded(), "class_labels": labels}
            log_probs.append(flow.log_prob(x, 5, **options).log_prob)
            flow.divergence(x, 1.0, **options)
    assert torch.equal(*log_probs)
