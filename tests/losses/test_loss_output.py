"""Losses by band of σ and by sample, and labels that are dropped."""

import itertools

import pytest
import torch

from diffusers_pfgm import (
    FieldObjective,
    recommend_hyperparameters,
)
from diffusers_pfgm.losses.loss_output import LossOutput, drop_labels
from tests.networks import make_tiny_unet, seeded

HYPERPARAMETERS = recommend_hyperparameters(data_norm=5.0, data_dim=64)


def test_bands_have_the_mean_loss_of_their_samples(digits: torch.Tensor) -> None:
    data = digits[:64].float()
    result = FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), data, generator=seeded())
    bands = result.bands()
    edges = ["0", "0.01", "0.1", "1.0", "10.0", "inf"]
    assert set(bands) <= {f"loss/sigma_{low}_{high}" for low, high in itertools.pairwise(edges)}
    in_band = (result.sigma > 0.1) & (result.sigma <= 1.0)
    assert bands["loss/sigma_0.1_1.0"] == pytest.approx(result.per_sample[in_band].mean().item())
    assert result.loss.item() == pytest.approx(result.per_sample.mean().item())


def test_the_loss_of_each_sample_is_detached(digits: torch.Tensor) -> None:
    result = FieldObjective(HYPERPARAMETERS)(make_tiny_unet(), digits[:4].float(), generator=seeded())
    assert result.loss.requires_grad and not result.per_sample.requires_grad


def test_bands_include_their_upper_edge() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    result = LossOutput(values.mean(), values, torch.tensor([0.1, 0.5, 1.0]))
    assert result.bands() == {"loss/sigma_0.01_0.1": 1.0, "loss/sigma_0.1_1.0": 2.5}


def test_labels_are_dropped_at_random() -> None:
    labels, before = torch.arange(20_000) % 7, torch.get_rng_state()
    dropped = drop_labels(labels, 0.3, 7, seeded())
    # Five standard errors of a proportion of 20,000 draws.
    assert (dropped == 7).double().mean().item() == pytest.approx(0.3, abs=0.016)
    assert torch.equal(dropped[dropped < 7], labels[dropped < 7]) and torch.equal(labels, torch.arange(20_000) % 7)
    assert torch.equal(drop_labels(labels, 0.0, 7), labels)
    assert torch.equal(drop_labels(labels, 0.3, 7, seeded()), dropped)
    torch.set_rng_state(before)
