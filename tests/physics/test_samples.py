"""Samples are tensors (B, *) of floating-point numbers: results of integers would be rounded or wrapped."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    ConsistencyObjective,
    DistributionMatchingObjective,
    FieldObjective,
    HemisphereLatents,
    Parameterization,
    PerturbationObjective,
    PoissonFlowScheduler,
    PoissonKernel,
    normalized_field,
    posterior_mean,
    recommend_hyperparameters,
)
from diffusers_pfgm.physics.perturbation import perturb
from tests.networks import make_tiny_unet

CHARGES = torch.rand(5, 1, 8, 8)
HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda x: posterior_mean(x, 1.0, CHARGES)),
        ("x", lambda x: normalized_field(x, 1.0, CHARGES)),
        ("sample", lambda x: ChargeField(CHARGES)(x, 1.0)),
        ("x", lambda x: PoissonKernel().log_prob(x)),
        ("x", HemisphereLatents.from_latents),
        ("data", lambda x: perturb(x, HYPERPARAMETERS)),
        ("clean", lambda x: FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), x)),
        ("clean", lambda x: PerturbationObjective(Parameterization("epsilon"))(make_tiny_unet(1), x)),
        (
            "clean",
            lambda x: ConsistencyObjective(Parameterization("epsilon", boundary=0.1), 80.0, 0.5)(make_tiny_unet(), x),
        ),
        (
            "clean",
            lambda x: DistributionMatchingObjective(
                Parameterization("epsilon", boundary=0.1),
                Parameterization("epsilon"),
                ChargeField(CHARGES),
                [80.0],
                0.5,
            )(make_tiny_unet(), x, critic=make_tiny_unet()),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_only_floating_point_samples_are_accepted(
    name: str, call: Callable[[torch.Tensor], object], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a tensor of floating-point numbers, but is {dtype}"):
        call(torch.ones(2, 1, 8, 8).to(dtype))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda x: posterior_mean(x, 1.0, CHARGES)),
        ("sample", lambda x: ChargeField(CHARGES)(x, 1.0)),
        ("x", lambda x: PoissonKernel().log_prob(x)),
        ("x", HemisphereLatents.from_latents),
        ("data", lambda x: perturb(x, HYPERPARAMETERS)),
        ("clean", lambda x: PerturbationObjective(Parameterization("epsilon"))(make_tiny_unet(1), x)),
        ("original_samples", lambda x: PoissonFlowScheduler().add_noise(x, x, torch.tensor(1.0))),
    ],
)
def test_arrays_and_single_samples_are_refused(name: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a tensor .B, .*, but is ndarray. Convert .* `torch.as_te"):
        call(np.ones((2, 1, 8, 8), dtype=np.float32))
    with pytest.raises(
        ValueError, match=rf"`{name}` must have the shape \(B, \*\), but has \(64,\). Pass a single sample"
    ):
        call(torch.ones(64))


def test_charges_may_be_integers() -> None:
    x = torch.rand(3, 1, 8, 8)
    bytes_of_images = (255 * CHARGES).to(torch.uint8)
    assert torch.equal(posterior_mean(x, 1.0, bytes_of_images), posterior_mean(x, 1.0, bytes_of_images.double()))
