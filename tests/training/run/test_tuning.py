"""A run of tune_consistency.py: the noise of its objective."""

from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler, pretrained_model
from diffusers_pfgm.training.run.tuning import load_base, make_tuning_task
from diffusers_pfgm.training.run.tuning_arguments import parse_tuning_args


@pytest.mark.parametrize(
    ("method", "prior", "on_shell"),
    [("distillation", None, True), ("distillation", "plane", False), ("training", None, False)],
)
def test_the_noise_is_on_the_shell_where_samples_start_there(method: str, prior: str | None, on_shell: bool) -> None:
    args = parse_tuning_args(None, [f"--model={pretrained_model('mnist')}", f"--method={method}"])
    loaded = load_base(args)
    config, id2label = loaded.scheduler.config, loaded.config.id2label
    base = PFGMPipeline(loaded.unet, PoissonFlowScheduler.from_config(config, prior=prior), id2label)
    statistics = SimpleNamespace(mean=config.data_mean, std=config.sigma_data)
    images = SimpleNamespace(channels=1, statistics=lambda: statistics)
    task = make_tuning_task(base, args, SimpleNamespace(images=images, id2label=id2label), Accelerator(cpu=True))
    assert task.objective.on_shell == on_shell
    assert task.scheduler.prior_of(28 * 28) == (prior or "shell")
