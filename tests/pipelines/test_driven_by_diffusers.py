"""diffusers' own schedulers run in `PFGMPipeline` if they fit its network; otherwise the error says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    RePaintScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
    UnCLIPScheduler,
)

from diffusers_pfgm import ChargeField, Parameterization, PFGMPipeline, PoissonFlowScheduler, fit_sigmas
from tests.networks import ExactNetwork, make_tiny_pipeline, make_tiny_unet, seeded

EDM = {"prediction_type": "epsilon", "sigma_data": 0.5}
DDPM = {"prediction_type": "epsilon", "beta_schedule": "linear", "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def charges() -> torch.Tensor:
    """Four charges at the corners of a square. Each sample must be one of them."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return 0.6 * signs.view(4, 1, 2, 1).expand(4, 1, 2, 2).contiguous()


def drive(charges: torch.Tensor, theirs: Any, options: dict[str, Any], steps: int = 30, **arguments: Any) -> Any:
    """Output of a pipeline with an exact network and a scheduler of diffusers made from ours."""
    aug_dim = options.pop("aug_dim", None)
    ours = PoissonFlowScheduler(aug_dim, **options)
    pipe = PFGMPipeline(ExactNetwork(charges, ours.parameterization, aug_dim), theirs.from_config(ours.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe(64, steps, seeded(), output_type="pt", **arguments)


@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        (EDMEulerScheduler, EDM),
        (EDMDPMSolverMultistepScheduler, EDM),
        (EDMEulerScheduler, {**EDM, "prediction_type": "v_prediction"}),
        (EulerDiscreteScheduler, DDPM),
        (HeunDiscreteScheduler, DDPM),
        (DDIMScheduler, DDPM),
        (DDPMScheduler, DDPM),
        (DPMSolverMultistepScheduler, {**DDPM, "prediction_type": "v_prediction"}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value["prediction_type"],
)
def test_the_charges_are_drawn(charges: torch.Tensor, theirs: Any, options: dict[str, Any]) -> None:
    output = drive(charges, theirs, dict(options))
    distance = torch.cdist((output.images * 2 - 1).flatten(1), charges.flatten(1))
    assert distance.min(1).values.max() < 0.1
    assert len(distance.argmin(1).unique()) == 4
    assert output.nfe == (59 if theirs is HeunDiscreteScheduler else 30)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"solver": "euler"}, EDMEulerScheduler()),
        (
            {"solver_order": 2, "use_corrector": False},
            # Below 15 steps diffusers also lowers the order of the last but one step.
            EDMDPMSolverMultistepScheduler(solver_type="heun"),
        ),
    ],
    ids=["euler", "order 2"],
)
def test_equal_noise_levels_give_equal_images(charges: torch.Tensor, ours: dict[str, Any], theirs: Any) -> None:
    flow = PoissonFlowScheduler.from_config(theirs.config, **ours)
    pipe = PFGMPipeline(ExactNetwork(charges, flow.parameterization), theirs)
    pipe.set_progress_bar_config(disable=True)
    theirs.set_timesteps(20)
    latents = flow.sample_prior((8, 1, 2, 2), seeded())
    images = [pipe(num_inference_steps=20, latents=latents, output_type="pt").images]
    pipe.scheduler = flow
    images.append(pipe(sigmas=theirs.sigmas, latents=latents, output_type="pt").images)
    assert (images[0] - images[1]).norm() < 1e-4 * images[1].norm()


def test_callbacks_and_return_dict_work_with_any_scheduler(charges: torch.Tensor) -> None:
    records = []

    def record(pipe: Any, step: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        records.append((step, set(tensors), tensors["pred_original_sample"].shape))
        return {}

    arguments = {"callback_on_step_end": record, "callback_on_step_end_tensor_inputs": ["pred_original_sample"]}
    _, nfe = drive(charges, DDIMScheduler, dict(DDPM), 3, return_dict=False, **arguments)
    assert nfe == 3 and records == [(i, {"pred_original_sample"}, (64, 1, 2, 2)) for i in range(3)]
    before = torch.get_rng_state()
    again = [drive(charges, DDPMScheduler, dict(DDPM), 3).images for _ in range(2)]  # DDPM adds noise in each step
    assert torch.equal(*again) and torch.equal(before, torch.get_rng_state())


def test_a_scheduler_made_from_ours_keeps_the_heavy_tailed_prior(charges: torch.Tensor) -> None:
    starts = []

    def record(pipe: Any, step: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        starts.append(tensors["latents"])
        return {}

    for aug_dim in (1.0, None):
        drive(charges, EDMEulerScheduler, {**EDM, "aug_dim": aug_dim}, 20, callback_on_step_end=record)
    largest = [start.flatten(1).norm(dim=1).max() for start in (starts[0], starts[20])]
    assert largest[0] > 5 * largest[1]


def test_a_pipeline_with_a_scheduler_of_diffusers_is_saved_and_loaded(tmp_path: Path) -> None:
    scheduler = EDMEulerScheduler.from_config(PoissonFlowScheduler(None, **EDM).config)
    pipe = PFGMPipeline(make_tiny_unet(1, 1), scheduler)
    pipe.save_pretrained(tmp_path)
    loaded = PFGMPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler, EDMEulerScheduler)
    images = []
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
        images.append(each(2, 3, seeded(), output_type="pt").images)
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(), r"`scheduler` \(FlowMatchEulerDiscreteScheduler\) is a flow-matching"),
        (LCMScheduler(), r"\(LCMScheduler\) is a consistency scheduler"),
        (
            EDMEulerScheduler.from_config(PoissonFlowScheduler().config),
            r"\(EDMEulerScheduler\) is unable to follow prediction_type 'field'",
        ),
        (
            EDMEulerScheduler.from_config(PoissonFlowScheduler(prediction_type="epsilon").config),
            "without a beta schedule or EDM's `sigma_data`",
        ),
        (EDMEulerScheduler(), "`unet` returns 2 channels for 1, but prediction_type 'epsilon' of the scheduler"),
    ],
    ids=["flow", "consistency", "field", "plain", "channels"],
)
def test_a_scheduler_that_cannot_work_says_why(scheduler: Any, message: str) -> None:
    pipe = make_tiny_pipeline()
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=message):
        pipe(num_inference_steps=2)


