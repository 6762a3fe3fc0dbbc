"""How likely a model finds held-out digits, and pictures that are none: an out-of-distribution score.

Shuffled digits have the same pixels in another order, foreign pictures are patches of two photographs. Prints bits per
dimension of each and the AUROC of telling them from digits by likelihood alone, and leaves a picture of the histograms.
Without `--model` the exact field of the other digits takes the network's place.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from diffusers_pfgm import ChargeField, PFGMLikelihoodPipeline, PoissonFlowScheduler
from diffusers_pfgm.examples.digits import split_digits

LEVELS = 17  # of a pixel of scikit-learn's digits
FIELD_SIGMA_MIN = 0.1  # of the exact field: below, it knows its own charges and nothing else


def shuffled(digits: torch.Tensor) -> torch.Tensor:
    """Digits (B, 1, 8, 8) with the pixels of each in an order of its own."""
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(64, generator=generator) for _ in digits])
    return digits.flatten(1).gather(1, orders).view_as(digits)


def foreign(count: int) -> torch.Tensor:
    """Patches (count, 1, 8, 8) of scikit-learn's photographs, an eighth as large, gray, in the digits' levels."""
    photographs = torch.tensor(np.stack(load_sample_images().images), dtype=torch.float32).mean(3)
    small = torch.nn.functional.avg_pool2d(photographs.unsqueeze(1), 8)
    patches = torch.nn.functional.unfold(small, 8, stride=4).mT.reshape(-1, 1, 8, 8)
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    return (patches[order[:count]] / 255 * (LEVELS - 1)).round() / (LEVELS - 1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a pipeline for digits, such as demo-output/model")
    parser.add_argument("--count", type=int, default=100, help="pictures of each kind")
    parser.add_argument("--divergence", choices=["hutchinson", "hutch++", "exact"], default="hutchinson")
    parser.add_argument("--num_probes", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=0.03, help="in nats")
    parser.add_argument("--output", type=Path, default=Path("likelihood.png"))
    args = parser.parse_args(argv)

    train, held_out = split_digits()
    if args.model is None:
        scheduler = PoissonFlowScheduler(sigma_min=FIELD_SIGMA_MIN)
        pipe = PFGMLikelihoodPipeline(ChargeField(train), scheduler)
    else:
        pipe = PFGMLikelihoodPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    digits = held_out[: args.count] / 2 + 0.5
    kinds = {"held-out digits": digits, "shuffled digits": shuffled(digits), "foreign pictures": foreign(args.count)}

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    found: dict[str, torch.Tensor] = {}
    for name, pictures in kinds.items():
        output = pipe(
            pictures,
            divergence=args.divergence,
            num_probes=args.num_probes,
            generator=torch.Generator().manual_seed(0),
            num_levels=LEVELS,
            tolerance=args.tolerance,
        )
        bits = torch.as_tensor(output.bits_per_dim)
        line = (
            f"{name}: {bits.mean():.3f} ± {bits.std() / math.sqrt(len(bits)):.3f} bits/dim, {output.nfe} network calls"
        )
        if found:
            known = found["held-out digits"]
            is_other = [0] * len(known) + [1] * len(bits)
            line += f", AUROC {roc_auc_score(is_other, torch.cat([known, bits])):.3f}"
        print(line)
        found[name] = bits
    every = torch.cat(list(found.values()))
    low, high = every.quantile(torch.tensor([0.01, 0.99], dtype=every.dtype)).tolist()  # not for the sake of one
    for name, bits in found.items():
        axes.hist(bits, bins=50, range=(low, high), alpha=0.6, label=name)
    axes.set(xlabel="bits per dimension", ylabel="pictures", title="Likelihood under the model")
    axes.legend(frameon=False)
    figure.savefig(args.output, dpi=110)
    print(f"Histograms: {args.output}")


if __name__ == "__main__":
    main()
