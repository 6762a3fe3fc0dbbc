"""The options and the work of convert_checkpoint.py: a published checkpoint becomes a pipeline."""

from __future__ import annotations

import math
from pathlib import Path

from ...hub.convert import convert_checkpoint
from ...hub.convert.presets import PRESETS
from ...pipelines import PFGMPipeline
from ...schedulers import PoissonFlowScheduler
from .option_types import number
from .script_errors import ScriptParser


def main(description: str | None, argv: list[str] | None = None) -> None:
    """Convert a checkpoint and save it as a pipeline.

    Args:
        description: The description of the script in its help.
        argv: The arguments; by default those of the command line.

    Raises:
        ValueError: if the checkpoint or its configuration cannot be converted, `--aug_dim` is not the D of the network,
            or the output folder is not empty or is a file.
    """
    parser = ScriptParser(description)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="a .pth of PFGM or score_sde, a .pkl of PFGM++ or EDM, or a state dict of any of them as .safetensors",
    )
    add("--config", required=True, help=f"configuration of the network: a JSON file, or one of {', '.join(PRESETS)}")
    add("--output_dir", type=Path, required=True, help="new or empty folder in which the pipeline is saved")
    add("--raw", action="store_true", help="convert the weights of the last step of a .pth instead of its EMA weights")
    add(
        "--aug_dim",
        type=number(0, or_infinity=True),
        help="augmented dimension D of a network of PFGM++; inf by default, as for EDM. PFGM has D = 1, score_sde inf",
    )
    args = parser.parse_args(argv)
    if args.output_dir.is_file():
        raise ValueError(f"`--output_dir` {args.output_dir} is a file. Name a new folder.")
    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        raise ValueError(f"`--output_dir` {args.output_dir} is not empty. Choose a new folder.")
    conversion = convert_checkpoint(args.checkpoint, args.config, args.raw)
    options = conversion.scheduler_options
    if "sigma_data" in options:
        options |= {"aug_dim": None if args.aug_dim in (None, math.inf) else args.aug_dim}
    elif args.aug_dim not in (None, options.get("aug_dim", 1) or math.inf):
        trained = "PFGM has D = 1" if "aug_dim" not in options else "a network of the VE or VP SDE has D = inf"
        raise ValueError(f"`--aug_dim` is {args.aug_dim:g}, but {trained}. Leave it out.")
    count = conversion.network.config.get("num_class_embeds")
    # Checkpoints have numbers of classes, but no names.
    id2label = None if count is None else {number: str(number) for number in range(count)}
    pipe = PFGMPipeline(conversion.network, PoissonFlowScheduler(**options), id2label)
    pipe.save_pretrained(args.output_dir)
    print(f"{conversion.network.num_parameters():,} parameters, saved to {args.output_dir}")