def test_a_field_is_not_what_edm_or_ddpm_expect(charges: torch.Tensor) -> None:
    field = ChargeField(charges, None, "epsilon")
    for scheduler, name in ((EDMEulerScheduler(), "sigma_data"), (DDIMScheduler(), "beta_schedule")):
        with pytest.raises(ValueError, match=f"`{name}` of the field is None, but that of the scheduler is "):
            PFGMPipeline(field, scheduler)(num_inference_steps=2)


def test_sigmas_for_a_scheduler_that_takes_none_are_refused(charges: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`sigmas` were given, but DDIMScheduler takes none"):
        drive(charges, DDIMScheduler, dict(DDPM), None, sigmas=[2.0, 1.0])
    # It would read them as positions between its sigma_max and its sigma_min.
    for sigmas in ([2.0, 1.0], torch.tensor([2.0, 1.0])):
        with pytest.raises(ValueError, match="`sigmas` were given, but EDMEulerScheduler takes none"):
            drive(charges, EDMEulerScheduler, dict(EDM), None, sigmas=sigmas)


def test_sigmas_end_at_the_data_with_any_scheduler(charges: torch.Tensor) -> None:
    sigmas = torch.logspace(1, -1, 20)
    outputs = [drive(charges, EulerDiscreteScheduler, dict(DDPM), None, sigmas=each) for each in (sigmas, [*sigmas, 0])]
    assert outputs[0].nfe == outputs[1].nfe == 20 and torch.equal(outputs[0].images, outputs[1].images)
    distance = torch.cdist((outputs[0].images * 2 - 1).flatten(1), charges.flatten(1))
    assert distance.min(1).values.max() < 0.1


def from_ours(theirs: Any, **options: Any) -> Any:
    return theirs.from_config(PoissonFlowScheduler(**{"prediction_type": "epsilon", **options}).config)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            from_ours(EDMEulerScheduler, aug_dim=None, beta_schedule="linear"),
            "without `beta_schedule`, but the network",
        ),
        (from_ours(DDIMInverseScheduler, aug_dim=None, beta_schedule="linear"), "made for another task"),
        (from_ours(RePaintScheduler, aug_dim=None, beta_schedule="linear"), "made for another task"),
        # Without `prev_timestep` it steps from t to t − 1, whatever the number of steps is.
        (from_ours(UnCLIPScheduler, aug_dim=None, beta_schedule="squaredcos_cap_v2"), "needs `prev_timestep`"),
        (ScoreSdeVeScheduler(), "without a beta schedule or EDM's `sigma_data`"),  # it has no `step`
        (from_ours(SCMScheduler, aug_dim=None, sigma_data=0.5), "a consistency scheduler"),
        (from_ours(DDPMScheduler, aug_dim=64.0, beta_schedule="linear"), "Gaussian noise, which is not the kernel"),
        (from_ours(EulerAncestralDiscreteScheduler, aug_dim=2.0, beta_schedule="linear"), "`aug_dim` = 2.0"),
        (
            EDMDPMSolverMultistepScheduler.from_config(
                PoissonFlowScheduler(64.0, **EDM).config, algorithm_type="sde-dpmsolver++"
            ),
            "adds Gaussian noise in each step",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scheduler_of_another_kind_says_why(charges: torch.Tensor, scheduler: Any, message: str) -> None:
    parameterization = Parameterization("epsilon", sigma_data=0.5)
    with pytest.raises(ValueError, match=message):
        PFGMPipeline(ExactNetwork(charges, parameterization), scheduler)(num_inference_steps=2)


def test_a_scheduler_made_from_a_fitted_one_may_have_another_range(charges: torch.Tensor) -> None:
    ours = PoissonFlowScheduler(None, **EDM)
    fitted = fit_sigmas(ExactNetwork(charges, ours.parameterization), ours, (1, 2, 2), seeded(), 4)
    theirs = EDMEulerScheduler.from_config(fitted.config, sigma_max=60.0)
    pipe = PFGMPipeline(ExactNetwork(charges, ours.parameterization), theirs)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(2, 3, seeded(), output_type="pt").nfe == 3
    again = fit_sigmas(pipe.unet, theirs, (1, 2, 2), seeded(), 4)  # a scheduler of diffusers is fitted as well
    assert again.config.sigma_knots[0] == pytest.approx(60)
