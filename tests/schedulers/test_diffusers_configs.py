"""Configurations of diffusers keep their values, defaults too, in conversions; a conversion that cannot work raises."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from diffusers_pfgm import PoissonFlowScheduler
from tests.networks import seeded

PREDICTION_TYPES = ("field", "sample", "epsilon", "v_prediction")
SOLVERS = ("multistep", "heun", "euler")


@pytest.mark.parametrize(
    "theirs",
    [
        DDIMScheduler(),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        EulerDiscreteScheduler(timestep_spacing="trailing"),
        DPMSolverMultistepScheduler(use_karras_sigmas=True),
        UniPCMultistepScheduler(trained_betas=[0.1, 0.2, 0.3]),
        EDMEulerScheduler(),
        EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_values_are_kept(theirs: Any) -> None:
    ours = PoissonFlowScheduler.from_config(theirs.config)
    shared = {name for name in theirs.config if name in PoissonFlowScheduler().config} - {"_use_default_values"}
    assert len(shared) > 5
    for name in shared:
        if theirs.config[name] is not None:
            assert ours.config[name] == theirs.config[name], name
    assert ours.config.aug_dim is None


def test_an_old_configuration_without_prediction_type_is_epsilon() -> None:
    config = {"_class_name": "PNDMScheduler", "beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.2}
    config["num_train_timesteps"] = 10
    ours = PoissonFlowScheduler.from_config(config)
    assert ours.config.prediction_type == "epsilon" and ours.config.beta_end == 0.2


@pytest.mark.parametrize(
    ("theirs", "final"),
    [
        (DDIMScheduler(), "zero"),
        (DDIMScheduler(set_alpha_to_one=False), "sigma_min"),
        (PNDMScheduler(), "sigma_min"),
        (EulerDiscreteScheduler(final_sigmas_type="sigma_min"), "sigma_min"),
        (EulerDiscreteScheduler(interpolation_type="log_linear"), "sigma_min"),
        (EulerDiscreteScheduler(interpolation_type="log_linear", use_karras_sigmas=True), "zero"),
    ],
)
def test_the_end_of_the_run_is_kept(theirs: Any, final: str) -> None:
    assert PoissonFlowScheduler.from_config(theirs.config).config.final_sigmas_type == final


def test_options_replace_the_configuration() -> None:
    ours = PoissonFlowScheduler.from_config(DDIMScheduler().config, prediction_type="sample", solver="euler")
    assert ours.config.prediction_type == "sample" and ours.config.solver == "euler"
    ours, unused = PoissonFlowScheduler.from_config(DDIMScheduler().config, return_unused_kwargs=True, other=3)
    assert unused["other"] == 3 and ours.config.beta_schedule == "linear"


@pytest.mark.parametrize("aug_dim", [1.0, 64.0])
def test_a_finite_aug_dim_has_one_warning_and_the_same_steps(aug_dim: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        same = PoissonFlowScheduler.from_config(EDMEulerScheduler().config)
        assert not caplog.records
        ours = PoissonFlowScheduler.from_config(EDMEulerScheduler().config, aug_dim=aug_dim)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "trained with Gaussian noise" in message and "Pass `aug_dim=None`" in message and str(aug_dim) in message
    x, output = (torch.randn(2, 1, 4, 4, generator=seeded(i)) for i in (0, 1))
    ends = []
    for scheduler in (ours, same):
        scheduler.set_timesteps(4)
        scheduler.scale_model_input(x, scheduler.timesteps[0])
        ends.append(scheduler.step(output, scheduler.timesteps[0], x).prev_sample)
    assert torch.equal(*ends) and ours.kernel.aug_dim == aug_dim


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(), "a flow-matching scheduler.* Use FlowMatchEulerDiscreteScheduler"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "a flow-matching scheduler"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction"), "a flow-matching scheduler"),
        (LCMScheduler(), "a consistency scheduler"),
        (TCDScheduler(), "a consistency scheduler"),
        (CMStochasticIterativeScheduler(), "a consistency scheduler.* Use the scheduler that it came with"),
        (
            EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
            "timestep_type 'continuous'.* Use EDMEulerScheduler",
        ),
        (SCMScheduler(), "a consistency scheduler"),
        (CogVideoXDDIMScheduler(), "one of CogVideoX"),
        (EDMEulerScheduler(sigma_data=None), "without a beta schedule or EDM's `sigma_data`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedulers_of_other_networks_are_refused(theirs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`config` belongs to .*{message}"):
        PoissonFlowScheduler.from_config(theirs.config)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler.from_pretrained(tmp_path)


def test_the_cosine_dpm_solver_is_not_read_as_edm() -> None:
    config = {"sigma_data": 1.0, "prediction_type": "v_prediction"}
    named = {"_class_name": "CosineDPMSolverMultistepScheduler"}
    for marks in (named, {"sigma_schedule": "exponential", "solver_order": 2}):
        with pytest.raises(ValueError, match="the input of its network is unknown"):
            PoissonFlowScheduler.from_config(config | marks)


def test_a_stochastic_solver_needs_infinite_aug_dim() -> None:
    config = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++").config
    assert PoissonFlowScheduler.from_config(config).config.aug_dim is None
    with pytest.raises(ValueError, match=r"'sde-dpmsolver\+\+' adds Gaussian noise .* `aug_dim` = 1.0"):
        PoissonFlowScheduler.from_config(config, aug_dim=1.0)
    with pytest.raises(ValueError, match=r"`aug_dim` = 3\.0"):
        PoissonFlowScheduler.from_config(PoissonFlowScheduler(3.0).config, algorithm_type="sde-dpmsolver++")


@pytest.mark.parametrize("option", ["eta", "s_churn"])
def test_options_that_add_noise_are_refused(option: str) -> None:
    scheduler, x = PoissonFlowScheduler(prediction_type="sample"), torch.ones(1, 1, 2, 2)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=f"`{option}` = 0.5 asks for noise .* this solver follows the ODE"):
        scheduler.step(x, scheduler.timesteps[0], x, **{option: 0.5})


# What diffusers' own common tests check for a scheduler's configuration


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("options", [{}, {"beta_schedule": "linear", "timestep_spacing": "trailing", "aug_dim": None}])
def test_configurations_survive_a_round_trip(
    prediction_type: str, solver: str, options: dict[str, Any], tmp_path: Path
) -> None:
    ours = PoissonFlowScheduler(prediction_type=prediction_type, solver=solver, **options)
    assert ours.compatibles
    for other in ours.compatibles:
        back = PoissonFlowScheduler.from_config(other.from_config(ours.config).config)
        assert {name: value for name, value in back.config.items() if name in ours.config} == dict(ours.config)
    ours.save_pretrained(tmp_path)
    loaded = PoissonFlowScheduler.from_pretrained(tmp_path)
    expected = dict(ours.config)
    del expected["_use_default_values"]
    assert dict(loaded.config) == expected
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["aug_dim"] == ours.config.aug_dim


def test_a_loaded_scheduler_passes_on_the_same_options_as_a_new_one(tmp_path: Path) -> None:
    fresh = PoissonFlowScheduler(None, prediction_type="epsilon", beta_schedule="scaled_linear")
    fresh.save_pretrained(tmp_path)
    sigmas = []
    for ours in (fresh, PoissonFlowScheduler.from_pretrained(tmp_path)):
        assert ours.config.sigma_min is None and ours.config.sigma_max is None
        euler = EulerDiscreteScheduler.from_config(ours.config, use_karras_sigmas=True)
        euler.set_timesteps(5)
        sigmas.append(euler.sigmas)
    assert torch.equal(*sigmas)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max < inf, but are None and 3"):
        PoissonFlowScheduler(sigma_min=None, sigma_max=3)


def test_shared_options_are_passed_on_even_at_their_default() -> None:
    edm = EDMEulerScheduler.from_config(PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.3).config)
    assert (edm.config.sigma_min, edm.config.sigma_max, edm.config.sigma_data) == (0.01, 40.0, 0.3)
    ours = PoissonFlowScheduler(prediction_type="sample", beta_schedule="scaled_linear", final_sigmas_type="zero")
    ddim = DDIMScheduler.from_config(ours.config)
    assert (ddim.config.beta_schedule, ddim.config.prediction_type) == ("scaled_linear", "sample")
    assert ddim.config.timestep_spacing == "leading"
    with pytest.raises(NotImplementedError, match="None is not implemented"):  # the network has no training timesteps
        DDIMScheduler.from_config(PoissonFlowScheduler().config)


@pytest.mark.parametrize("timestep", [0, 1, 0.0])
@pytest.mark.parametrize("options", [{}, {"beta_schedule": "linear"}, {"sigma_data": 0.5}])
def test_timesteps_that_are_not_in_the_run_begin_it(options: dict[str, Any], timestep: float) -> None:
    scheduler, x = PoissonFlowScheduler(prediction_type="epsilon", **options), torch.rand(4, 3, 8, 8)
    assert scheduler.scale_model_input(x, timestep).shape == x.shape
    scheduler.set_timesteps(10)
    for t in (timestep, 1 - timestep):
        assert scheduler.step(0.1 * x, t, x).prev_sample.shape == x.shape


def test_trained_betas_may_be_an_array(tmp_path: Path) -> None:
    ours = PoissonFlowScheduler(trained_betas=torch.tensor([0.1, 0.3]).numpy())
    ours.save_pretrained(tmp_path)
    loaded = PoissonFlowScheduler.from_pretrained(tmp_path)
    assert ours.betas.tolist() == loaded.betas.tolist() == pytest.approx([0.1, 0.3])
