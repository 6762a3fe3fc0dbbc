"""Held-out images, and the distance to them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.training.samples import draw_samples, save_samples
from diffusers_pfgm.training.validation import BestModel, Validation, split_indices
from tests.conftest import make_tiny_pipeline


def exact(charges: torch.Tensor) -> PFGMPipeline:
    pipe = PFGMPipeline(ChargeField(charges), PoissonFlowScheduler(max_norm=300.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_split_is_disjoint_complete_and_the_same_again() -> None:
    train, held_out = split_indices(100, 0.2, seed=1)
    assert sorted(train + held_out) == list(range(100)) and len(held_out) == 20
    assert (train, held_out) == split_indices(100, 0.2, seed=1) != split_indices(100, 0.2, seed=2)
    for share in (0.001, 0.999):
        with pytest.raises(ValueError, match=rf"`--validation_split` {share} of 100 images holds"):
            split_indices(100, share, seed=0)


def test_good_samples_are_as_far_as_real_ones_and_noise_is_farther(digits: torch.Tensor) -> None:
    images = digits.float()
    validation = Validation(images[:300], images[300:])
    state = torch.get_rng_state()
    good = validation.distance(exact(images[300:]), 20)
    assert good < 1.2 * validation.floor < validation.distance(make_tiny_pipeline(), 5) / 3
    assert torch.equal(state, torch.get_rng_state()) and good == validation.distance(exact(images[300:]), 20)


def test_the_best_model_stays_also_after_a_restart(tmp_path: Path) -> None:
    pipe, best = make_tiny_pipeline(), BestModel(tmp_path / "best")
    assert best.offer(pipe, 0.5, step=1) and not best.offer(pipe, 0.6, step=2) and best.offer(pipe, 0.4, step=3)
    again = BestModel(tmp_path / "best")
    assert again.distance == 0.4 and not again.offer(pipe, 0.45, step=4) and not again.offer(pipe, float("nan"), step=5)
    assert PFGMPipeline.from_pretrained(tmp_path / "best") is not None


def test_samples_are_the_same_in_any_batch(digits: torch.Tensor) -> None:
    pipe = exact(digits[:50].float())
    whole = draw_samples(pipe, 7, 5)
    assert torch.allclose(draw_samples(pipe, 7, 5, batch_size=3), whole, atol=1e-5)


def test_a_grid_is_whole_or_not_there(digits: torch.Tensor, tmp_path: Path) -> None:
    grid = save_samples(exact(digits[:50].float()), tmp_path, 7, 4, 5)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000007.png"]
    assert Image.open(tmp_path / "samples" / "step-000007.png").size == grid.size == (2 * 68, 2 * 68)
