"""Likelihood of a data set under a model, in bits per dimension, resumable.

    python training/evaluate_likelihood.py --model pfgm-mnist --dataset_name mnist-parquet/test.parquet --max_images 500

Each picture's figures are a line of `--output`. Started again with the same options, it goes on where it was: the
random numbers of a picture depend on the seed and its index alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers_pfgm.training  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from diffusers_pfgm import PFGMLikelihoodPipeline
from diffusers_pfgm.pipelines.class_conditioning import Label
from diffusers_pfgm.pipelines.inputs import PIL_MODES
from diffusers_pfgm.training.data.decoding import open_image
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.labels import read_class_labels
from diffusers_pfgm.training.data.order import position_generators
from diffusers_pfgm.training.data.source import load_image_dataset
from diffusers_pfgm.training.run.option_types import integer, number, positive
from diffusers_pfgm.training.run.records import Records, read_records
from diffusers_pfgm.training.run.script_errors import ScriptParser, run_script
from diffusers_pfgm.training.run.settings import differences

TOLERANCE = 0.03  # nats
FREE = ("output", "batch_size", "max_images", "device")  # options that leave a picture's figures alone


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pipeline")
    parser.add_argument("--dataset_name", help="Hub id, parquet file, folder of `save_to_disk`")
    parser.add_argument("--train_data_dir", help="folder of image files, in place of --dataset_name")
    parser.add_argument("--image_column", help="column of images; the first by default")
    parser.add_argument("--label_column", help="likelihood under the class of each picture; without it, under all")
    parser.add_argument("--max_images", type=positive, help="the first so many; all by default")
    parser.add_argument("--output", type=Path, default=Path("likelihood.jsonl"), help="a line for each picture")
    parser.add_argument("--batch_size", type=positive, default=64)
    parser.add_argument("--divergence", choices=["hutchinson", "hutch++", "exact"], default="hutchinson")
    parser.add_argument("--num_probes", type=positive, default=1)
    parser.add_argument("--num_inference_steps", type=positive, help="fixed steps in place of an adaptive solver")
    parser.add_argument(
        "--tolerance", type=number(0, 1, above_low=True), help="of the adaptive solver, 0.03 nats without fixed steps"
    )
    parser.add_argument("--num_levels", type=integer(2), default=256, help="of a pixel")
    parser.add_argument("--seed", type=integer(0, 2**31 - 1), default=0, help="of dequantisation and probes")
    parser.add_argument("--device", help="cpu, cuda, mps; the accelerator by default")
    args = parser.parse_args(argv)
    if args.num_inference_steps is None:
        args.tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    elif args.tolerance is not None:
        parser.error("--tolerance is for the adaptive solver. Leave it out, or leave out --num_inference_steps")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    done = _begin(args.output, settings)

    pipe = PFGMLikelihoodPipeline.from_pretrained(args.model).to(args.device or _accelerator())
    pipe.set_progress_bar_config(disable=True)
    dataset = load_image_dataset(args.dataset_name, data_dir=args.train_data_dir)
    images = _images(dataset, args.image_column, pipe.unet.config)
    labels = None if args.label_column is None else _labels(dataset, args.label_column, pipe.config.id2label)

    records = Records(args.output)
    count = min(len(images), args.max_images or len(images))
    with tqdm(total=count, initial=min(done, count), desc="Images", unit="image") as progress_bar:
        for first in range(done, count, args.batch_size):
            rows = range(first, min(first + args.batch_size, count))
            output = pipe(
                images.__getitems__(rows) / 2 + 0.5,
                None if labels is None else labels[first : rows.stop],
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
            for row, index in enumerate(rows):
                error = {} if output.standard_error is None else {"standard_error": output.standard_error[row].item()}
                records.write(
                    "image",
                    index,
                    log_prob=output.log_prob[row].item(),
                    bits_per_dim=output.bits_per_dim[row].item(),
                    truncation=output.truncation[row].item(),
                    nfe=output.nfe,
                    **error,
                )
            progress_bar.update(len(rows))
    _report(args.output)


def _accelerator() -> str:
    """The device to run on; "cpu" without another."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


class _FittedImages:
    """Images (C, H, W) in [-1, 1] of any height and width: resized to cover both, and the middle of it."""

    def __init__(self, files: ImageTensors, size: tuple[int, int]) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self._image(index) for index in indices])

    def _image(self, index: int) -> torch.Tensor:
        height, width = self.size
        image = _opened(self.files, index).convert(self.files.mode)
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(fitted)).view(height, width, -1)
        return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _opened(files: ImageTensors, index: int) -> Image.Image:
    return open_image(f"Image {index} of the data set", files.files[index][files.column])


def _images(dataset: datasets.Dataset, column: str | None, config: Any) -> ImageTensors | _FittedImages:
    """The images as the network takes them; of a network for any size as large as the first of them."""
    mode = PIL_MODES.get(config.in_channels)
    if mode is None:
        raise ValueError(
            f"`--model` has {config.in_channels} channels, where images have 1 to 4. Use `PFGMLikelihoodPipeline`."
        )
    size = config.sample_size
    files = ImageTensors(dataset, size if isinstance(size, int) else 1, column, mode, center_crop=True)
    if isinstance(size, int):
        return files
    first = _opened(files, 0) if size is None else None
    return _FittedImages(files, tuple(size) if first is None else (first.height, first.width))


def _begin(path: Path, settings: dict[str, object]) -> int:
    """Pictures that a file of the same settings holds already.

    Raises:
        ValueError: if it holds something else.
    """
    if not path.exists():
        return 0
    saved = read_records(path, "settings")
    if not saved:
        raise ValueError(f"`--output` {str(path)!r} exists and is not a file of this script. Name another.")
    differing = differences(saved[0]["settings"], settings)
    if differing:
        raise ValueError(
            f"`--output` {str(path)!r} holds figures of other settings: {'; '.join(differing)}. Pass these again, or "
            "name another file."
        )
    return len(read_records(path, "image"))


def _labels(dataset: datasets.Dataset, column: str, id2label: dict[str, str] | None) -> list[Label]:
    """Each picture's class, by its name where the model's classes have names: a data set may number them otherwise."""
    numbers, names = read_class_labels(dataset, column)
    return [names[number] if id2label else number for number in numbers.tolist()]


def _report(path: Path) -> None:
    """Mean and standard error over the pictures, which holds that of random divergences and dequantisation too."""
    found = read_records(path, "image")

    def mean(name: str) -> str:
        values = torch.tensor([record[name] for record in found], dtype=torch.float64)
        error = values.std().item() / math.sqrt(len(found)) if len(found) > 1 else math.nan
        return f"{values.mean():.4f} ± {error:.4f}"

    calls, bounds = max(record["nfe"] for record in found), [record["truncation"] for record in found]
    print(f"{len(found):,} pictures, {calls} network calls each at most: {path}")
    print(f"  {mean('bits_per_dim')} bits/dim (mean ± standard error)")
    print(f"  {mean('log_prob')} nats")
    average = sum(bounds) / len(bounds)
    print(f"  each may be off by its bound: {average:.2g} nats on average, {max(bounds):.2g} for one picture")


if __name__ == "__main__":
    run_script(main)
