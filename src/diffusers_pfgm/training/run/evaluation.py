"""The options and the work of evaluate_pfgm.py: images of a model, and one JSON file with all their metrics."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
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
from ..data.source import is_image_folder
from . import likelihood_evaluation
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
from .long_barrier import LongBarrier
from .model_checksum import pipeline_checksum
from .option_types import integer, number, positive
from .records import read_records
from .script_errors import ScriptParser
from .settings import MODEL_CHECKSUM
from .setup import uses_several_cpus

METRICS = "metrics.json"
IMAGES = "images"
PACKAGES = ("diffusers_pfgm", "torch", "diffusers", "torchmetrics", "torch_fidelity", "transformers", "POT")


def parse_args(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options of evaluate_pfgm.py.

    Args:
        description: The description of the script in its help.
        argv: The arguments; by default those of the command line.

    Raises:
        SystemExit: if an option is invalid. The message names it.
    """
    parser = ScriptParser(description)
    add = parser.add_argument
    add("--model", help="folder or Hub id of the pipeline that is evaluated")
    add("--images", help="images that are evaluated instead: a folder, a parquet file or a Hub id")
    add(
        "--reference",
        required=True,
        help="real images: a folder, a parquet file or a Hub id; or an .npz file of their statistics `mu` and `sigma`",
    )
    add("--train_data", help="training images of the model, to find samples that are copies of them")
    add(
        "--features",
        nargs="+",
        default=["inception"],
        help="networks whose features are compared: inception (for the FID), mnist, or vision models of transformers; "
        "by default inception",
    )
    add("--inception_weights", type=Path, help="file of Inception's weights; by default it is downloaded")
    add(
        "--resolution",
        type=positive,
        help="size in pixels to which reference and training images are resized and cropped; by default they must have "
        "the size of the evaluated images",
    )
    add("--num_images", type=integer(2), default=50_000, help="number of images to generate")
    add("--num_inference_steps", type=positive, default=20, help="number of steps of each image")
    add(
        "--tolerance",
        type=number(0, above_low=True),
        help="relative and absolute tolerance of the adaptive solver RK45, in place of --num_inference_steps",
    )
    add("--guidance_scale", type=number(0), default=1.0, help="scale of classifier-free guidance; 1 means no guidance")
    add("--batch_size", type=positive, default=64, help="number of images that a process generates at a time")
    add("--seed", type=integer(0, 2**31 - 1), default=0, help="seed of the generated images")
    add(
        "--bits_per_dim_images",
        type=integer(0),
        default=0,
        help="number of reference images, from the first, whose bits per dimension are evaluated",
    )
    add("--output_dir", type=Path, required=True, help="folder of the images and of metrics.json")
    add("--keep_images", action="store_true", help="keep the generated images in the folder")
    args = parser.parse_args(argv)
    if (args.model is None) == (args.images is None):
        parser.error("pass exactly one of --model and --images")
    if args.bits_per_dim_images and (args.model is None or is_statistics(args.reference)):
        parser.error("--bits_per_dim_images needs --model, and images as --reference")
    if args.train_data is not None and is_statistics(args.reference):
        parser.error("--train_data needs images as --reference, whose distances to the training images are compared")
    args.command = shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)])
    return args


def is_statistics(reference: str) -> bool:
    """Whether `--reference` is a file of statistics, not of images."""
    return Path(reference).suffix == ".npz"


def main(args: argparse.Namespace) -> None:
    """Generate the images that are missing, compute the metrics, and write and print them.

    Args:
        args: The options of evaluate_pfgm.py, from `parse_args`.

    Raises:
        ValueError: if the output folder is a file, or the model, the images or the statistics cannot be used, or do not
            fit each other.
    """
    if args.output_dir.is_file():
        raise ValueError(f"`--output_dir` {str(args.output_dir)!r} is a file. Name a folder.")
    accelerator = Accelerator(cpu=uses_several_cpus())
    barrier = LongBarrier(accelerator)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pipeline = None if args.model is None else PFGMPipeline.from_pretrained(args.model)
    with barrier:
        if accelerator.is_main_process:  # before hours of generation, since any of this may be missing
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
        images.generate(
            pipeline,
            accelerator,
            args.num_images,
            args.batch_size,
            args.num_inference_steps,
            args.guidance_scale,
            args.seed,
            args.tolerance,
        )
    return images


class _Evaluation:
    """The reference, the training images and the feature networks of one process, and the report that they lead to."""

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
            likelihood_evaluation.count_results(
                options.output, likelihood_evaluation.result_settings(options, pipeline)
            )
        if args.train_data is not None:
            self.train = read_pixels("--train_data", args.train_data, shape, args.resolution)

    @torch.no_grad()
    def _check_networks(self, shape: tuple[int, ...], num_images: int) -> None:
        """Check that the networks accept images of this shape (C, H, W), that their metrics can be computed of this
        number of images and of the reference images, and that the statistics are of their features.

        Raises:
            ValueError: if they do not, or cannot.
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
            pixels, report["nfe"] = images.load(args.num_images, args.batch_size)
        assert pixels is not None
        count = None if self.reference is None else len(self.reference)
        report |= {"num_images": len(pixels), "num_reference_images": count, "metrics": self._metrics(pixels, device)}
        path = args.output_dir / METRICS
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        print_metrics(report["metrics"])
        print(f"All of them with the command and versions: {path}")
        if images is not None and not args.keep_images:
            shutil.rmtree(images.folder)

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
    return likelihood_evaluation.parse_args(None, [*options, "--seed", str(args.seed), "--output", str(output)])


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
