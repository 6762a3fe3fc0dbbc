"""A configuration is read as its own diffusers scheduler reads it, whatever earlier schedulers have left in it."""

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UnCLIPScheduler,
)

from diffusers_pfgm import PoissonFlowScheduler
from diffusers_pfgm.schedulers.conversion import check_density
from diffusers_pfgm.schedulers.diffusers_classes import class_of_config, class_of_name, timesteps_of_class

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SVD = {
    "_class_name": "EulerDiscreteScheduler",
    **SCALED_LINEAR,
    "interpolation_type": "linear",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
# As published: without options at their default, and without options that diffusers did not have at the time.
PUBLIC = {
    "SDXL": {
        "_class_name": "EulerDiscreteScheduler",
        **SCALED_LINEAR,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    },
    "zero SNR": {
        "_class_name": "EulerDiscreteScheduler",
        **SCALED_LINEAR,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": False,
        "timestep_spacing": "trailing",
    },
    "DPM-Solver++ of 2022": {"_class_name": "DPMSolverMultistepScheduler", **SCALED_LINEAR, "lower_order_final": True},
    "Euler of 2022": {"_class_name": "EulerDiscreteScheduler", **SCALED_LINEAR},
    "PNDM of 2022": {"_class_name": "PNDMScheduler", **SCALED_LINEAR, "skip_prk_steps": True},
    "DDIM of 2022": {"_class_name": "DDIMScheduler", **SCALED_LINEAR, "set_alpha_to_one": False, "steps_offset": 1},
    "DDIM of Flax": {"_class_name": "FlaxDDIMScheduler", **SCALED_LINEAR, "steps_offset": 1},
    "DDPM without betas": {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "variance_type": "fixed_large"},
    "no betas, fewer timesteps": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 500},
    "DPM++ 2M Karras": {"_class_name": "DPMSolverMultistepScheduler", **SCALED_LINEAR, "use_karras_sigmas": True},
    "Euler ancestral": {"_class_name": "EulerAncestralDiscreteScheduler", **SCALED_LINEAR},
    "Heun": {"_class_name": "HeunDiscreteScheduler"},
    "DPM2": {"_class_name": "KDPM2DiscreteScheduler", "timestep_spacing": "trailing"},
    "DEIS": {"_class_name": "DEISMultistepScheduler", **SCALED_LINEAR},
    "singlestep": {"_class_name": "DPMSolverSinglestepScheduler", **SCALED_LINEAR},
    "upscaler": {"_class_name": "EulerDiscreteScheduler", **SCALED_LINEAR, "prediction_type": "original_sample"},
    "EDM": {"_class_name": "EDMEulerScheduler", "sigma_max": 40.0},
    "Playground": {"_class_name": "EDMDPMSolverMultistepScheduler", "solver_type": "midpoint", "solver_order": 2},
    "Kandinsky's prior": {
        "_class_name": "UnCLIPScheduler",
        "clip_sample_range": 5.0,
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
    },
    "Stable Video Diffusion": SVD,
}
# KDPM2 evaluates a Python function for each trained timestep when it is made, which takes 0.3 s for 1000 of them.
FEW_TIMESTEPS = {"num_train_timesteps": 50}
ODD_OPTIONS = {  # unusual values of all options that one scheduler may pass on to another
    **FEW_TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "solver_order": 1,
    "use_karras_sigmas": True,
    "set_alpha_to_one": False,
    "final_sigmas_type": "sigma_min",
    "sigma_data": 0.7,
    "variance_type": "learned_range",
    "lambda_min_clipped": -3.0,
    "interpolation_type": "log_linear",
    "sigma_schedule": "exponential",
}


@functools.cache
def parameters(scheduler_class: Any) -> dict[str, Any]:
    signature = inspect.signature(scheduler_class.__init__)
    values = signature.parameters.values()
    return {parameter.name: parameter.default for parameter in values if parameter.default is not parameter.empty}


def convertible() -> list[Any]:
    """All diffusers schedulers that can be converted with their defaults."""
    kinds = []
    for name in dir(diffusers.schedulers):
        kind = class_of_name(name)
        if kind is None or kind is SchedulerMixin or name != kind.__name__ or "EDM" in name:
            continue
        if "beta_schedule" in parameters(kind) and not {"original_inference_steps", "snr_shift_scale"} & set(
            parameters(kind)
        ):
            kinds.append(kind)
    return kinds


