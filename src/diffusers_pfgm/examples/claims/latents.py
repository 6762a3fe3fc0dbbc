"""Claims f and g, which need MNIST's images: the likelihood of a model, and the uniformity of its latents (Theorem 1).

Claim g cannot confirm or refute the theorem, which is about the exact field. It checks the property of a trained model.
"""

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
# Bits per dimension of RealNVP on MNIST with uniform dequantization, as reported for FFJORD (arXiv 1810.01367).
REAL_NVP = 1.06
LEAST_P_VALUE = 0.05  # bound of the p-value of all tests together
NO_CLASS = 10  # the null class, for which the model draws from all classes


def image_sets(mnist: str, sets: int, count: int) -> list[torch.Tensor]:
    """Return `sets` disjoint random sets of images, each (count, 1, 28, 28) in [-1, 1].

    Args:
        mnist: MNIST's test images, a folder or a parquet file.
        sets: the number of sets.
        count: the number of images of a set.

    Raises:
        ValueError: if there are fewer than `sets` · `count` images.
    """
    images = ImageTensors(open_images(mnist), 28, mode="L", center_crop=True)
    if len(images) < sets * count:
        raise ValueError(
            f"`mnist` (option `--mnist`) {mnist!r} has {len(images)} images, but {sets} sets of {count} different ones "
            f"are needed. Pass at least {sets * count} images."
        )
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: sets * count]
    return list(images.__getitems__(rows.tolist()).split(count))


def likelihood(mnist: str | None, seeds: Sequence[int] = (0, 1, 2), images: int = 8, steps: int = 15) -> Claim:
    """Measure claim f.

    Args:
        mnist: MNIST's test images, a folder or a parquet file; None if there are none.
        seeds: seeds of the dequantization and of the probes, each with its own images.
        images: the number of images, for each seed.
        steps: the number of fixed steps.
    """
    values: list[float] = []
    calls: list[float] = []
    if mnist is not None:
        pipe = PFGMLikelihoodPipeline(**load_model("mnist").components)
        pipe.set_progress_bar_config(disable=True)
        for seed, batch in zip(seeds, image_sets(mnist, len(seeds), images), strict=True):
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
        "steps. The bound is the published figure of RealNVP, a normalizing flow, on MNIST, which was not run here.",
        checks=[Check("bits per dimension", "below", REAL_NVP, values)] if values else [],
        header=["model", "bits per dimension", "network calls"],
        rows=[["MNIST model, D = 1, 1.1 M parameters, 3,500 training steps", values, calls]] if values else [],
        sizes={"seeds": list(seeds), "images per seed": images, "steps": steps},
        missing=None if values else MISSING,
    )


def theorem_one(
    mnist: str | None, seeds: Sequence[int] = (0, 1, 2), images: int = 20, tolerance: float = 1e-3
) -> Claim:
    """Measure claim g.

    Args:
        mnist: MNIST's test images, a folder or a parquet file; None if there are none.
        seeds: seeds of the noise, each with its own images.
        images: the number of images, for each seed.
        tolerance: the relative tolerance of the adaptive solver.
    """
    rows: list[list[Cell]] = []
    checks: list[Check] = []
    if mnist is not None:
        pipe = load_model("mnist")
        batches = image_sets(mnist, len(seeds), images)
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
        title="Uniformity of a trained model's latents, which Theorem 1 predicts",
        statement="Charges that flow along the field lines of the data become uniform on a hemisphere of infinite "
        "radius",
        source="PFGM, section 3.1, Theorem 1",
        method="The theorem is proved for the exact field, and no measurement can refute it. It is checked whether the "
        "field that a network has learned has this property, so the verdict is about the MNIST model of the package. "
        "MNIST's test images with the kernel's noise at σ_min are encoded to σ_max by the model without labels. Two "
        "projections of the directions from the mean of the data are compared with their distributions on a uniform "
        "hemisphere by Kolmogorov-Smirnov tests, as in `plots/hemisphere.py`: the polar angle, which is given by ‖x‖, "
        "and the elevation along the brightness of an image. In the training of the model the root mean square of the "
        "noise was limited to 4 σ, so that the model extrapolates on the 20 % of the hemisphere beyond this limit. The "
        "control is the same test of digits in their own exact field.",
        checks=checks,
        header=[
            "model",
            "angle",
            *(f"p-value, seed {seed}" for seed in seeds),
            "largest deviation of the empirical distribution function",
        ],
        rows=rows,
        sizes={"seeds": list(seeds), "images per seed": images, "tolerance": tolerance},
        missing=None if checks else MISSING,
    )


def encoded_uniformity(
    flow: PoissonFlow, batches: Mapping[int, torch.Tensor], mean: float, tolerance: float, **model_kwargs: Any
) -> list[dict[str, Agreement]]:
    """Encode images with the kernel's noise at σ_min, and test whether their latents are uniform on the hemisphere.

    Args:
        flow: the flow, at D = 1.
        batches: images (B, C, H, W), by the seed of their noise.
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
