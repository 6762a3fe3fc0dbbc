"""The field objective with scaled inputs."""

import pytest
import torch

from diffusers_pfgm import ChargeField, FieldObjective, PFGMPipeline, PoissonFlowScheduler, recommend_hyperparameters
from diffusers_pfgm.losses import field as field_objective
from diffusers_pfgm.physics.field import FieldOutput
from diffusers_pfgm.physics.perturbation import perturb
from tests.networks import ExactNetwork, seeded

HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


def test_the_exact_field_of_a_preconditioned_network_has_no_loss(digits: torch.Tensor) -> None:
    data = digits[:200].float()
    objective = FieldObjective(HYPERPARAMETERS, sigma_data=0.5)
    inputs = []

    def network(x: torch.Tensor, t: torch.Tensor) -> FieldOutput:
        inputs.append((x, t))
        return ExactNetwork(data, objective.parameterization, 1.0)(x, t)

    result = objective(network, data[:32], data, seeded())
    x, z = perturb(data[:32], HYPERPARAMETERS, generator=seeded())
    torch.testing.assert_close(inputs[0][0], x / (z**2 + 0.25).sqrt().view(-1, 1, 1, 1))
    torch.testing.assert_close(inputs[0][1], z.log() / 4)
    assert result.loss < 1e-8
    zero = (data[:32], torch.zeros(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(field_objective, "perturb", lambda *args, **options: zero)  # a float32 draw of z may be 0
        result = objective(network, data[:32], data, seeded())
        assert result.loss.isfinite() and (result.sigma > 0).all()  # training calls the network at this σ once more
        assert inputs[-1][1].isfinite().all()  # the timestep, whose embedding would be NaN
    # The same network generates what the exact field does.
    pipes = [
        PFGMPipeline(unet, PoissonFlowScheduler(sigma_data=sigma_data))
        for unet, sigma_data in ((ExactNetwork(data, objective.parameterization, 1.0), 0.5), (ChargeField(data), None))
    ]
    images = [pipe(16, 10, seeded(), output_type="pt").images for pipe in pipes]
    torch.testing.assert_close(*images, rtol=0, atol=1e-2)
