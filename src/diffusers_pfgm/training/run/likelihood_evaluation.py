"""The likelihood of a data set under a model: the work and the summary of evaluate_likelihood.py."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ...flow.poisson_flow import PoissonFlow
from ...pipelines.class_conditioning import Label
from ...pipelines.inputs import PIL_MODES
from ...pipelines.pipeline_pfgm_likelihood import PFGMLikelihoodPipeline
from ...schedulers.conversion import check_density
from ..data.columns import with_image_files
from ..data.fingerprint import dataset_fingerprint, fingerprint
from ..data.images import ImageTensors
from ..data.labels import read_class_labels
from ..data.order import position_generators
from ..data.source import load_image_dataset
from .load_model import load_model
from .model_checksum import pipeline_checksum
from .records import Records, read_records
from .settings import DATA_PREFIX, MODEL_CHECKSUM, differences

RECORDED = 64  # images whose results are written at a time
# Options that do not change an image's results, except within the tolerance of the adaptive solver.
IGNORED_OPTIONS = ("output", "batch_size", "max_images", "device")


def main(args: argparse.Namespace) -> None:
    """Evaluate the images that are not in the output file yet, append their results, and print a summary.

    Args:
        args: The options of evaluate_likelihood.py, from `likelihood_arguments.parse_args`.

    Raises:
        ValueError: if the output file has results of other settings, or the model or the data set cannot be used.
        OSError: if the folder of the output file cannot be created.
    """
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pipe: Any = load_model(PFGMLikelihoodPipeline, args.model, args.device or default_device())
    pipe.set_progress_bar_config(disable=True)
    dataset = load_image_dataset(args.dataset_name, data_dir=args.train_data_dir)
    images = _images(dataset, args.image_column, pipe.unet.config)
    labels = None if args.label_column is None else _labels(dataset, args.label_column, pipe.config.id2label)
    if labels is not None:
        try:
            pipe.prepare_class_labels(labels, len(labels), torch.device("cpu"))
        except ValueError as unknown:
            raise ValueError(f"`--label_column` {args.label_column!r}: {unknown}") from unknown
    settings = result_settings(args, pipe, dataset, labels)
    done = count_results(args.output, settings)
    records = Records(args.output)
    count = min(len(images), args.max_images or len(images))
    # The data may be sorted by class, so that the first images would be of one class.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed)).tolist()
    with tqdm(total=count, initial=min(done, count), desc="Images", unit="image") as progress_bar:
        for first in range(done, count, args.batch_size or RECORDED):
            rows = order[first : min(first + (args.batch_size or RECORDED), count)]
            output = pipe(
                images.__getitems__(rows) / 2 + 0.5,
                None if labels is None else [labels[row] for row in rows],
                args.num_inference_steps,
                args.divergence,
                args.num_probes,
                position_generators(args.seed, first, len(rows)),
                args.num_levels,
                args.batch_size,
                args.tolerance,
            )
            if not first:
                records.write("settings", 0, settings=settings)
            for place, row in enumerate(rows):
                error = {} if output.standard_error is None else {"standard_error": output.standard_error[place].item()}
                records.write(
                    "image",
                    first + place,
                    image=row,
                    log_prob=output.log_prob[place].item(),
                    bits_per_dim=output.bits_per_dim[place].item(),
                    truncation=output.truncation[place].item(),
                    nfe=output.nfe,
                    **error,
                )
            progress_bar.update(len(rows))
    print_summary(args.output)


def default_device() -> str:
    """The type of the machine's accelerator; "cpu" without one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def check_model(pipeline: Any) -> None:
    """Check that a pipeline's images have a likelihood without labels.

    Raises:
        ValueError: if its scheduler solves no ODE, or its network needs class labels.
    """
    PoissonFlow(pipeline.unet, pipeline.scheduler)
    check_density(pipeline.unet, pipeline.scheduler)
    pipeline.prepare_class_labels(None, 1, torch.device("cpu"))


def result_settings(
    args: argparse.Namespace, pipeline: Any, dataset: datasets.Dataset, labels: list[Label] | None = None
) -> dict[str, Any]:
    """Return what an image's results depend on: options of evaluate_likelihood.py, the model, images and labels."""
    settings = {name: value for name, value in vars(args).items() if name not in IGNORED_OPTIONS}
    settings["image_order"] = "random"
    settings[MODEL_CHECKSUM] = pipeline_checksum(pipeline)
    settings[f"{DATA_PREFIX}images"] = dataset_fingerprint(*with_image_files(dataset, args.image_column))
    if labels is not None:
        settings[f"{DATA_PREFIX}labels"] = fingerprint([labels])
    return settings


