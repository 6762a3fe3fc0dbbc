"""The options of evaluate_pfgm.py."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from .option_types import integer, number, positive
from .script_errors import ScriptParser


def parse_args(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options of evaluate_pfgm.py. Arguments and errors as in `arguments.parse_args`."""
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
        help="number of reference images, in a random order, whose bits per dimension are evaluated",
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
