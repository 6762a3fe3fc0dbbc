"""The denoiser computes the posterior mean from a network of any parameterization."""

from typing import Any

import pytest
import torch

from diffusers_pfgm import ChargeField, Parameterization, posterior_mean
from diffusers_pfgm.physics.denoiser import Denoiser
from tests.networks import ExactNetwork, seeded

TRAIN_SIGMAS = tuple(torch.logspace(-2, 2, 50, dtype=torch.float64).tolist())


@pytest.mark.parametrize("sigma", [0.03, 0.7, 31.0])
@pytest.mark.parametrize(
    "parameterization",
    [
        *(Parameterization(kind) for kind in ("field", "sample", "epsilon", "v_prediction")),
        *(Parameterization(kind, sigma_data=0.5) for kind in ("epsilon", "v_prediction")),
        *(Parameterization(kind, train_sigmas=TRAIN_SIGMAS) for kind in ("sample", "epsilon", "v_prediction")),
    ],
    ids=lambda parameterization: (
        f"{parameterization.prediction_type} {parameterization.sigma_data} {parameterization.train_sigmas is not None}"
    ),
)
def test_every_exact_network_gives_the_posterior_mean(parameterization: Parameterization, sigma: float) -> None:
    charges = torch.randn(4, 2, 3, 3, generator=seeded(), dtype=torch.float64)
    x = charges[:3] + sigma * torch.randn(3, 2, 3, 3, generator=seeded(1), dtype=torch.float64)
    denoiser = Denoiser(ExactNetwork(charges, parameterization, 4.0), parameterization)
    for value in (sigma, torch.tensor(sigma, dtype=torch.float64)):
        # In float64 only the rounding of the timestep contributes an error.
        assert torch.allclose(denoiser(x, value), posterior_mean(x, sigma, charges, 4.0), atol=1e-7)
    assert denoiser.nfe == 2


def test_a_model_is_called_in_its_dtype_and_with_its_keyword_arguments() -> None:
    received: dict[str, Any] = {}

    class Model:
        dtype = torch.bfloat16

        def __call__(self, x: torch.Tensor, t: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
            received.update(options, dtype=x.dtype, timestep=t.dtype)
            return (x,)

    denoised = Denoiser(Model(), Parameterization("sample"), class_labels=3)(torch.ones(1, 1, 2), 0.5)
    assert received == {"class_labels": 3, "dtype": torch.bfloat16, "timestep": torch.float32}
    assert denoised.dtype == torch.float32


def test_an_output_of_the_wrong_shape_is_explained() -> None:
    field = ChargeField(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"`model_output` must have the shape \(1, 1, 2, 2\)"):
        Denoiser(field, Parameterization("sample"))(torch.ones(1, 1, 2, 2), 1.0)
