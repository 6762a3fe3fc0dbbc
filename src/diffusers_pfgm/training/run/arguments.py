"""Command line of train_pfgm.py; where diffusers' train_unconditional.py has an option, it has the same name."""

from __future__ import annotations

import argparse
import importlib.util

from ...physics.bounded_noise import LEAST_AUG_DIM
from .option_types import integer, number, positive, share
from .script_errors import ScriptParser

OBJECTIVE_DEFAULTS: dict[str, dict[str, float | str]] = {
    "field": {"charges": "auto", "field_batch_size": 2048, "gamma": 5.0},
    "perturbation": {"aug_dim": 1.0, "prediction_type": "epsilon", "sigma_data": 0.5},
}

LEAST_POLYNOMIAL_LR = 1e-7  # diffusers' schedule of this name ends there
# Names that diffusers.optimization.get_scheduler knows, but for piecewise_constant, which needs rules of its own
LR_SCHEDULERS = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]


def lr_scheduler(name: str) -> str:
    """The type of `--lr_scheduler`."""
    if name not in LR_SCHEDULERS:
        why = " (its rules for the steps cannot be given here)" if name == "piecewise_constant" else ""
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(LR_SCHEDULERS)}, but is {name!r}{why}")
    return name


def parse_args(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    data = parser.add_argument_group("data").add_argument
    data("--dataset_name", help="Hub id, parquet file, folder of `save_to_disk`, or any folder that datasets reads")
    data("--dataset_config_name", help="configuration of a Hub data set")
    data("--train_data_dir", help="folder of image files, in place of --dataset_name")
    data("--streaming", action="store_true", help="read as it trains, without a copy on disk; needs --max_train_steps")
    data("--cache_dir", help="where datasets keeps its files")
    data("--image_column", help="column of images; the first by default")
    data("--image_mode", choices=["L", "RGB", "RGBA"], help="by default L for gray data, else RGB")
    data("--resolution", type=positive, default=64, help="images are resized and cropped to this many pixels")
    data("--center_crop", action="store_true", help="crop the middle; without it a random part")
    data("--random_flip", action="store_true", help="mirror images at random")
    data("--label_column", help="column of class labels; the first by default, or an image folder's subfolders")
    data("--broken_images", choices=["stop", "skip"], default="stop", help="stop at one, or leave all of them out")
    data("--validation_split", type=share, default=0.0, help="share of the images that is held out, to measure on")
    data(
        "--dataloader_num_workers", type=integer(0), default=0, help="processes that load data; 0 caches decoded images"
    )

    model = parser.add_argument_group("model and objective").add_argument
    model("--model_config_name_or_path", help="configuration of a UNet2DModel; chosen by the resolution by default")
    model("--objective", choices=["field", "perturbation"], default="field", help="PFGM's, or PFGM++'s for any D")
    model(
        "--charges",
        choices=["auto", "local", "gathered", "dataset"],
        help="field: whose field is learned, that of a "
        "larger batch, local or over all processes, or of every image; auto, by memory",
    )
    model("--field_batch_size", type=positive, help="field: images in the larger batch, 2048 (per process if local)")
    model("--gamma", type=number(0, 1e6), help="field: gamma of the normalized field, 5")
    aug_dim = number(LEAST_AUG_DIM, or_infinity=True)
    model("--aug_dim", type=aug_dim, help="perturbation: D, 1; inf for diffusion")
    model("--prediction_type", choices=["epsilon", "v_prediction", "sample"], help="perturbation: epsilon")
    model("--sigma_data", type=number(0.01, 100), help="perturbation: standard deviation of the data, 0.5")
    model("--class_conditional", action="store_true", help="learn each class of --label_column, by its label")
    model("--label_dropout", type=share, default=0.1, help="share of images trained without label, for guidance")

    train = parser.add_argument_group("training").add_argument
    train("--output_dir", default="pfgm-model", help="where the pipeline, checkpoints, samples and logs are written")
    train("--overwrite_output_dir", action="store_true", help="write into a folder that is not empty")
    train("--seed", type=integer(0, 2**31 - 1), help="makes a run repeatable")
    train("--train_batch_size", type=positive, default=16, help="perturbed images, per process and accumulated part")
    train("--num_epochs", type=positive, default=100, help="an epoch perturbs as many images as the data set has")
    train("--max_train_steps", type=positive, help="in place of --num_epochs")
    train("--gradient_accumulation_steps", type=positive, default=1)
    train("--gradient_checkpointing", action="store_true", help="less memory for more time")
    train("--mixed_precision", choices=["no", "fp16", "bf16"], help="by default as accelerate is configured")
    train("--learning_rate", type=number(0, 1e20, above_low=True), default=1e-4)
    train("--lr_scheduler", type=lr_scheduler, default="cosine", help=", ".join(LR_SCHEDULERS))
    train("--lr_warmup_steps", type=integer(0), default=500)
    train("--adam_beta1", type=share, default=0.95)
    train("--adam_beta2", type=share, default=0.999)
    train("--adam_weight_decay", type=number(0, 1e6), default=1e-6)
    train("--adam_epsilon", type=number(1e-20, 1), default=1e-8)
    train("--max_grad_norm", type=number(1e-6, 1e9), default=1.0)
    train("--use_ema", action="store_true", help="accepted as in diffusers; the average is always kept")
    train("--ema_max_decay", type=number(0, 1), default=0.9999, help="0 keeps no average of the weights")
    train("--ema_inv_gamma", type=number(0, above_low=True), default=1.0)
    train("--ema_power", type=number(0), default=0.75)

    record = parser.add_argument_group("records").add_argument
    record("--logger", choices=["tensorboard", "wandb", "none"], default="tensorboard")
    record("--logging_dir", default="logs", help="inside --output_dir")
    record("--logging_steps", type=positive, default=10, help="steps between records of the loss and its bands")
    record("--save_images_epochs", type=positive, default=10, help="epochs between sample grids")
    record("--eval_batch_size", type=positive, default=16, help="images in a sample grid")
    record("--num_inference_steps", type=positive, default=20, help="network calls for a sample grid")
    record("--save_model_epochs", type=positive, default=10, help="epochs between saved pipelines")
    record("--validation_epochs", type=positive, default=10, help="epochs between distances to --validation_split")
    record("--keep_best", action="store_true", help="the model of the smallest distance stays in `best`")
    record("--checkpointing_steps", type=positive, default=500, help="steps between checkpoints to resume from")
    record("--checkpoints_total_limit", type=positive, help="older checkpoints are removed")
    record("--resume_from_checkpoint", help="a checkpoint folder, or 'latest' in --output_dir")

    hub = parser.add_argument_group("the Hub").add_argument
    hub("--push_to_hub", action="store_true", help="publish each saved pipeline; log in by `hf auth login` or HF_TOKEN")
    hub("--hub_model_id", help="user/name of the model; the folder's name under your user name by default")
    hub("--hub_private_repo", action="store_true", help="make a private one")
    hub("--license", help="of the model, for its card, such as cc-by-4.0")
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if isinstance(value, str) and not value.strip():
            parser.error(f"--{name} is empty. Leave it out, or name what it shall be")
    if args.label_column is not None and not args.class_conditional:
        parser.error("--label_column needs --class_conditional")
    if args.logger != "none" and importlib.util.find_spec(args.logger) is None:
        parser.error(f"--logger {args.logger} needs that package: `pip install {args.logger}`, or pass --logger none")
    if args.lr_scheduler == "polynomial" and args.learning_rate <= LEAST_POLYNOMIAL_LR:
        parser.error(
            f"--learning_rate must be above {LEAST_POLYNOMIAL_LR:g}, where --lr_scheduler polynomial ends, but is "
            f"{args.learning_rate:g}"
        )
    if args.keep_best and not args.validation_split:
        parser.error("--keep_best needs --validation_split, such as 0.1")
    if args.streaming and args.max_train_steps is None:
        parser.error("--streaming needs --max_train_steps, for a stream tells no length")
    if args.streaming and args.validation_split:
        parser.error("--validation_split cannot be taken from a stream. Leave out --streaming")
    for objective, defaults in OBJECTIVE_DEFAULTS.items():
        for name, default in defaults.items():
            if getattr(args, name) is None:
                setattr(args, name, default)
            elif args.objective != objective:
                parser.error(f"--{name} belongs to --objective {objective}, but --objective is {args.objective}")
    return args