def count_results(path: Path, settings: dict[str, object]) -> int:
    """Return the number of images whose results are in an output file of the same settings.

    Raises:
        ValueError: if the file has results of other settings, or is another kind of file or a folder.
    """
    if path.is_dir():
        raise ValueError(f"`--output` {str(path)!r} is a folder. Name a file.")
    if not path.exists() or not path.stat().st_size:  # a full disk or a kill leaves a file without a line
        return 0
    saved = read_records(path, "settings")
    if not saved:
        raise ValueError(f"`--output` {str(path)!r} exists and is not a file of this script. Name another file.")
    known = saved[0]["settings"]
    if "levels" in known:  # version 0.1.0, which wrote a tolerance for fixed steps too, without using it
        known["num_levels"] = known.pop("levels")
        known["tolerance"] = settings["tolerance"] if known["num_inference_steps"] else known["tolerance"]
    known.setdefault(MODEL_CHECKSUM, settings[MODEL_CHECKSUM])  # version 0.1.0 did not write it
    if "image_order" not in known:
        raise ValueError(
            f"`--output` {str(path)!r} is of an earlier version, which took the first images and not random ones. Move "
            "it away, or name another file."
        )
    differing = differences(known, settings)
    if differing:
        raise ValueError(
            f"`--output` {str(path)!r} holds results of other settings: {'; '.join(differing)}. Pass these again, or "
            "name another file."
        )
    return len(read_records(path, "image"))


def print_summary(path: Path) -> None:
    """Print mean and standard error over the images of an output file.

    The standard error includes the randomness of dequantization and divergence estimates.
    """
    records = read_records(path, "image")
    calls = max(record["nfe"] for record in records)
    errors = [record["truncation"] for record in records]
    settings = read_records(path, "settings")[0]["settings"]
    print(f"{len(records):,} images, at most {calls} network calls each: {path}")
    for name, unit in (("bits_per_dim", "bits/dim (mean ± standard error)"), ("log_prob", "nats")):
        mean, error = mean_and_error(records, name)
        print(f"  {mean:.4f} ± {error:.4f} {unit}")
    left_out = ", without the error of the fixed steps" if settings["num_inference_steps"] else ""
    mean_error = sum(errors) / len(errors)
    print(
        f"  estimated error of the log-density of one image{left_out}: {mean_error:.2g} nats on average, at most "
        f"{max(errors):.2g} nats"
    )


def mean_and_error(records: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Return mean and standard error of a result over the images of an output file; NaN as the error of one image."""
    values = torch.tensor([record[name] for record in records], dtype=torch.float64)
    error = values.std().item() / math.sqrt(len(records)) if len(records) > 1 else math.nan
    return values.mean().item(), error


@dataclass
class _FittedImages:
    """Images (C, H, W) in [-1, 1] of any height and width, resized to cover this size and cropped in the middle."""

    files: ImageTensors
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self._image(index) for index in indices])

    def _image(self, index: int) -> torch.Tensor:
        height, width = self.size
        image = self.files.original(index).convert(self.files.mode)
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(fitted)).view(height, width, -1)
        return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _images(dataset: datasets.Dataset, column: str | None, config: Any) -> ImageTensors | _FittedImages:
    """The images in the size of the network. If the network accepts any size, that of the first image is used."""
    mode = PIL_MODES.get(config.in_channels)
    if mode is None:
        raise ValueError(
            f"`--model` has {config.in_channels} channels, but images have 1 to 4. Use `PFGMLikelihoodPipeline`."
        )
    size = config.sample_size
    files = ImageTensors(dataset, size if isinstance(size, int) else 1, column, mode, center_crop=True)
    if isinstance(size, int):
        return files
    first = files.original(0) if size is None else None
    return _FittedImages(files, tuple(size) if first is None else (first.height, first.width))


def _labels(dataset: datasets.Dataset, column: str, id2label: dict[str, str] | None) -> list[Label]:
    """The class of each image, by name if the model's classes have names: a data set may number them differently."""
    numbers, names = read_class_labels(dataset, column)
    return [names[label] if id2label else label for label in numbers.tolist()]
