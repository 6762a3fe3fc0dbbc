"""The options of evaluate_likelihood.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from .option_types import integer, number, positive
from .script_errors import ScriptParser

DEFAULT_TOLERANCE = 0.03  # nats


def parse_args(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options of evaluate_likelihood.py. Arguments and errors as in `arguments.parse_args`."""
    parser = ScriptParser(description)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id of the pipeline that is evaluated")
    add("--dataset_name", help="Hub id, parquet file, or folder of `save_to_disk`")
    add("--train_data_dir", help="folder of image files, instead of --dataset_name")
    add("--image_column", help="column of images; the first by default")
    add("--label_column", help="column of class labels, for the likelihood of each image under its class")
    add("--max_images", type=positive, help="number of images, in a random order; all by default")
    add("--output", type=Path, default=Path("likelihood.jsonl"), help="file of the results, one line for each image")
    add(
        "--batch_size",
        type=positive,
        help="largest number of images that are evaluated at once; by default as many as have 65,536 numbers",
    )
    add(
        "--divergence",
        choices=["hutchinson", "hutch++", "exact"],
        default="hutchinson",
        help="how the divergence of the flow is computed: by one of two estimators with random probes, or exactly, by "
        "as many vector-Jacobian products in each network call as an image has numbers",
    )
    add(
        "--num_probes",
        type=positive,
        default=1,
        help="number of random probes of an estimate of the divergence; a multiple of 3 for hutch++",
    )
    add("--num_inference_steps", type=positive, help="number of fixed steps, instead of the adaptive solver")
    add(
        "--tolerance",
        type=number(0, 1, above_low=True),
        help=f"tolerance of the adaptive solver in nats; {DEFAULT_TOLERANCE} by default",
    )
    add("--num_levels", type=integer(2), default=256, help="number of values that a pixel can have, for dequantization")
    add("--seed", type=integer(0, 2**31 - 1), default=0, help="seed of dequantization and probes")
    add("--device", help="cpu, cuda or mps; by default the accelerator of this machine")
    args = parser.parse_args(argv)
    if args.num_inference_steps is None:
        args.tolerance = DEFAULT_TOLERANCE if args.tolerance is None else args.tolerance
    elif args.tolerance is not None:
        parser.error("--tolerance is for the adaptive solver. Leave it out, or leave out --num_inference_steps")
    return args
