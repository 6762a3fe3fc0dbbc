"""The options of train_pfgm.py. Options that diffusers' train_unconditional.py has too have the same names."""

from __future__ import annotations

import argparse
import importlib.util
import math

from ...physics.bounded_noise import LEAST_AUG_DIM
from .option_types import integer, number, positive, share
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
POLYNOMIAL_LR_END = 1e-7  # the learning rate at the end of diffusers' polynomial schedule
# The schedules of diffusers.optimization.get_scheduler, except piecewise_constant, which needs further arguments
LR_SCHEDULERS = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]


def lr_scheduler(name: str) -> str:
    """The argparse type of `--lr_scheduler`."""
    if name not in LR_SCHEDULERS:
        reason = " (there is no option for its step rules)" if name == "piecewise_constant" else ""
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(LR_SCHEDULERS)}, but is {name!r}{reason}")
    return name


def parse_args(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options of train_pfgm.py.

    Args:
        description: The description of the script in its help.
        argv: The arguments; by default those of the command line.

    Raises:
        SystemExit: if an option is invalid. The message names it.
    """
    parser = ScriptParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    data = parser.add_argument_group("data").add_argument
    data("--dataset_name", help="Hub id, parquet file, folder of `save_to_disk`, or any folder that datasets reads")
    data("--dataset_config_name", help="configuration of a Hub data set")
    data("--train_data_dir", help="folder of image files, instead of --dataset_name")
    data(
        "--streaming",
        action="store_true",
        help="read the data set during training, without a copy on disk; needs --max_train_steps",
    )
    data("--cache_dir", help="where datasets keeps its files")
    data("--image_column", help="column of images; the first by default")
    data("--image_mode", choices=["L", "RGB", "RGBA"], help="color mode; by default L for gray data, otherwise RGB")
    data(
        "--resolution", type=positive, default=64, help="height and width of the resized and cropped images, in pixels"
    )
    data("--center_crop", action="store_true", help="crop the middle of the images instead of a random part")
    data("--random_flip", action="store_true", help="mirror images at random")
    data("--label_column", help="column of class labels; the first by default, or an image folder's subfolders")
    data(
        "--broken_images",
        choices=["stop", "skip"],
        default="stop",
        help="stop at an image that cannot be read, or leave out all such images",
    )
    data("--validation_split", type=share, default=0.0, help="fraction of the images held out for validation")
    data(
        "--dataloader_num_workers",
        type=integer(0),
        default=0,
        help="number of processes that load data; with 0 decoded images are cached",
    )

    model = parser.add_argument_group("model and objective").add_argument
    model("--model_config_name_or_path", help="configuration of a UNet2DModel; by default it follows from --resolution")
    model(
        "--objective",
        choices=["field", "perturbation"],
        default="perturbation",
        help="the perturbation objective of PFGM++ for any D, or the field objective of PFGM with the paper's network",
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
        "--aug_dim", type=aug_dim, help="perturbation objective: augmented dimension D, inf for diffusion; 1 by default"
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
        help="fraction of images trained without their label, for classifier-free guidance",
    )

    train = parser.add_argument_group("training").add_argument
    train("--output_dir", default="pfgm-model", help="where the pipeline, checkpoints, samples and logs are written")
    train(
        "--overwrite_output_dir",
        action="store_true",
        help="start a new run in a folder that is not empty; an earlier run's files are moved to set-aside-<n>",
    )
    train("--seed", type=integer(0, 2**31 - 1), help="seed that makes a run reproducible; random by default")
    train("--train_batch_size", type=positive, default=16, help="perturbed images per process and accumulated part")
    train("--num_epochs", type=positive, default=100, help="an epoch perturbs as many images as the data set has")
    train("--max_train_steps", type=positive, help="number of optimizer steps, instead of --num_epochs")
    train("--gradient_accumulation_steps", type=positive, default=1)
    train("--gradient_checkpointing", action="store_true", help="save memory at the cost of time")
    train("--mixed_precision", choices=["no", "fp16", "bf16"], help="by default as configured in accelerate")
    train("--learning_rate", type=number(0, 1e20, above_low=True), default=1e-4)
    train("--lr_scheduler", type=lr_scheduler, default="cosine", help=", ".join(LR_SCHEDULERS))
    train("--lr_warmup_steps", type=integer(0), default=500)
    train("--adam_beta1", type=share, default=0.95)
    train("--adam_beta2", type=share, default=0.999)
    train("--adam_weight_decay", type=number(0, 1e6), default=1e-6)
    train("--adam_epsilon", type=number(1e-20, 1), default=1e-8)
    train("--max_grad_norm", type=number(1e-6, 1e9), default=1.0)
    train(
        "--use_ema", action="store_true", help="accepted as in diffusers, without effect: EMA weights are always kept"
    )
    train(
        "--ema_max_decay",
        type=number(0, 1),
        default=0.9999,
        help="largest decay of the EMA weights; 0 means no average",
    )
    train("--ema_inv_gamma", type=number(0, above_low=True), default=1.0)
    train("--ema_power", type=number(0), default=0.75)

    record = parser.add_argument_group("records").add_argument
    record("--logger", choices=["tensorboard", "wandb", "none"], default="tensorboard")
    record("--logging_dir", default="logs", help="folder of the tracker's files, inside --output_dir")
    record("--logging_steps", type=positive, default=10, help="steps between records of the loss")
    record("--save_images_epochs", type=positive, default=10, help="epochs between sample grids")
    record("--eval_batch_size", type=positive, default=16, help="images in a sample grid, and samples drawn at a time")
    record("--num_inference_steps", type=positive, default=20, help="network calls per sample during training")
    record("--save_model_epochs", type=positive, default=10, help="epochs between saved pipelines")
    record("--validation_epochs", type=positive, default=10, help="epochs between validations on the held-out images")
    record("--keep_best", action="store_true", help="keep the model with the smallest validation distance in `best`")
    record("--checkpointing_steps", type=positive, default=500, help="steps between checkpoints")
    record("--checkpoints_total_limit", type=positive, help="number of checkpoints to keep; all by default")
    record("--resume_from_checkpoint", help="a checkpoint folder, or 'latest' for the newest one in --output_dir")

    hub = parser.add_argument_group("the Hub").add_argument
    hub("--push_to_hub", action="store_true", help="publish each saved pipeline; log in by `hf auth login` or HF_TOKEN")
    hub("--hub_model_id", help="user/name of the repository; by default your user name and the output folder's name")
    hub("--hub_private_repo", action="store_true", help="make the repository private")
    hub("--license", help="license of the model for its card, such as cc-by-4.0")
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if isinstance(value, str) and not value.strip():
            parser.error(f"--{name} is empty. Leave it out, or pass a value")
    if args.label_column is not None and not args.class_conditional:
        parser.error("--label_column needs --class_conditional")
    if args.logger != "none" and importlib.util.find_spec(args.logger) is None:
        parser.error(
            f"--logger {args.logger} needs a package that is not installed. Install it by `pip install {args.logger}`, "
            "or pass --logger none"
        )
    if args.lr_scheduler == "polynomial" and args.learning_rate <= POLYNOMIAL_LR_END:
        parser.error(
            f"--learning_rate must be above {POLYNOMIAL_LR_END:g}, the end of --lr_scheduler polynomial, but is "
            f"{args.learning_rate:g}"
        )
    if args.keep_best and not args.validation_split:
        parser.error("--keep_best needs --validation_split, such as 0.1")
    if args.streaming and args.max_train_steps is None:
        parser.error("--streaming needs --max_train_steps, since the length of a stream is unknown")
    if args.streaming and args.validation_split:
        parser.error("--validation_split needs the whole data set, not a stream. Leave out --streaming")
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
    if args.aug_dim == math.inf:  # the same, so that either name resumes a run of the other
        args.preconditioning = "edm"
    if args.preconditioning == "edm" and args.sigma_data is None:
        args.sigma_data = EDM_SIGMA_DATA
    if args.objective == "field" and args.charges == "none":
        parser.error("--charges none has no field to learn: leave it out, or use --objective perturbation")
    return args
