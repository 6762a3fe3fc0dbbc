"""The log-density of the flow equals that of charges in closed form."""

import math

import pytest
import torch

from diffusers_pfgm import Parameterization, PoissonFlow, PoissonFlowScheduler, PoissonKernel
from tests.flow.known_densities import SmoothNetwork, charges_in, density, draw_points, flow_of_charges
from tests.networks import ExactNetwork, seeded

# In many dimensions x̂ is the network's output, whose derivatives take a third of the time of those of the field.
CASES = [
    (2, 1.0, "field"),
    (3, 2.5, "field"),
    (3, None, "field"),
    (16, 1.0, "sample"),
    (16, 64.0, "sample"),
    (33, None, "sample"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "aug_dim", "prediction_type"), CASES)
def test_log_prob_equals_the_density_of_charges(dim: int, aug_dim: float | None, prediction_type: str) -> None:
    charges = charges_in(dim)
    x = draw_points(charges, aug_dim, 0.3, 4)
    expected = density(x, charges, aug_dim, 0.3)
    result = flow_of_charges(charges, aug_dim, prediction_type, sigma_min=0.3, sigma_max=5000.0).log_prob(x)
    error = (result.log_prob - expected).abs()
    assert error.max() < 3e-4 and (result.truncation >= error).all() and result.truncation.max() < 2e-3
    assert torch.equal(result.standard_error, torch.zeros(4))
    flow = flow_of_charges(charges, aug_dim, prediction_type, sigma_min=0.3, sigma_max=50000.0)
    tight = flow.log_prob(x, tolerance=1e-5)
    assert (tight.log_prob - expected).abs().max() < 1e-4 and tight.nfe > result.nfe > 20


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_log_prob_with_other_prediction_types(prediction_type: str) -> None:
    charges = charges_in(4).view(7, 1, 2, 2)
    x = draw_points(charges, 1.0, 0.3, 4)
    result = flow_of_charges(charges, 1.0, prediction_type, sigma_min=0.3, sigma_max=5000.0).log_prob(x)
    assert (result.log_prob - density(x, charges, 1.0, 0.3)).abs().max() < 2e-3


@pytest.mark.parametrize(
    "parameterization", [Parameterization("epsilon", sigma_data=0.5), Parameterization("v_prediction")]
)
def test_log_prob_of_preconditioned_networks(parameterization: Parameterization) -> None:
    charges = charges_in(4).view(7, 1, 2, 2)
    options = {
        "prediction_type": parameterization.prediction_type,
        "sigma_data": parameterization.sigma_data,
        "aug_dim": None,
    }
    scheduler = PoissonFlowScheduler(sigma_min=0.3, sigma_max=5000.0, **options)
    x = draw_points(charges, None, 0.3, 2)
    result = PoissonFlow(ExactNetwork(charges, parameterization), scheduler).log_prob(x)
    assert (result.log_prob - density(x, charges, None, 0.3)).abs().max() < 2e-3


@pytest.mark.slow
def test_fixed_steps_converge_to_the_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers_pfgm.flow.densities.DENSITY_TOLERANCE", 3e-9)  # that of the fixed steps
    charges = charges_in(3)
    x = draw_points(charges, 1.0, 0.3, 8)
    flow = flow_of_charges(charges, sigma_min=0.3, sigma_max=5000.0)
    exact = density(x, charges, 1.0, 0.3)
    errors = [(flow.log_prob(x, num_inference_steps=n).log_prob - exact).abs().max() for n in (60, 120)]
    assert 3 < errors[0] / errors[1] < 6 and errors[1] < 0.01  # second order, beside a truncation of 2e-4


@pytest.mark.parametrize("aug_dim", [1.0, 2.5])
def test_density_integrates_to_one(aug_dim: float) -> None:
    # x = tan(u) maps the heavy tails to a finite interval.
    u = (torch.arange(400, dtype=torch.float64) + 0.5) * math.pi / 400 - math.pi / 2
    flow = flow_of_charges(charges_in(1), aug_dim, sigma_min=0.3, sigma_max=5000.0)
    density = flow.log_prob(u.tan().unsqueeze(1)).log_prob.exp()
    assert (density / u.cos().square()).mean() * math.pi == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_the_density_of_an_untrained_network_integrates_to_one() -> None:
    scheduler = PoissonFlowScheduler(aug_dim=None, prediction_type="sample", sigma_min=0.5)
    flow = PoissonFlow(SmoothNetwork().double(), scheduler)
    u = ((torch.arange(80, dtype=torch.float64) + 0.5) / 80 - 0.5) * 16
    grid = torch.cartesian_prod(u, u)
    total = flow.log_prob(grid, tolerance=1e-6).log_prob.exp().sum() * (16 / 80) ** 2
    assert total == pytest.approx(1, abs=1e-3)


def test_class_labels_are_passed_to_the_model() -> None:
    charges = torch.stack([torch.full((1, 2, 2), -0.5), torch.full((1, 2, 2), 0.5)]).double()
    parameterization = Parameterization("sample")
    network = ExactNetwork(charges, parameterization, 1.0, torch.tensor([0, 1]))
    flow = PoissonFlow(network, PoissonFlowScheduler(prediction_type="sample", sigma_min=0.1, sigma_max=2000.0))
    x = draw_points(charges, 1.0, 0.1, 2)
    log_prob = flow.log_prob(x, class_labels=torch.tensor([0, 0])).log_prob
    expected = PoissonKernel(1.0).log_prob(x - charges[0], 0.1)
    assert (log_prob - expected).abs().max() < 5e-3 and log_prob[0] > log_prob[1]
    swapped = flow.sample(
        latents=flow.encode(x[:1], class_labels=torch.tensor([0])).latents, class_labels=torch.ones(1)
    )
    assert torch.allclose(swapped.sample, charges[1:])


@pytest.mark.slow
def test_large_batches_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_of_charges(charges_in(3), sigma_min=0.3)
    x = draw_points(charges_in(3), 1.0, 0.3, 10)
    generators = [seeded(number) for number in range(10)]
    monkeypatch.setattr("diffusers_pfgm.flow.densities.DENSITY_TOLERANCE", 3e-12)  # that of the fixed steps
    whole = flow.log_prob(x, 20, "hutchinson", 2, generators)
    monkeypatch.setattr("diffusers_pfgm.flow.densities.GRAPH_NUMBERS", 9)
    generators = [seeded(number) for number in range(10)]
    parts = flow.log_prob(x, 20, "hutchinson", 2, generators)
    assert torch.allclose(parts.log_prob, whole.log_prob, rtol=1e-9) and parts.latents.shape == (10, 3)


def test_densities_of_float16_networks_at_large_sigma() -> None:
    class Point(torch.nn.Module):
        """One charge at 0, predicted as "epsilon" x/σ. Only the factor σ of gradients exceeds the range of float16."""

        dtype = torch.float16

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            return ((sample.float() / timestep).half(),)

    options = {"prediction_type": "epsilon", "aug_dim": None, "sigma_min": 0.5, "sigma_max": 1e5}
    flow = PoissonFlow(Point(), PoissonFlowScheduler(**options))
    x = torch.tensor([[0.15, -0.1]])
    expected = PoissonKernel(None).log_prob(x.double(), 0.5)
    for steps in (None, 100):
        assert (flow.log_prob(x, steps).log_prob - expected).abs() < 0.02
