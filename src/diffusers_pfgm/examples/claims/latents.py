"""Claims f and g, which need MNIST's images: likelihood, and uniform latents on the hemisphere (Theorem 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...flow import PoissonFlow
from ...flow.dequantization import bits_per_dim
from ...physics import ChargeField
from ...pipelines import PFGMLikelihoodPipeline
from ...plots.hemisphere import Agreement, uniformity
from ...schedulers import PoissonFlowScheduler
from ...training.data.images import ImageTensors
from ...training.data.source import open_images
from ..digits import split_digits
from .claim import Cell, Check, Claim
from .mnist_model import load_model

MISSING = "MNIST's images are not part of the package. Pass `MNIST=` a folder or a parquet file of its test images."
REAL_NVP = (
    1.06  # bits per dimension of RealNVP on MNIST with uniform dequantization, as FFJORD (arXiv 1810.01367) has it
)
LEAST_P_VALUE = 0.05  # of all tests together
NO_CLASS = 10  # the label for which the model draws from all classes


def test_images(mnist: str, sets: int, count: int) -> list[torch.Tensor]:
    """Return disjoint random sets of `count` images (count, 1, 28, 28) in [-1, 1]."""
    images = ImageTensors(open_images(mnist), 28, mode="L", center_crop=True)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: sets * count]
    return list(images.__getitems__(rows.tolist()).split(count))


def likelihood(mnist: str | None, seeds: Sequence[int] = (0, 1, 2), images: int = 8, steps: int = 15) -> Claim:
    """Measure claim f.

    Args:
        mnist: MNIST's test images, a folder or a parquet file; None if there are none.
        seeds: seeds of the dequantization and of the probes, each with its own images.
        images: the number of images of a seed.
        steps: the number of fixed steps.
    """
    values: list[float] = []
    calls: list[float] = []
    if mnist is not None:
        pipe = PFGMLikelihoodPipeline(**load_model("mnist").components)
        pipe.set_progress_bar_config(disable=True)
        for seed, batch in zip(seeds, test_images(mnist, len(seeds), images), strict=True):
            generator = torch.Generator().manual_seed(seed)
            output = pipe(batch / 2 + 0.5, num_inference_steps=steps, generator=generator)
            values.append(bits_per_dim(output.log_prob, batch[0].numel()).mean().item())
            calls.append(float(output.nfe))
    return Claim(
        title="Likelihood",
        statement="The invertible ODE of PFGM gives exact likelihoods that are competitive with those of normalizing "
        "flows",
        source="PFGM, abstract and section 4; 3.19 bits per dimension on CIFAR-10",
        method="Bits per dimension of MNIST's test images under the MNIST model of the package without labels, with "
        "uniform dequantization of 256 levels, Hutchinson's estimate of the divergence with one probe, and fixed "
        "steps. The bound is the published figure of RealNVP on MNIST, which was not run here.",
        checks=[Check("bits per dimension", "below", REAL_NVP, values)] if values else [],
        header=["model", "bits per dimension", "network calls"],
        rows=[["MNIST model, D = 1, 1.1 M parameters, 1,600 training steps", values, calls]] if values else [],
        sizes={"seeds": list(seeds), "images of a seed": images, "steps": steps},
        missing=None if values else MISSING,
    )


def theorem_one(
    mnist: str | None, seeds: Sequence[int] = (0, 1, 2), images: int = 20, tolerance: float = 1e-3
) -> Claim:
    """Measure claim g.

    Args:
        mnist: MNIST's test images, a folder or a parquet file; None if there are none.
        seeds: seeds of the noise, each with its own images.
        images: the number of images of a seed.
        tolerance: the relative tolerance of the adaptive solver.
    """
    rows: list[list[Cell]] = []
    checks: list[Check] = []
    if mnist is not None:
        pipe = load_model("mnist")
        batches = test_images(mnist, len(seeds), images)
        flow = PoissonFlow(pipe.unet, pipe.scheduler)
        labels = torch.full((images,), NO_CLASS)
        mean = pipe.scheduler.config.data_mean
        results = encoded_uniformity(flow, dict(zip(seeds, batches, strict=True)), mean, tolerance, class_labels=labels)
        p_values = [agreement.p_value for angles in results for agreement in angles.values()]
        together = min(1.0, len(p_values) * min(p_values))
        checks = [Check("smallest p-value times the number of tests (Bonferroni)", "above", LEAST_P_VALUE, [together])]
        digits = split_digits()[0].double()
        field = PoissonFlow(ChargeField(digits), PoissonFlowScheduler(sigma_max=flow.sigma_max))
        control = {seed: digits[: len(seeds) * images][index :: len(seeds)] for index, seed in enumerate(seeds)}
        exact = encoded_uniformity(field, control, digits.mean().item(), tolerance)
        rows = [
            [name, angle, *(each[angle].p_value for each in angles), [each[angle].deviation for each in angles]]
            for name, angles in (("MNIST model, D = 1", results), ("control: exact field of digits", exact))
            for angle in angles[0]
        ]
    return Claim(
        title="Theorem 1: data become uniform on the hemisphere",
        statement="Charges that flow along the field lines of the data become uniform on a hemisphere of infinite "
        "radius",
        source="PFGM, section 3.1, Theorem 1",
        method="MNIST's test images with the kernel's noise at σ_min follow the MNIST model of the package, without "
        "labels, to σ_max. Two projections of the directions from the mean of the data are compared with their "
        "distributions on a uniform hemisphere by Kolmogorov-Smirnov tests, as in `plots/hemisphere.py`: the polar "
        "angle, which is given by ‖x‖, and the elevation along the brightness of an image. The model was trained with "
        "noise of at most 4 σ. Beyond it, on 16 % of the hemisphere, it extrapolates. The control is the same test of "
        "digits in their own exact field.",
        checks=checks,
        header=[
            "model",
            "angle",
            *(f"p-value, seed {seed}" for seed in seeds),
            "largest deviation of the distribution function",
        ],
        rows=rows,
        sizes={"seeds": list(seeds), "images of a seed": images, "tolerance": tolerance},
        missing=None if checks else MISSING,
    )


def encoded_uniformity(
    flow: PoissonFlow, batches: Mapping[int, torch.Tensor], mean: float, tolerance: float, **model_kwargs: Any
) -> list[dict[str, Agreement]]:
    """Encode images with the kernel's noise at σ_min, and test whether their latents are uniform on the hemisphere.

    Args:
        flow: the flow, at D = 1.
        batches: images (B, C, H, W) by the seed of their noise.
        mean: μ, the mean of the data, from which directions are measured.
        tolerance: the relative tolerance of the adaptive solver.
        **model_kwargs: passed to the model.
    """
    results = []
    for seed, images in batches.items():
        generator = torch.Generator().manual_seed(seed)
        noise = flow.scheduler.kernel.sample(images.shape, flow.sigma_min, generator, dtype=images.dtype)
        latents = flow.encode(images + noise, tolerance=tolerance, **model_kwargs).latents
        results.append(uniformity(latents - mean, flow.sigma_max))
    return results
