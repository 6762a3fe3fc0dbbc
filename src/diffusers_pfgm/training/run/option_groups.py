"""Options that the training scripts have in common. Those of diffusers' train_unconditional.py have the same names."""

from __future__ import annotations

import argparse
import importlib.util
from typing import NoReturn

from .option_types import integer, number, positive, share

POLYNOMIAL_LR_END = 1e-7  # the learning rate at the end of diffusers' polynomial schedule
# The schedules of diffusers.optimization.get_scheduler, except piecewise_constant, which needs further arguments
LR_SCHEDULERS = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]


def lr_scheduler(name: str) -> str:
    """The argparse type of `--lr_scheduler`."""
    if name not in LR_SCHEDULERS:
        reason = " (there is no option for its step rules)" if name == "piecewise_constant" else ""
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(LR_SCHEDULERS)}, but is {name!r}{reason}")
    return name


def hub_token(token: str) -> NoReturn:
    """The argparse type of diffusers' `--hub_token`, which is refused with an error that does not show the token."""
    raise argparse.ArgumentTypeError(
        "a token on a command line ends up in logs, so it is not accepted. Log in by `hf auth login`, or set HF_TOKEN"
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select and read the images."""
    data = parser.add_argument_group("data").add_argument
    data("--dataset_name", help="Hub id, parquet file, folder of `save_to_disk`, or any folder that datasets reads")
    data("--dataset_config_name", help="configuration of a Hub data set")
    data("--train_data_dir", help="folder of image files, instead of --dataset_name")
    data(
        "--streaming",
        action="store_true",
        help="read the data set during training, without a copy on disk; needs --max_train_steps. The next image is "
        "drawn from 1,000, and the first 1,000 give the statistics, so the images should not be sorted by class; "
        "folders without zip archives are read in a random order. An epoch is --checkpointing_steps steps",
    )
    data("--cache_dir", help="folder in which the package datasets keeps its files; by default as configured there")
    data("--image_column", help="column of images; the first by default")
    data("--image_mode", choices=["L", "RGB", "RGBA"], help="colour mode; by default L for gray data, otherwise RGB")
    data("--center_crop", action="store_true", help="crop the middle of the images instead of a random part")
    data("--random_flip", action="store_true", help="mirror each image with probability 1/2 in each epoch")
    data("--label_column", help="column of class labels; the first by default, or an image folder's subfolders")
    data(
        "--broken_images",
        choices=["stop", "skip"],
        default="stop",
        help="whether to stop at an image that cannot be read, or to skip (leave out) all such images",
    )
    data(
        "--validation_split",
        type=share,
        default=0.0,
        help="fraction of the images that is held out; at most 1,000 of these are compared with samples",
    )
    data(
        "--dataloader_num_workers",
        type=integer(0),
        default=0,
        help="number of processes that load data; with 0 decoded images are cached",
    )


def add_training_options(
    parser: argparse.ArgumentParser,
    train_batch_size: int,
    learning_rate: float | None,
    lr_warmup_steps: int,
) -> None:
    """Add the options of the optimization.

    Args:
        parser: The parser of the script.
        train_batch_size: The default of `--train_batch_size`.
        learning_rate: The default of `--learning_rate`; None if the script sets it afterwards.
        lr_warmup_steps: The default of `--lr_warmup_steps`.
    """
    train = parser.add_argument_group("training").add_argument
    train("--output_dir", default="pfgm-model", help="folder of the pipeline, checkpoints, samples and logs")
    train(
        "--overwrite_output_dir",
        action="store_true",
        help="start a new run in a folder that is not empty; an earlier run's files are moved to set-aside-<n>",
    )
    train("--seed", type=integer(0, 2**31 - 1), help="seed that makes a run reproducible; random by default")
    train(
        "--train_batch_size",
        type=positive,
        default=train_batch_size,
        help="number of images of one process in one micro-batch, see --gradient_accumulation_steps",
    )
    train(
        "--num_epochs",
        type=positive,
        default=100,
        help="number of epochs; an epoch has as many training images as the data set, rounded up to whole steps",
    )
    train("--max_train_steps", type=positive, help="number of optimizer steps, instead of --num_epochs")
    train(
        "--gradient_accumulation_steps",
        type=positive,
        default=1,
        help="number of micro-batches of an optimizer step on each process, whose gradients are accumulated",
    )
    train(
        "--gradient_checkpointing",
        action="store_true",
        help="recompute activations to save memory, at the cost of time",
    )
    train(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="precision of the network's computations; by default as configured in accelerate",
    )
    train(
        "--learning_rate",
        type=number(0, 1e20, above_low=True),
        default=learning_rate,
        help="learning rate of AdamW after the warm-up",
    )
    train(
        "--lr_scheduler",
        type=lr_scheduler,
        default="cosine",
        help=f"schedule of the learning rate, one of {', '.join(LR_SCHEDULERS)}",
    )
    train(
        "--lr_warmup_steps",
        type=integer(0),
        default=lr_warmup_steps,
        help="number of steps in which the learning rate increases from 0; without effect for constant",
    )
    train("--adam_beta1", type=share, default=0.95, help="decay of AdamW's mean of the gradients")
    train("--adam_beta2", type=share, default=0.999, help="decay of AdamW's mean of the squared gradients")
    train("--adam_weight_decay", type=number(0, 1e6), default=1e-6, help="weight decay of AdamW")
    train(
        "--adam_epsilon",
        type=number(1e-20, 1),
        default=1e-8,
        help="number that AdamW adds to the root of the mean square gradient in its denominator",
    )
    train(
        "--max_grad_norm",
        type=number(1e-6, 1e9),
        default=1.0,
        help="norm to which the gradient of all weights is clipped",
    )
    train(
        "--use_ema", action="store_true", help="accepted as in diffusers, without effect: EMA weights are always kept"
    )
    train(
        "--ema_max_decay",
        type=number(0, 1),
        default=0.9999,
        help="largest decay of the EMA weights; with 0 they equal the weights of the last step",
    )
    train(
        "--ema_inv_gamma",
        type=number(0, above_low=True),
        default=1.0,
        help="g in the decay 1 - (1 + step / g)^-p of the EMA weights, which increases up to --ema_max_decay",
    )
    train("--ema_power", type=number(0), default=0.75, help="p in the decay of the EMA weights, see --ema_inv_gamma")


def add_record_options(parser: argparse.ArgumentParser, num_inference_steps: int) -> None:
    """Add the options of records, checkpoints and the Hub.

    Args:
        parser: The parser of the script.
        num_inference_steps: The default of `--num_inference_steps`.
    """
    record = parser.add_argument_group("records").add_argument
    record(
        "--logger",
        choices=["tensorboard", "wandb", "none"],
        default="tensorboard",
        help="tracker to which losses and sample grids are written, besides log.jsonl",
    )
    record("--logging_dir", default="logs", help="folder of the tracker's files, inside --output_dir")
    record("--logging_steps", type=positive, default=10, help="number of steps between records of the loss")
    record("--save_images_epochs", type=positive, default=10, help="number of epochs between sample grids")
    record(
        "--eval_batch_size",
        type=positive,
        default=16,
        help="number of images in a sample grid, and of samples drawn at a time",
    )
    record(
        "--num_inference_steps",
        type=positive,
        default=num_inference_steps,
        help="number of network calls of each sample that is drawn during training",
    )
    record("--save_model_epochs", type=positive, default=10, help="number of epochs between saved pipelines")
    record(
        "--validation_epochs", type=positive, default=10, help="number of epochs between validations on held-out images"
    )
    record("--keep_best", action="store_true", help="keep the model with the smallest validation distance in `best`")
    record("--checkpointing_steps", type=positive, default=500, help="number of steps between checkpoints")
    record("--checkpoints_total_limit", type=positive, help="number of checkpoints to keep; all by default")
    record("--resume_from_checkpoint", help="a checkpoint folder, or 'latest' for the newest one in --output_dir")

    hub = parser.add_argument_group("the Hub").add_argument
    hub("--push_to_hub", action="store_true", help="publish each saved pipeline; log in by `hf auth login` or HF_TOKEN")
    hub("--hub_model_id", help="user/name of the repository; by default your user name and the output folder's name")
    hub("--hub_private_repo", action="store_true", help="make the repository private")
    hub("--hub_token", type=hub_token, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    hub("--license", help="license of the model for its card, such as cc-by-4.0")


def check_shared_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the options that the training scripts have in common.

    Raises:
        SystemExit: if an option is invalid. The message names it.
    """
    for name, value in vars(args).items():
        if isinstance(value, str) and not value.strip():
            parser.error(f"--{name} is empty. Leave it out, or pass a value")
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
    if args.streaming and args.dataloader_num_workers:
        parser.error("--streaming reads the images in the main process. Leave out --dataloader_num_workers")
    is_file = str(args.dataset_name).endswith(".parquet") or args.train_data_dir is not None
    if args.dataset_config_name is not None and is_file:
        parser.error("--dataset_config_name is for a data set of the Hub. Leave it out")
    if not args.push_to_hub and (args.hub_model_id is not None or args.hub_private_repo):
        parser.error("--hub_model_id and --hub_private_repo publish nothing without --push_to_hub. Add it")
    if args.streaming and args.validation_split:
        parser.error("--validation_split needs the whole data set, not a stream. Leave out --streaming")
