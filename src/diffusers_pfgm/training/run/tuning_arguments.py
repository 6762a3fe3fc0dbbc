"""The options of tune_consistency.py. Options that train_pfgm.py has too have the same names."""

from __future__ import annotations

import argparse

from .option_groups import add_data_options, add_record_options, add_training_options, check_shared_options
from .option_types import number, share
from .script_errors import ScriptParser
from .tuning import NUM_LEVELS
from .tuning_checks import MATCHING

LEARNING_RATE = 3e-4  # of consistency distillation and training
MATCHING_LEARNING_RATE = 3e-5


def parse_tuning_args(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the options of tune_consistency.py. Arguments and errors as in `arguments.parse_args`."""
    parser = ScriptParser(description)
    add_data_options(parser)
    model = parser.add_argument_group("model").add_argument
    model("--model", required=True, help="folder or Hub id of the trained pipeline to start from")
    model(
        "--teacher",
        help="folder or Hub id of the pipeline that --model was tuned from, if --model is tuned already and the method "
        "or guidance needs the model before tuning",
    )
    model(
        "--method",
        choices=["distillation", "training", MATCHING],
        help="consistency distillation, which follows the ODE of the untuned model; consistency training, which needs "
        "no such model and takes half the network calls; or distribution matching, whose images have the distribution "
        "of those of the untuned model, for one to --num_inference_steps calls. By default matching with --teacher; "
        "otherwise distillation, but training with guidance or if the model is tuned already",
    )
    model(
        "--guidance_scale",
        type=number(0, 100),
        default=1.0,
        help="scale of classifier-free guidance that the model learns; 1, the default, means no guidance",
    )
    model(
        "--label_dropout",
        type=share,
        help="fraction of images tuned without their label; by default 0.1 if the model has a null class, otherwise 0",
    )
    add_training_options(parser, train_batch_size=64, learning_rate=None, lr_warmup_steps=50)
    add_record_options(parser, num_inference_steps=2)
    # Options of train_pfgm.py that follow from the model.
    parser.set_defaults(objective="consistency", charges="none", field_batch_size=0, output_dir="consistency-model")
    args = parser.parse_args(argv)
    if args.method is None and args.teacher is not None:
        args.method = MATCHING
    if args.method == MATCHING:
        args.objective = MATCHING
    if args.learning_rate is None:
        args.learning_rate = MATCHING_LEARNING_RATE if args.method == MATCHING else LEARNING_RATE
    args.class_conditional = args.resolution = None  # `tuning.load_pipelines` reads them from the model
    check_shared_options(parser, args)
    if args.num_inference_steps > NUM_LEVELS:
        parser.error(f"--num_inference_steps must be at most {NUM_LEVELS}, but is {args.num_inference_steps}")
    return args
