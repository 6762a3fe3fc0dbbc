"""Runs of tune_consistency.py in this process, and the models that they start from."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.training.run.tuning import main
from diffusers_pfgm.training.run.tuning_arguments import parse_tuning_args
from tests.networks import make_smallest_unet

SCRIPT = Path(__file__).parents[2] / "training" / "tune_consistency.py"
STATISTICS = {"sigma_data": 0.75, "data_mean": -0.39, "mean_square_std": 0.07}


def save_base(
    folder: Path, aug_dim: float | None = 1.0, classes: bool = False, null_class: bool = True, **options: Any
) -> Path:
    """Save a pipeline with a network whose output is almost 0, so that x̂ at σ_max is near 0."""
    options = {"sigma_min": 0.003, "sigma_max": 120.0, "prediction_type": "epsilon"} | options
    if "beta_schedule" not in options:
        options |= STATISTICS if aug_dim is not None else {"sigma_data": 0.75}
    unet = make_smallest_unet(num_class_embeds=10 + null_class if classes else None)
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.01)
    id2label = {number: str(number) for number in range(10)} if classes else None
    PFGMPipeline(unet, PoissonFlowScheduler(aug_dim, **options), id2label).save_pretrained(folder)
    return folder


def options_of(base: Path, data: Path, output: Path, *options: str) -> list[str]:
    shared = [f"--model={base}", f"--dataset_name={data}", f"--output_dir={output}", "--logger=none", "--seed=0"]
    return [*shared, "--train_batch_size=16", "--lr_warmup_steps=1", "--max_train_steps=4", *options]


def tune(base: Path, data: Path, output: Path, *options: str) -> None:
    main(parse_tuning_args(None, options_of(base, data, output, *options)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def is_same(first: Path, second: Path) -> bool:
    pairs = weights(first), weights(second)
    return all(torch.equal(value, pairs[1][name]) for name, value in pairs[0].items())
