"""Numeric options have a range, and errors name it."""

import argparse
import math
from collections.abc import Callable

import pytest
from diffusers.optimization import SchedulerType

from diffusers_pfgm.training.run import conversion, evaluation_arguments
from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.likelihood_arguments import parse_args as parse_evaluation_args
from diffusers_pfgm.training.run.option_groups import LR_SCHEDULERS
from diffusers_pfgm.training.run.option_types import integer, number, positive, share
from diffusers_pfgm.training.run.script_errors import ScriptParser
from diffusers_pfgm.training.run.tuning_arguments import parse_tuning_args

PERTURBATION = "--objective=perturbation"


def error_message(parse: Callable[[str], float], text: str) -> str:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse(text)
    return str(caught.value)


def test_values_out_of_range_are_errors_that_name_the_range() -> None:
    assert positive("3") == 3 and integer(0)("0") == 0 and integer(-2, 2)("-2") == -2
    assert error_message(positive, "0") == "must be a whole number >= 1, but is 0"
    assert error_message(integer(0, 9), "10") == "must be a whole number from 0 to 9, but is 10"
    assert error_message(positive, "1.5") == "must be a whole number >= 1, but is '1.5'"
    assert share("0") == 0.0 and share("0.5") == 0.5
    assert error_message(share, "1") == "must be a finite number >= 0 and < 1, but is 1"
    assert number(0.01, or_infinity=True)("inf") == math.inf
    assert (
        error_message(number(0.01, or_infinity=True), "0.001")
        == "must be a finite number >= 0.01, or inf, but is 0.001"
    )
    assert error_message(number(0, above_low=True), "0") == "must be a finite number > 0, but is 0"
    assert number()("-1e300") == -1e300


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "x", ""])
def test_values_that_are_not_finite_numbers_are_errors(text: str) -> None:
    assert f"a finite number >= 0, but is {text}" in error_message(number(0), text)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("--learning_rate", ["0", "-1", "1e38", "nan", "inf"]),
        ("--lr_warmup_steps", ["-1", "1.5"]),
        ("--adam_beta1", ["-0.1", "1", "nan"]),
        ("--adam_beta2", ["-0.1", "1", "inf"]),
        ("--adam_weight_decay", ["-1e-6", "nan", "inf"]),
        ("--adam_epsilon", ["0", "1e-50", "-1e-8", "nan", "inf"]),
        ("--max_grad_norm", ["0", "-1", "nan", "inf"]),
        ("--ema_max_decay", ["-0.1", "1.1", "nan"]),
        ("--ema_inv_gamma", ["0", "-1", "nan", "inf"]),
        ("--ema_power", ["-1", "nan", "inf"]),
        ("--gamma", ["-1", "nan", "inf"]),
        ("--aug_dim", ["0", "-1", "0.001", "nan", "-inf"]),
        ("--sigma_data", ["0", "-0.5", "1e-30", "1e30", "nan", "inf"]),
        ("--p_mean", ["-21", "21", "nan"]),
        ("--p_std", ["-0.1", "11", "inf"]),
        ("--validation_split", ["-0.1", "1", "nan"]),
        ("--label_dropout", ["-0.1", "1", "nan"]),
        ("--seed", ["-1", str(2**63), "0.5"]),
        ("--dataloader_num_workers", ["-1"]),
        ("--num_epochs", ["0"]),
        ("--resolution", ["0", "-8"]),
        ("--lr_scheduler", ["piecewise_constant", "magic"]),
    ],
)
def test_numeric_options_have_a_range(name: str, values: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    objective = [PERTURBATION] if name in ("--aug_dim", "--sigma_data", "--p_mean", "--p_std") else []
    for value in values:
        with pytest.raises(SystemExit):
            parse_args(None, [*objective, f"{name}={value}"])
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {name}: must be " in last and value in last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--streaming", "--dataloader_num_workers=2"], "Leave out --dataloader_num_workers"),
        (["--hub_model_id=me/model"], "publish nothing without --push_to_hub"),
        (["--hub_private_repo"], "publish nothing without --push_to_hub"),
        (["--dataset_config_name=small"], "--dataset_config_name is for a data set of the Hub"),
    ],
)
def test_options_without_effect_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(None, ["--train_data_dir=photos", "--max_train_steps=1", *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("parse", [parse_args, parse_tuning_args])
@pytest.mark.parametrize("option", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"]])
def test_a_token_is_refused_and_not_printed(
    parse: Callable[..., object], option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(None, ["--push_to_hub", *option])
    printed = capsys.readouterr()
    assert "Log in by `hf auth login`, or set HF_TOKEN" in printed.err.splitlines()[-1]
    assert "hf_secret" not in printed.out + printed.err


def test_usual_values_are_accepted() -> None:
    options = ["--learning_rate=30", "--lr_warmup_steps=0", "--adam_weight_decay=0", "--ema_max_decay=0"]
    args = parse_args(None, [PERTURBATION, "--aug_dim=inf", "--sigma_data=0.1", "--adam_beta1=0", *options])
    assert args.aug_dim == math.inf and args.learning_rate == 30 and args.lr_warmup_steps == 0
    assert parse_args(None, [PERTURBATION, "--aug_dim=0.01"]).aug_dim == 0.01


def test_every_schedule_of_diffusers_is_accepted_or_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert {*LR_SCHEDULERS, "piecewise_constant"} == {kind.value for kind in SchedulerType}
    for name in LR_SCHEDULERS:
        assert parse_args(None, [f"--lr_scheduler={name}"]).lr_scheduler == name
    with pytest.raises(SystemExit):
        parse_args(None, ["--lr_scheduler=piecewise_constant"])
    assert "there is no option for its step rules" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        parse_args(None, ["--lr_scheduler=polynomial", "--learning_rate=1e-8"])
    assert (
        "--learning_rate must be above 1e-07, the end of --lr_scheduler polynomial, but is 1e-08"
        in capsys.readouterr().err
    )


def test_a_logger_that_is_not_installed_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for logger in ("wandb", "tensorboard"):
        with pytest.raises(SystemExit):
            parse_args(None, [f"--logger={logger}"])
        assert f"`pip install {logger}`" in capsys.readouterr().err.splitlines()[-1]
    assert parse_args(None, ["--logger=none"]).logger == "none"


@pytest.mark.parametrize(
    "script", [parse_args, parse_tuning_args, evaluation_arguments.parse_args, parse_evaluation_args, conversion.main]
)
def test_every_option_has_a_help_text_with_its_default(
    script: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers: list[ScriptParser] = []

    def keep_parser(parser: ScriptParser, argv: list[str] | None) -> None:
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(ScriptParser, "parse_args", keep_parser)
    monkeypatch.setenv("COLUMNS", "1000")  # one line for each option
    with pytest.raises(SystemExit):
        script(None)
    (parser,) = parsers
    text = " ".join(parser.format_help().split())
    assert "(default: None)" not in text and "(default: False)" not in text
    for action in parser._actions:
        (option,) = action.option_strings[-1:]
        assert action.help, option
        if "by default" in action.help or "the default" in action.help:
            continue
        has_default = not any(action.default is value for value in (None, False, argparse.SUPPRESS))
        assert (f"{action.help} (default: {action.default})" in text) == has_default, option


@pytest.mark.parametrize(
    "option", ["--tolerance=nan", "--tolerance=0", "--tolerance=inf", "--num_levels=1", "--seed=-1"]
)
def test_options_of_the_likelihood_evaluation_have_ranges_too(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_evaluation_args(None, ["--model=m", option])
    assert "must be a" in capsys.readouterr().err.splitlines()[-1]