def calls(theirs: Any, steps: int) -> tuple[torch.Tensor, float | None]:
    """Timesteps of the first network call of each step, and the last σ if the scheduler has σ's."""
    theirs.set_timesteps(steps)
    timesteps, sigmas = torch.as_tensor(theirs.timesteps).double(), getattr(theirs, "sigmas", None)
    if type(theirs).__name__ == "PNDMScheduler":
        timesteps = torch.as_tensor(theirs._timesteps[::-1].copy()).double()  # `timesteps` repeats some
    elif type(theirs).__name__ == "RePaintScheduler":
        timesteps = timesteps.unique().flip(0)  # `timesteps` jumps back
    elif "Inverse" in type(theirs).__name__:
        return None, None  # `timesteps` increases
    last = None if sigmas is None or type(theirs).__name__ == "RePaintScheduler" else float(sigmas[-1])
    return timesteps[:: getattr(theirs, "order", 1)][:steps], last


def check_same_run(ours: PoissonFlowScheduler, theirs: Any, steps: int) -> None:
    timesteps, last = calls(theirs, steps)
    ours.set_timesteps(steps)
    if timesteps is not None:
        assert torch.allclose(ours.timesteps.double(), timesteps, rtol=1e-6, atol=1e-6)
    if last is not None:
        assert ours.sigmas[-1].item() == pytest.approx(last, rel=1e-5)
        first = theirs.sigmas[:: getattr(theirs, "order", 1)][:steps]
        assert torch.allclose(ours.sigmas[:-1], first, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("name", PUBLIC)
def test_published_configurations_run_as_with_their_class(name: str, steps: int, tmp_path: Path) -> None:
    config = PUBLIC[name]
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    kind = getattr(diffusers, config["_class_name"].removeprefix("Flax"))
    theirs, raw = kind.from_pretrained(tmp_path), kind.from_config(dict(config))
    options_seen = []
    for ours in (
        PoissonFlowScheduler.from_pretrained(tmp_path),
        PoissonFlowScheduler.from_config(dict(config)),
        PoissonFlowScheduler.from_config(theirs.config),
        PoissonFlowScheduler.from_config(raw.config),
    ):
        ours.save_pretrained(tmp_path / "again")
        for scheduler in (ours, PoissonFlowScheduler.from_pretrained(tmp_path / "again")):
            options = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
            if options not in options_seen:  # equal options give equal runs
                options_seen.append(options)
                check_same_run(scheduler, theirs, steps)
        if "sigma_data" not in theirs.config and theirs.config.get("timestep_type") != "continuous":
            assert torch.equal(ours.alphas_cumprod[:-1], torch.as_tensor(theirs.alphas_cumprod)[:-1])


@pytest.mark.parametrize("kind", convertible(), ids=lambda kind: kind.__name__)
def test_options_of_earlier_schedulers_are_ignored(kind: Any) -> None:
    pairs = 0
    for earlier_kind in [*convertible(), diffusers.EDMDPMSolverMultistepScheduler, diffusers.LCMScheduler]:
        explicit = {
            **parameters(earlier_kind),
            **{k: v for k, v in ODD_OPTIONS.items() if k in parameters(earlier_kind)},
        }
        if earlier_kind is UnCLIPScheduler:
            explicit["beta_schedule"] = "squaredcos_cap_v2"  # its only one
        try:
            later = kind.from_config(earlier_kind(**explicit).config)
        except (NotImplementedError, ValueError):  # diffusers cannot make the one from the other
            continue
        pairs += 1
        assert parameters(class_of_config(later.config)).keys() == parameters(kind).keys()
        ours = PoissonFlowScheduler.from_config(later.config)
        expected = PoissonFlowScheduler.from_config(
            {
                "_class_name": kind.__name__,
                **{name: later.config[name] for name in parameters(kind) if name != "kwargs"},
            }
        )
        names = inspect.signature(PoissonFlowScheduler.__init__).parameters.keys() - {"self"}
        # Schedulers with the same options cannot be distinguished, but have the same timesteps.
        names -= {"timesteps_from"}
        assert {name: ours.config[name] for name in names} == {name: expected.config[name] for name in names}
        if later.config.get("use_karras_sigmas") and later.order == 2:
            continue  # KDPM2 rounds its timesteps; LMS, with the same options, does not
        check_same_run(ours, later, 10)
    assert pairs > (15 if kind is not UnCLIPScheduler else 0)


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize(
    "kind", [k for k in convertible() if "use_beta_sigmas" in parameters(k)], ids=lambda k: k.__name__
)
def test_spacings_by_sigma_are_kept(kind: Any, option: str) -> None:
    options = {**SCALED_LINEAR, **FEW_TIMESTEPS}
    theirs, plain = kind(**options, **{option: True}), kind(**options)
    ours = PoissonFlowScheduler.from_config({"_class_name": kind.__name__, **theirs.config})
    check_same_run(ours, theirs, 12)
    changed = PoissonFlowScheduler.from_config(theirs.config, **{option: False})
    check_same_run(changed, plain, 12)
    check_same_run(PoissonFlowScheduler.from_config(ours.config, **{option: False}), plain, 12)


def test_karras_spacing_with_its_own_sigma_min_and_sigma_max() -> None:
    theirs = EulerDiscreteScheduler(**SCALED_LINEAR, use_karras_sigmas=True, sigma_min=0.1, sigma_max=5.0)
    ours = PoissonFlowScheduler.from_config(theirs.config)
    check_same_run(ours, theirs, 12)
    assert ours.sigma_range[0] == pytest.approx(14.6146, rel=1e-4)  # that of the network


def test_a_spacing_can_be_set_for_a_scheduler_without_that_option() -> None:
    ours = PoissonFlowScheduler.from_config(UnCLIPScheduler().config, timestep_spacing="trailing")
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [999, 749, 499, 249]
    again = PoissonFlowScheduler.from_config(
        PoissonFlowScheduler.from_config(UnCLIPScheduler().config).config, timestep_spacing="trailing"
    )
    again.set_timesteps(4)
    assert torch.equal(again.timesteps, ours.timesteps)


def test_a_stochastic_algorithm_of_an_earlier_scheduler_is_ignored() -> None:
    earlier = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    later = EulerDiscreteScheduler.from_config(earlier.config)
    assert later.config.algorithm_type == "sde-dpmsolver++"
    assert PoissonFlowScheduler.from_config(later.config, aug_dim=64.0).config.aug_dim == 64.0
    check_density(None, later)
    with pytest.raises(ValueError, match="adds noise at every step"):
        check_density(None, earlier)


def test_a_configuration_of_an_unknown_class_is_read_by_its_options() -> None:
    config = {"_class_name": "SomebodysScheduler", **SCALED_LINEAR, "num_train_timesteps": 1000, "steps_offset": 1}
    ours = PoissonFlowScheduler.from_config(config)
    ours.set_timesteps(20)
    assert ours.timesteps[0] == 951 and ours.config.beta_end == 0.012
    ours = PoissonFlowScheduler.from_config({**config, "lower_order_final": True, "timestep_spacing": "linspace"})
    check_same_run(ours, DPMSolverMultistepScheduler(**SCALED_LINEAR), 20)


def test_a_configuration_saved_without_timesteps_from() -> None:
    config = {"_class_name": "PoissonFlowScheduler", "aug_dim": None, "sigma_min": None, "sigma_max": None}
    config.update(SCALED_LINEAR, prediction_type="epsilon", lower_order_final=True, timestep_spacing="linspace")
    check_same_run(PoissonFlowScheduler.from_config(config), DPMSolverMultistepScheduler(**SCALED_LINEAR), 20)


def test_a_folder_in_place_of_a_configuration(tmp_path: Path) -> None:
    theirs = EulerDiscreteScheduler(**SCALED_LINEAR)
    theirs.save_pretrained(tmp_path)
    for ours in (
        PoissonFlowScheduler.from_config(str(tmp_path)),
        PoissonFlowScheduler.from_config(pretrained_model_name_or_path=tmp_path),
    ):
        check_same_run(ours, theirs, 7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"timesteps_from": "NoScheduler"}, "`timesteps_from` must be the name of a scheduler of diffusers"),
        ({"timesteps_from": "UNet2DModel"}, "`timesteps_from` must be the name of a scheduler of diffusers"),
    ],
)
def test_unknown_scheduler_names_raise(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler(**config)


@pytest.mark.parametrize(
    ("kind", "steps", "message"),
    [
        (
            "UnCLIPScheduler",
            1,
            r"'UnCLIPScheduler' cannot make 1 steps .*\(division by zero\).* another `num_inference_",
        ),
        ("DPMSolverMultistepScheduler", 1000, "1000 values of sigma of DPMSolverMultistepScheduler are not strictly"),
    ],
)
def test_numbers_of_steps_that_the_other_scheduler_cannot_make(kind: str, steps: int, message: str) -> None:
    ours = PoissonFlowScheduler.from_config({"_class_name": kind})
    with pytest.raises(ValueError, match=message):
        ours.set_timesteps(steps)


def test_timesteps_of_class_leaves_out_second_calls() -> None:
    timesteps, sigmas = timesteps_of_class("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, 1000, 4)
    assert timesteps == [750, 500, 250, 0] and len(sigmas) == 4
    assert timesteps_of_class("DDIMScheduler", {}, 1000, 4) == ([750, 500, 250, 0], None)
