"""The work of evaluate_pfgm.py: images of a model, and one JSON file with all their metrics."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ...metrics.feature_networks import load_feature_network
from ...metrics.feature_statistics import FeatureStatistics
from ...metrics.inception_score import SPLITS
from ...metrics.precision_recall import NEIGHBORS
from ...pipelines.inputs import latents_shape
from ...pipelines.pipeline_pfgm import PFGMPipeline
from ...utils.atomic_file import atomic_file
from ...utils.extras import require_extra
from ..data.source import is_image_folder, open_images
from . import likelihood_arguments, likelihood_evaluation
from .evaluation_arguments import is_statistics
from .evaluation_images import read_pixels
from .evaluation_metrics import (
    compare_features,
    compare_pixels,
    compute_features,
    find_memorized,
    reference_statistics,
    to_float,
)
from .generated_images import GeneratedImages
from .load_model import load_model
from .long_barrier import LongBarrier
from .model_checksum import pipeline_checksum
from .output_folder import lock_output_dir
from .records import read_records
from .settings import MODEL_CHECKSUM
from .setup import uses_several_cpus

METRICS = "metrics.json"
IMAGES = "images"
PACKAGES = ("diffusers_pfgm", "torch", "diffusers", "torchmetrics", "torch_fidelity", "transformers", "POT")


def main(args: argparse.Namespace) -> None:
    """Generate the images that are missing, compute the metrics, and write and print them.

    Args:
        args: The options of evaluate_pfgm.py, from `evaluation_arguments.parse_args`.

    Raises:
        ValueError: if the output folder is a file or in use by another run, or the model, the images or the statistics
            cannot be used, or do not fit each other.
    """
    if args.output_dir.is_file():
        raise ValueError(f"`--output_dir` {str(args.output_dir)!r} is a file. Name a folder.")
    require_extra("evaluation", "torchmetrics")  # before hours of generation
    accelerator = Accelerator(cpu=uses_several_cpus())
    barrier = LongBarrier(accelerator)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pipeline = None if args.model is None else load_model(PFGMPipeline, args.model)
    with contextlib.ExitStack() as stack:
        with barrier:
            if accelerator.is_main_process:  # before hours of generation, since any of this may be missing
                stack.callback(lock_output_dir(args.output_dir).release)
                evaluation = _Evaluation(args, pipeline)
        images = None if pipeline is None else _generate(args, pipeline, accelerator, barrier)
        with barrier:
            if accelerator.is_main_process:
                evaluation.write_report(images, accelerator.device)


def _generate(
    args: argparse.Namespace, pipeline: PFGMPipeline, accelerator: Accelerator, barrier: LongBarrier
) -> GeneratedImages:
    """Generate the images that are missing on all processes."""
    names = ("model", "num_images", "num_inference_steps", "tolerance", "guidance_scale", "batch_size", "seed")
    pipeline.to(accelerator.device).set_progress_bar_config(disable=True)
    with accelerator.main_process_first():
        settings = {name: getattr(args, name) for name in names} | {MODEL_CHECKSUM: pipeline_checksum(pipeline)}
        images = GeneratedImages(args.output_dir / IMAGES, settings)
    with barrier:
        images.generate(pipeline, accelerator)
    return images


class _Evaluation:
    """The reference, the training images and the feature networks of an evaluation, and the report made with them."""

    def __init__(self, args: argparse.Namespace, pipeline: PFGMPipeline | None) -> None:
        self.args = args
        self.pixels = None  # the images of `--images`
        if pipeline is None:
            self.pixels = read_pixels("--images", args.images)
            shape = tuple(self.pixels.shape[1:])
        else:
            if pipeline.unet.config.sample_size is None:
                raise ValueError(
                    f"`--model` {args.model!r} has no `sample_size`, so the size of its images is unknown. Generate "
                    "them yourself, and pass the folder as `--images`."
                )
            shape = latents_shape(pipeline.unet.config, 1, None)[1:]
        self.networks = {name: load_feature_network(name, args.inception_weights) for name in args.features}
        self.statistics = self.reference = self.train = None
        if is_statistics(args.reference):
            self.statistics = FeatureStatistics.load(args.reference)
        else:
            self.reference = read_pixels("--reference", args.reference, shape, args.resolution)
        self._check_networks(shape, args.num_images if self.pixels is None else len(self.pixels))
        if pipeline is not None and args.bits_per_dim_images:
            likelihood_evaluation.check_model(pipeline)
            options = _likelihood_options(args)
            settings = likelihood_evaluation.result_settings(options, pipeline, open_images(args.reference))
            likelihood_evaluation.count_results(options.output, settings)
        if args.train_data is not None:
            self.train = read_pixels("--train_data", args.train_data, shape, args.resolution)

    @torch.no_grad()
    def _check_networks(self, shape: tuple[int, ...], num_images: int) -> None:
        """Check that the feature networks fit the images and the reference.

        Args:
            shape: the shape (C, H, W) of the evaluated images.
            num_images: the number of evaluated images.

        Raises:
            ValueError: if a network does not accept the shape, there are too few evaluated images or reference images
                for the metrics, or the statistics are not of the network's features.
        """
        if self.reference is not None and len(self.reference) <= NEIGHBORS:
            raise ValueError(
                f"`--reference` {self.args.reference!r} has {len(self.reference)} images, but precision and recall "
                f"need at least {NEIGHBORS + 1}. Pass more."
            )
        for name, network in self.networks.items():
            features, logits = network(to_float(torch.zeros(2, *shape, dtype=torch.uint8)))
            least = NEIGHBORS + 1 if logits is None else SPLITS
            if num_images < least:
                option = "--num_images" if self.args.images is None else "--images"
                raise ValueError(
                    f"`{option}` must be at least {least} images for the metrics of `--features` {name}, but are "
                    f"{num_images}. Pass more."
                )
            if self.statistics is None:
                continue
            count, owner = len(self.statistics.mean), self.statistics.network
            if count != features.shape[1] or owner not in (None, name):
                raise ValueError(
                    f"`--reference` {self.args.reference!r} has statistics of {count} features of "
                    f"{owner or 'an unknown network'}, but `--features` {name} has {features.shape[1]}. Pass "
                    "statistics of the same network, or the reference images."
                )

    def write_report(self, images: GeneratedImages | None, device: torch.device) -> None:
        """Compute, write and print the metrics."""
        args = self.args
        report: dict[str, Any] = {"command": args.command, "versions": _versions()}
        pixels = self.pixels
        if images is not None:
            pixels, report["nfe"] = images.load()
        assert pixels is not None
        count = None if self.reference is None else len(self.reference)
        report |= {"num_images": len(pixels), "num_reference_images": count, "metrics": self._metrics(pixels, device)}
        path = args.output_dir / METRICS
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        print_metrics(report["metrics"])
        print(f"All of them with the command and versions: {path}")
        if images is not None and not args.keep_images:
            images.remove()

    def _metrics(self, pixels: torch.Tensor, device: torch.device) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if self.reference is not None:
            metrics["sliced_wasserstein_distance"] = compare_pixels(pixels, self.reference)
        for name, network in self.networks.items():
            features, logits = compute_features(network, pixels, device, f"Features {name}")
            statistics = self.statistics
            if self.reference is not None:
                cache = self.args.output_dir / f"reference-{Path(name).name}.npz"
                statistics = reference_statistics(network, name, self.reference, device, cache)
            assert statistics is not None  # the reference is either images or statistics
            metrics[name] = compare_features(features, logits, statistics, name)
        if self.reference is not None and self.train is not None:
            metrics["nearest_training_images"] = find_memorized(pixels, self.reference, self.train)
        if self.args.bits_per_dim_images:
            metrics["bits_per_dim"] = _bits_per_dim(self.args)
        return metrics


def print_metrics(metrics: Mapping[str, Any], prefix: str = "") -> None:
    """Print each number of nested metrics in a line."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            print_metrics(value, f"{prefix}{name} ")
        elif isinstance(value, float):
            print(f"  {prefix}{name}: {value:.4f}")


def _likelihood_options(args: argparse.Namespace) -> argparse.Namespace:
    """The options of evaluate_likelihood.py for the bits per dimension of the reference images."""
    output = args.output_dir / "likelihood.jsonl"
    option = "--train_data_dir" if is_image_folder(args.reference) else "--dataset_name"
    options = [option, args.reference, "--model", args.model, "--max_images", str(args.bits_per_dim_images)]
    return likelihood_arguments.parse_args(None, [*options, "--seed", str(args.seed), "--output", str(output)])


def _bits_per_dim(args: argparse.Namespace) -> dict[str, float | None]:
    """Mean and standard error of the reference images' bits per dimension, as evaluate_likelihood.py computes them."""
    options = _likelihood_options(args)
    likelihood_evaluation.main(options)
    records = read_records(options.output, "image")[: options.max_images]
    mean, error = likelihood_evaluation.mean_and_error(records, "bits_per_dim")
    return {"mean": mean, "standard_error": None if math.isnan(error) else error}


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
