"""The options of train_pfgm.py."""

from __future__ import annotations

import argparse
import math

from ...physics.bounded_noise import LEAST_AUG_DIM
from .option_groups import add_data_options, add_record_options, add_training_options, check_shared_options
from .option_types import number, positive, share
from .script_errors import ScriptParser

# The options of each objective, with their defaults. None: the value follows from the data or the preconditioning.
OBJECTIVE_DEFAULTS: dict[str, dict[str, float | str | None]] = {
    "field": {"charges": "auto", "field_batch_size": 2048, "gamma": 5.0, "preconditioning": "none", "sigma_data": None},
    "perturbation": {
        "charges": "none",
        "field_batch_size": 2048,
        "aug_dim": 1.0,
        "prediction_type": "epsilon",
        "preconditioning": "student_t",
        "sigma_data": None,
        "p_mean": None,
        "p_std": None,
    },
}

EDM_SIGMA_DATA = 0.5  # arXiv 2206.00364, table 1


def parse_args(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options of train_pfgm.py.

    Args:
        description: The description of the script in its help.
        argv: The arguments; by default those of the command line.

    Raises:
        SystemExit: if an option is invalid. The message names it.
    """
    parser = ScriptParser(description)
    add_data_options(parser)
    _add_model_options(parser)
    add_training_options(parser, train_batch_size=16, learning_rate=1e-4, lr_warmup_steps=500)
    add_record_options(parser, num_inference_steps=20)
    args = parser.parse_args(argv)
    check_shared_options(parser, args)
    _complete_objective_options(parser, args)
    return args


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the network and the objective."""
    model = parser.add_argument_group("model and objective").add_argument
    model(
        "--resolution", type=positive, default=64, help="height and width of the resized and cropped images, in pixels"
    )
    model(
        "--model_config_name_or_path",
        help="file, folder or Hub id of the configuration of a UNet2DModel; by default it follows from --resolution",
    )
    model(
        "--objective",
        choices=["field", "perturbation"],
        default="perturbation",
        help="perturbation objective of PFGM++ for any D, or field objective of PFGM with the paper's network",
    )
    model(
        "--charges",
        choices=["auto", "local", "gathered", "dataset", "none"],
        help="images that generate the field of a step: a larger batch of each process (local) or of all processes "
        "(gathered), or all images (dataset); auto decides by the free memory. The default is auto for the field "
        "objective, and none for the perturbation objective, whose target is then the image itself",
    )
    model(
        "--field_batch_size",
        type=positive,
        help="number of images in the larger batch of --charges, per process if local; 2048 by default",
    )
    model("--gamma", type=number(0, 1e6), help="field objective: gamma of the normalized field; 5 by default")
    aug_dim = number(LEAST_AUG_DIM, or_infinity=True)
    model(
        "--aug_dim",
        type=aug_dim,
        help="perturbation objective: augmented dimension D, at least 0.01, or inf for diffusion; 1 (PFGM) by default",
    )
    model(
        "--prediction_type",
        choices=["epsilon", "v_prediction", "sample"],
        help="perturbation objective: what the network predicts; epsilon by default",
    )
    model(
        "--preconditioning",
        choices=["student_t", "edm", "none"],
        help="perturbation objective: scale inputs and outputs by the noise level that is estimated from each image "
        "(student_t, the default), or by sigma as in EDM. With D = inf both are EDM's. Field objective: none, the "
        "default, for the paper's network, or edm to scale its inputs",
    )
    model(
        "--sigma_data",
        type=number(0.01, 100),
        help="standard deviation of the data; by default that of the images, or with EDM's preconditioning 0.5",
    )
    model(
        "--p_mean",
        type=number(-20, 20),
        help="perturbation objective: mean of ln(sigma) in training; by default the logarithm of the data's standard "
        "deviation less 0.3, or with EDM's preconditioning -1.2",
    )
    model(
        "--p_std",
        type=number(0, 10),
        help="perturbation objective: standard deviation of ln(sigma) in training; 1.3 by default, or with EDM's "
        "preconditioning 1.2",
    )
    model("--class_conditional", action="store_true", help="train a network that is conditioned on class labels")
    model(
        "--label_dropout",
        type=share,
        default=0.1,
        help="fraction of images that are trained without their label, for classifier-free guidance",
    )


def _complete_objective_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set the options of the objective that were not passed to their defaults, and check all of them.

    Raises:
        SystemExit: if an option is invalid. The message names it.
    """
    if args.label_column is not None and not args.class_conditional:
        parser.error("--label_column needs --class_conditional")
    defaults = OBJECTIVE_DEFAULTS[args.objective]
    for other, names in OBJECTIVE_DEFAULTS.items():
        for name in names:
            if getattr(args, name) is not None and name not in defaults:
                parser.error(f"--{name} belongs to --objective {other}, but --objective is {args.objective}")
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    allowed = ("none", "edm") if args.objective == "field" else ("student_t", "edm")
    if args.preconditioning not in allowed:
        parser.error(
            f"--preconditioning must be {' or '.join(allowed)} with --objective {args.objective}, but is "
            f"{args.preconditioning}"
        )
    if args.sigma_data is not None and args.preconditioning == "none":
        parser.error("--sigma_data needs a preconditioning: pass --preconditioning edm, or leave it out")
    if args.aug_dim == math.inf:  # both preconditionings are equal, so either name resumes a run of the other
        args.preconditioning = "edm"
    if args.preconditioning == "edm" and args.sigma_data is None:
        args.sigma_data = EDM_SIGMA_DATA
    if args.objective == "field" and args.charges == "none":
        parser.error("--charges none has no field to learn: leave it out, or use --objective perturbation")
