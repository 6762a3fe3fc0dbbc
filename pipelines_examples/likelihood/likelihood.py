"""Likelihoods of held-out digits and of other images, as a score for out-of-distribution detection.

    python pipelines_examples/likelihood/likelihood.py --model demo-output/model

The other images are digits with shuffled pixels and patches of two photographs. The script prints the mean bits per
dimension of each kind of images, and the AUROC of separating the other kinds from digits by the likelihood. It saves a
figure of the histograms. Without `--model` the exact field of the training digits is used.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from diffusers_pfgm import ChargeField, PFGMLikelihoodPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import NUM_HELD_OUT, split_digits
from diffusers_pfgm.training.run.option_types import integer, number, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import figure_file

NUM_LEVELS = 17  # values of a pixel of scikit-learn's digits
# σ_min of the exact field. At smaller noise levels the density is concentrated at the training digits.
FIELD_SIGMA_MIN = 0.1


def shuffle_pixels(digits: torch.Tensor) -> torch.Tensor:
    """Return digits (B, 1, 8, 8) with the pixels of each in a different random order."""
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(64, generator=generator) for _ in digits])
    return digits.flatten(1).gather(1, orders).view_as(digits)


def photograph_patches(count: int) -> torch.Tensor:
    """Return patches (count, 1, 8, 8) in [0, 1] of scikit-learn's photographs, in gray, with the digits' pixel values.

    The photographs are first reduced to an eighth of their size.
    """
    photographs = torch.tensor(np.stack(load_sample_images().images), dtype=torch.float32).mean(3)
    small = torch.nn.functional.avg_pool2d(photographs.unsqueeze(1), 8)
    patches = torch.nn.functional.unfold(small, 8, stride=4).mT.reshape(-1, 1, 8, 8)
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    return (patches[order[:count]] / 255 * (NUM_LEVELS - 1)).round() / (NUM_LEVELS - 1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a pipeline for digits, such as demo-output/model")
    parser.add_argument("--count", type=integer(2, NUM_HELD_OUT), default=100, help="number of images of each kind")
    parser.add_argument(
        "--divergence",
        choices=["hutchinson", "hutch++", "exact"],
        default="hutchinson",
        help="method for the divergence of the flow",
    )
    parser.add_argument(
        "--num_probes", type=positive, default=1, help="number of random probes of hutchinson or hutch++"
    )
    parser.add_argument(
        "--tolerance", type=number(0, above_low=True), default=0.03, help="tolerance of the log-likelihood in nats"
    )
    parser.add_argument("--output", type=figure_file, default=Path("likelihood.png"), help="file of the figure")
    args = parser.parse_args(argv)

    train, held_out = split_digits()
    if args.model is None:
        scheduler = PoissonFlowScheduler(sigma_min=FIELD_SIGMA_MIN)
        pipe = PFGMLikelihoodPipeline(ChargeField(train), scheduler)
    else:
        pipe = PFGMLikelihoodPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    digits = held_out[: args.count] / 2 + 0.5
    images_by_kind = {
        "held-out digits": digits,
        "shuffled digits": shuffle_pixels(digits),
        "photograph patches": photograph_patches(args.count),
    }

    bits_by_kind: dict[str, torch.Tensor] = {}
    for kind, images in images_by_kind.items():
        output = pipe(
            images,
            divergence=args.divergence,
            num_probes=args.num_probes,
            generator=torch.Generator().manual_seed(0),
            num_levels=NUM_LEVELS,
            tolerance=args.tolerance,
        )
        bits = torch.as_tensor(output.bits_per_dim)
        standard_error = bits.std() / math.sqrt(len(bits))
        line = f"{kind}: {bits.mean():.3f} ± {standard_error:.3f} bits/dim, {output.nfe} network calls"
        if bits_by_kind:
            digit_bits = bits_by_kind["held-out digits"]
            is_other = [0] * len(digit_bits) + [1] * len(bits)
            line += f", AUROC {roc_auc_score(is_other, torch.cat([digit_bits, bits])):.3f}"
        print(line)
        bits_by_kind[kind] = bits

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    all_bits = torch.cat(list(bits_by_kind.values()))
    low, high = all_bits.quantile(torch.tensor([0.01, 0.99], dtype=all_bits.dtype)).tolist()  # without outliers
    for kind, bits in bits_by_kind.items():
        axes.hist(bits, bins=50, range=(low, high), alpha=0.6, label=kind)
    axes.set(xlabel="bits per dimension", ylabel="number of images", title="Likelihood under the model")
    axes.legend(frameon=False)
    figure.savefig(args.output, dpi=110)
    print(f"Histograms: {args.output}")


if __name__ == "__main__":
    run_script(main)
