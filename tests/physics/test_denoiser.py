"""A network of any parameterisation, seen through the denoiser, is the posterior mean."""

from typing import Any

import pytest
import torch

from diffusers_pfgm import ChargeField, Parameterization, posterior_mean
from diffusers_pfgm.physics.denoiser import Denoiser
from tests.conftest import ExactNetwork, seeded

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
def test_every_network_is_the_posterior_mean(parameterization: Parameterization, sigma: float) -> None:
    charges = torch.randn(4, 2, 3, 3, generator=seeded(), dtype=torch.float64)
    x = charges[:3] + sigma * torch.randn(3, 2, 3, 3, generator=seeded(1), dtype=torch.float64)
    denoiser = Denoiser(ExactNetwork(charges, parameterization, 4.0), parameterization)
    for height in (sigma, torch.tensor(sigma, dtype=torch.float64)):
        # Labels are read in float32 elsewhere; here the label's own rounding is all there is.
        assert torch.allclose(denoiser(x, height), posterior_mean(x, sigma, charges, 4.0), atol=1e-7)
    assert denoiser.nfe == 2


def test_a_model_is_called_in_its_own_precision_and_with_its_options() -> None:
    seen: dict[str, Any] = {}

    class Model:
        dtype = torch.bfloat16

        def __call__(self, x: torch.Tensor, t: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
            seen.update(options, dtype=x.dtype, label=t.dtype)
            return (x,)

    found = Denoiser(Model(), Parameterization("sample"), class_labels=3)(torch.ones(1, 1, 2), 0.5)
    assert seen == {"class_labels": 3, "dtype": torch.bfloat16, "label": torch.float32} and found.dtype == torch.float32


def test_an_output_of_the_wrong_shape_is_explained() -> None:
    field = ChargeField(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"`model_output` must have the shape \(1, 1, 2, 2\)"):
        Denoiser(field, Parameterization("sample"))(torch.ones(1, 1, 2, 2), 1.0)
