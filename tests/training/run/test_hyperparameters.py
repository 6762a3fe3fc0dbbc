"""Hyperparameters of the objectives follow from the data, also where the data have no spread."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel

from diffusers_pfgm.training.data.statistics import DataStatistics
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.hyperparameters import describe_hyperparameters, make_objective, make_training_task
from tests.networks import make_tiny_unet, seeded


def images_like(pixels: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(statistics=lambda: DataStatistics.of_images([pixels]), channels=pixels.shape[1])


def test_statistics_are_those_of_all_numbers() -> None:
    images = torch.randn(50, 2, 3, 3, generator=seeded(), dtype=torch.float64) + 0.3
    whole, parts = (DataStatistics.of_images(batches) for batches in ([images], images.split(7)))
    deviations = (images - images.mean()).flatten(1).square().mean(1)
    assert whole.mean == pytest.approx(images.mean().item())
    assert whole.std == pytest.approx(images.std(correction=0).item())
    assert whole.mean_square_std == pytest.approx(deviations.std(correction=0).item())
    assert whole.mean_norm == pytest.approx(images.flatten(1).norm(dim=1).mean().item())
    assert whole.mean_square_std == pytest.approx(parts.mean_square_std)


def test_noise_levels_scale_with_the_data() -> None:
    pixels = 0.25 * torch.randn(50, 1, 8, 8, generator=seeded()) - 0.5
    objective, scheduler = make_objective(parse_args(None, ["--resolution=8"]), images_like(pixels))
    config = scheduler.config
    assert (config.data_mean, config.sigma_data) == (pytest.approx(-0.5, abs=0.02), pytest.approx(0.25, rel=0.05))
    assert config.sigma_max == pytest.approx(160 * config.sigma_data, rel=1e-2)
    assert config.sigma_min == pytest.approx(0.004 * config.sigma_data, rel=1e-2)
    assert config.max_norm == pytest.approx(4 * 8 * config.sigma_max)
    assert objective.p_mean == pytest.approx(math.log(config.sigma_data) - 0.3)
    assert objective.parameterization == scheduler.parameterization
    described = describe_hyperparameters(objective, scheduler)
    assert f"mean = {config.data_mean:g}, sigma_data = {config.sigma_data:g}" in described


@pytest.mark.parametrize("preconditioning", ["student_t", "edm"])
def test_noise_levels_of_the_training_can_be_chosen(preconditioning: str) -> None:
    options = ["--resolution=8", f"--preconditioning={preconditioning}", "--p_mean=-0.5"]
    pixels = 0.25 * torch.randn(50, 1, 8, 8, generator=seeded())
    chosen, _ = make_objective(parse_args(None, [*options, "--p_std=0"]), images_like(pixels))
    default_std, _ = make_objective(parse_args(None, options), images_like(pixels))
    assert (chosen.p_mean, chosen.p_std) == (-0.5, 0.0)
    assert (default_std.p_mean, default_std.p_std) == (-0.5, 1.3 if preconditioning == "student_t" else 1.2)


@pytest.mark.parametrize("pixels", [torch.full((3, 1, 8, 8), -1.0), torch.rand(1, 1, 8, 8), torch.zeros(2, 1, 8, 8)])
@pytest.mark.parametrize("aug_dim", ["0.01", "1", "1e9"])
def test_data_without_spread_can_be_trained(pixels: torch.Tensor, aug_dim: str) -> None:
    options = ["--resolution=8", f"--aug_dim={aug_dim}"]
    objective, _ = make_objective(parse_args(None, options), images_like(pixels))
    result = objective(make_tiny_unet(out_channels=1), pixels, seeded())
    result.loss.backward()
    assert result.per_sample.isfinite().all()


def test_fourier_features_are_refused_where_the_timestep_can_be_negative(tmp_path: Path) -> None:
    config = make_tiny_unet(out_channels=1).config
    UNet2DModel.from_config(config, time_embedding_type="fourier").save_config(tmp_path)
    data = SimpleNamespace(images=images_like(torch.rand(3, 1, 8, 8)), id2label=None)
    args = parse_args(None, ["--resolution=8", f"--model_config_name_or_path={tmp_path}"])
    with pytest.raises(ValueError, match=r"time_embedding_type 'fourier'.* Use 'positional'"):
        make_training_task(args, data, Accelerator(cpu=True))
    UNet2DModel.from_config(config, time_embedding_type="fourier", out_channels=2).save_config(tmp_path)
    args = parse_args(None, ["--resolution=8", f"--model_config_name_or_path={tmp_path}", "--objective=field"])
    task = make_training_task(args, data, Accelerator(cpu=True))
    assert task.objective(task.unet, torch.rand(3, 1, 8, 8), generator=seeded()).loss.isfinite()
