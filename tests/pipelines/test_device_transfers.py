"""The steps of a run neither copy to the device nor read from it, on an emulated device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from diffusers_pfgm import (
    ChargeField,
    ClassCharges,
    FieldObjective,
    Inpainting,
    Parameterization,
    PerturbationObjective,
    PFGMInversePipeline,
    PFGMPipeline,
    PoissonFlowScheduler,
    recommend_hyperparameters,
)
from diffusers_pfgm.physics.noise_estimate import NoiseEstimate
from diffusers_pfgm.training.data.order import position_generators
from tests.networks import make_tiny_unet, seeded
from tests.physics.mps_policy import MPS, MPSPolicy, transfers

CHARGES = torch.rand(6, 1, 8, 8, generator=seeded()) * 2 - 1
STATISTICS = {"prediction_type": "epsilon", "sigma_data": 0.5, "data_mean": 0.0, "mean_square_std": 0.1}


@pytest.fixture(autouse=True)
def policy() -> Iterator[None]:
    with MPSPolicy():
        yield


def count(pipe: Any, *args: Any, num_inference_steps: int, **kwargs: Any) -> int:
    pipe.set_progress_bar_config(disable=True)
    before = len(transfers)
    pipe(*args, num_inference_steps=num_inference_steps, generator=seeded(), **kwargs)
    return len(transfers) - before


@pytest.mark.parametrize(
    "options",
    [
        STATISTICS,
        {**STATISTICS, "prior": "hemisphere"},
        {**STATISTICS, "prior": "plane", "solver": "heun"},
        {"prediction_type": "field"},
        {"prediction_type": "field", "sigma_data": 0.5, "solver": "euler"},
        {"prediction_type": "epsilon", "sigma_data": 0.5, "aug_dim": None},
        {"prediction_type": "v_prediction", "beta_schedule": "linear", "aug_dim": None},
    ],
)
@pytest.mark.parametrize("guidance_scale", [None, 1.0, 2.0])
def test_steps_of_a_network(options: dict[str, Any], guidance_scale: float | None) -> None:
    channels = 1 + (options["prediction_type"] == "field")
    network = make_tiny_unet(1, channels, num_class_embeds=None if guidance_scale is None else 4).to(MPS)
    pipe = PFGMPipeline(network, PoissonFlowScheduler(**options), id2label={0: "a", 1: "b", 2: "c"})
    kwargs = {} if guidance_scale is None else {"class_labels": [0, 2], "guidance_scale": guidance_scale}
    few, many = (count(pipe, 2, num_inference_steps=steps, output_type="latent", **kwargs) for steps in (3, 6))
    assert few == many


@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
def test_steps_of_the_exact_field(prediction_type: str) -> None:
    field = ChargeField(CHARGES, prediction_type=prediction_type).to(MPS)
    pipe = PFGMPipeline(field, PoissonFlowScheduler(prediction_type=prediction_type))
    few, many = (count(pipe, 2, num_inference_steps=steps, output_type="latent") for steps in (3, 6))
    assert few == many


def test_steps_of_an_inverse_problem() -> None:
    measure = Inpainting(torch.rand(8, 8, generator=seeded()) < 0.5)
    pipe = PFGMInversePipeline(make_tiny_unet(1, 1).to(MPS), PoissonFlowScheduler(**STATISTICS))
    y = measure(CHARGES[:2])
    # The first run moves the mask.
    _, few, many = (count(pipe, y, measure, 0.3, "guidance", num_inference_steps=steps) for steps in (3, 3, 6))
    assert few == many


@pytest.mark.parametrize("name", ["field", "perturbation", "D = inf"])
def test_a_loss_copies_its_draws_at_once(name: str) -> None:
    estimate = NoiseEstimate(1.0, 0.0, 0.5, 0.1) if name == "perturbation" else None
    parameterization = Parameterization("epsilon", sigma_data=0.5, noise_estimate=estimate)
    objective = FieldObjective(recommend_hyperparameters(4.0, 64))
    if name != "field":
        objective = PerturbationObjective(parameterization, 1.0 if name == "perturbation" else None)
    clean, network = CHARGES.to(MPS), make_tiny_unet(1, 1 + (name == "field")).to(MPS)
    counts = []
    for size in (2, 6):
        before = len(transfers)
        objective(network, clean[:size], generator=position_generators(0, 0, size)).loss.backward()
        counts.append(len(transfers) - before)
    assert counts[0] == counts[1] <= 6  # draws of the noise, and checks of images and field


@pytest.mark.parametrize("prepared", [False, True])
def test_a_loss_of_classes_checks_its_field_once(prepared: bool) -> None:
    clean, labels = CHARGES.to(MPS), torch.arange(6)
    charges = ClassCharges(clean, labels) if prepared else None
    objective, network = FieldObjective(recommend_hyperparameters(4.0, 64)), make_tiny_unet(num_class_embeds=7).to(MPS)
    counts = []
    for number in (1, 6):
        before = len(transfers)
        generators = position_generators(0, 0, 6)
        objective(network, clean, charges, generators, class_labels=(labels % number).to(MPS))
        counts.append(len(transfers) - before)
    # Of charges that are not prepared, the indices of each class are copied.
    assert counts[1] - counts[0] == (0 if prepared else 5)
