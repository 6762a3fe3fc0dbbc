"""The scheduler follows diffusers' interface, and solves the backward ODE as the functions of `solvers` do."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from diffusers_pfgm import ChargeField, PoissonFlowScheduler, PoissonKernel, plan_steps, posterior_mean
from tests.conftest import seeded


def run(scheduler: PoissonFlowScheduler, model: Any, x: torch.Tensor) -> torch.Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


@pytest.fixture(scope="module")
def charges() -> torch.Tensor:
    return torch.randn(5, 1, 4, 4, generator=seeded(0), dtype=torch.float64)


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon"])
def test_end_points_of_the_authors(endpoints: dict[str, torch.Tensor], solver: str, prediction_type: str) -> None:
    steps = {"multistep": 15, "heun": 50, "euler": 100}[solver]
    charges = endpoints["charges"].float()
    scheduler = PoissonFlowScheduler(sigma_min=1e-3, prediction_type=prediction_type, solver=solver)
    scheduler.set_timesteps(steps)
    field = ChargeField(charges.view(-1, 1, 4, 4), prediction_type=prediction_type)
    end = run(scheduler, field, endpoints["x_init"]).flatten(1)
    expected = torch.cdist(endpoints["rk45"].flatten(1), charges).argmin(1)
    assert torch.equal(torch.cdist(end, charges).argmin(1), expected)


def test_every_prediction_type_gives_the_same_flow(charges: torch.Tensor) -> None:
    x = PoissonFlowScheduler().sample_prior((6, 1, 4, 4), seeded(1), dtype=torch.float64)
    ends = []
    for prediction_type in ("field", "sample", "epsilon"):
        scheduler = PoissonFlowScheduler(prediction_type=prediction_type)
        scheduler.set_timesteps(12)
        ends.append(run(scheduler, ChargeField(charges, prediction_type=prediction_type), x))
    assert torch.allclose(ends[0], ends[1], atol=1e-6) and torch.allclose(ends[1], ends[2], atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"solver": "euler"}, EDMEulerScheduler),
        ({"solver_order": 2, "use_corrector": False}, EDMDPMSolverMultistepScheduler),
    ],
)
def test_infinite_aug_dim_equals_edm(ours: dict[str, Any], theirs: Any) -> None:
    edm = theirs(sigma_data=0.5, **({"solver_type": "heun"} if "solver_order" in ours else {}))
    # Below 15 steps diffusers also lowers the order of the last but one step.
    edm.set_timesteps(20)
    scheduler = PoissonFlowScheduler(None, 0.002, 80.0, "epsilon", sigma_data=0.5, **ours)
    scheduler.set_timesteps(sigmas=edm.sigmas)
    assert torch.allclose(scheduler.timesteps, edm.timesteps, atol=1e-6)
    x = y = 80 * torch.randn(4, 3, 8, 8, generator=seeded())
    for t in edm.timesteps:
        x_in, y_in = scheduler.scale_model_input(x, t), edm.scale_model_input(y, t)
        # Any function of the input and the timestep can replace a network.
        x = scheduler.step(torch.sin(3 * x_in + t), t, x).prev_sample
        y = edm.step(torch.sin(3 * y_in + t), t, y).prev_sample
    assert (x - y).norm() < 1e-4 * y.norm()


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_set_timesteps_resets_the_run(charges: torch.Tensor, solver: str) -> None:
    scheduler = PoissonFlowScheduler(solver=solver)
    x = scheduler.sample_prior((3, 1, 4, 4), seeded(1))
    ends = []
    for interrupted in (False, True, False):
        scheduler.set_timesteps(7)
        if interrupted:
            scheduler.step(torch.ones(3, 2, 4, 4), scheduler.timesteps[0], x)
            scheduler.set_timesteps(7)
        ends.append(run(scheduler, ChargeField(charges), x))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(("solver", "calls"), [("multistep", 9), ("heun", 17), ("euler", 9)])
def test_timesteps_are_the_sigmas_of_the_calls(solver: str, calls: int) -> None:
    scheduler = PoissonFlowScheduler(solver=solver)
    scheduler.set_timesteps(9)
    assert len(scheduler.timesteps) == calls and len(scheduler.sigmas) == calls + 1
    assert scheduler.timesteps[0] == 40 and scheduler.timesteps[-1] == pytest.approx(0.01)
    assert scheduler.init_noise_sigma == 40 and scheduler.sigmas[-1] == 0
    ratios = scheduler.timesteps.unique().diff(prepend=torch.tensor([math.nan])) / scheduler.timesteps.unique()
    assert torch.allclose(ratios[1:], ratios[1], atol=1e-4)


def test_custom_sigmas_replace_the_number_of_steps() -> None:
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)
    sigmas = [30.0, 3.0, 0.3]
    scheduler.set_timesteps(sigmas=sigmas)
    by_sigmas = scheduler.timesteps
    scheduler.set_timesteps(sigmas=torch.tensor([*sigmas, 0.0]))
    assert torch.equal(scheduler.timesteps, by_sigmas)
    scheduler.set_timesteps(timesteps=by_sigmas)
    assert torch.allclose(scheduler.sigmas, torch.tensor([*sigmas, 0.0]))
    assert scheduler.num_inference_steps == 3


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_a_late_start_equals_a_run_from_there(charges: torch.Tensor, solver: str) -> None:
    scheduler = PoissonFlowScheduler(solver=solver)
    scheduler.set_timesteps(8)
    sigmas = scheduler.timesteps.unique().flip(0).tolist()
    begin = 3 * scheduler.order
    late = scheduler.timesteps[begin:]
    x = charges[:3] + 0.3
    model = ChargeField(charges)

    scheduler.set_timesteps(sigmas=sigmas[3:])
    expected = run(scheduler, model, x)
    for by_index in (True, False):
        scheduler.set_timesteps(8)
        if by_index:
            scheduler.set_begin_index(begin)
        y = x
        for t in late if by_index else scheduler.timesteps[begin:]:
            y = scheduler.step(model(y, t).sample, t if by_index else t.item(), y).prev_sample
        assert torch.equal(y, expected)


def test_heun_from_a_second_call_first_keeps_the_state(charges: torch.Tensor) -> None:
    scheduler, x = PoissonFlowScheduler(solver="heun"), charges[:3] + 0.3
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    t = scheduler.timesteps[5]
    assert torch.equal(scheduler.step(ChargeField(charges)(x, t).sample, t, x).prev_sample, x)


def test_prior_radii_beyond_max_norm_are_drawn_again() -> None:
    limited = PoissonFlowScheduler(max_norm=500.0).sample_prior((20_000, 1, 8, 8), seeded())
    free = PoissonFlowScheduler().sample_prior((40_000, 1, 8, 8), seeded(1))
    radius, expected = (x.flatten(1).norm(dim=1) for x in (limited, free))
    assert radius.max() <= 500
    expected = expected[expected <= 500]
    # No shell: below the limit the quantiles are those of the unlimited prior.
    for probability in (0.1, 0.5, 0.9, 0.99):
        assert radius.quantile(probability).item() == pytest.approx(expected.quantile(probability).item(), rel=0.03)


def test_prior_with_one_generator_per_sample() -> None:
    scheduler, before = PoissonFlowScheduler(max_norm=400.0), torch.get_rng_state()
    whole = scheduler.sample_prior((5, 1, 8, 8), [seeded(i) for i in range(5)])
    for i in range(5):
        assert torch.equal(whole[i : i + 1], scheduler.sample_prior((1, 1, 8, 8), seeded(i)))
    assert torch.equal(before, torch.get_rng_state())


def test_add_noise_scales_the_kernel() -> None:
    x, scheduler = torch.randn(3, 2, 4, generator=seeded()), PoissonFlowScheduler()
    noise = scheduler.sample_noise(x.shape, seeded(1))
    noisy = scheduler.add_noise(x, noise, torch.tensor([0.5, 2.0, 40.0]))
    assert torch.allclose(noisy, x + torch.tensor([0.5, 2.0, 40.0]).view(3, 1, 1) * noise)
    edm = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)
    edm.set_timesteps(3)
    assert torch.allclose(edm.add_noise(x, noise, edm.timesteps[:1]), x + 40 * noise, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_state_keeps_its_dtype(charges: torch.Tensor, dtype: torch.dtype) -> None:
    scheduler = PoissonFlowScheduler()
    scheduler.set_timesteps(3)
    x = torch.ones(2, 1, 4, 4, dtype=dtype)
    output = scheduler.step(torch.ones(2, 2, 4, 4, dtype=dtype), scheduler.timesteps[0], x)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == dtype
    as_tuple = PoissonFlowScheduler()
    as_tuple.set_timesteps(3)
    other = as_tuple.step(torch.ones(2, 2, 4, 4, dtype=dtype), as_tuple.timesteps[0], x, return_dict=False)
    assert torch.equal(other[0], output.prev_sample) and torch.equal(other[1], output.pred_original_sample)


def test_step_changes_no_input() -> None:
    scheduler = PoissonFlowScheduler()
    scheduler.set_timesteps(4)
    x, output = torch.ones(2, 1, 4, 4), torch.ones(2, 2, 4, 4)
    for t in scheduler.timesteps:
        scheduler.step(output, t, x)
    assert torch.equal(x, torch.ones_like(x)) and torch.equal(output, torch.ones_like(output))


def test_step_reads_nothing_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # To read a tensor's value, the host must wait for the device. All ways to read one are in this list.
    scheduler = PoissonFlowScheduler(prediction_type="field")
    scheduler.set_timesteps(5)
    x, output = torch.ones(2, 1, 4, 4), torch.ones(2, 2, 4, 4)

    def refuse(*_: object) -> None:
        raise AssertionError("the step reads a tensor's value")

    for name in ("item", "__float__", "__int__", "__bool__", "tolist", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, scheduler.scale_model_input(x, t)).prev_sample


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "field"},
        {"prediction_type": "epsilon", "sigma_data": 0.5},
        {"prediction_type": "v_prediction", "beta_schedule": "linear"},
    ],
    ids=lambda options: options["prediction_type"],
)
def test_each_step_is_one_graph(solver: str, options: dict[str, Any]) -> None:
    ours, compiled = (PoissonFlowScheduler(solver=solver, **options) for _ in range(2))
    for scheduler in (ours, compiled):
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(0)
    x = y = torch.randn(2, 1, 4, 4, generator=seeded())
    for t in ours.timesteps:
        output = torch.randn(2, ours.parameterization.output_channels(1), 4, 4, generator=seeded(1))
        torch._dynamo.reset()
        step = torch.compile(compiled.step, fullgraph=True, backend="eager")
        x = ours.step(output, t, ours.scale_model_input(x, t)).prev_sample
        y = step(output, t, compiled.scale_model_input(y, t)).prev_sample
        assert torch.allclose(x, y)


def test_infinite_aug_dim_is_saved_as_null(tmp_path: Any) -> None:
    PoissonFlowScheduler(aug_dim=math.inf).save_pretrained(tmp_path)
    assert '"aug_dim": null' in (tmp_path / "scheduler_config.json").read_text()
    assert PoissonFlowScheduler.from_pretrained(tmp_path).kernel.aug_dim == math.inf


def test_only_the_x_hats_of_the_next_step_are_kept() -> None:
    x, output = torch.ones(2, 1, 4, 4), torch.ones(2, 2, 4, 4)
    for solver, expected in (("multistep", 3), ("heun", 1), ("euler", 0)):
        scheduler = PoissonFlowScheduler(solver=solver)
        scheduler.set_timesteps(8)
        counts = []
        for t in scheduler.timesteps:
            scheduler.step(output, t, x)
            counts.append(len(scheduler._denoised))
        assert max(counts) == expected and counts[-1] == 0


def test_config_survives_a_round_trip(tmp_path: Any) -> None:
    scheduler = PoissonFlowScheduler(aug_dim=None, prediction_type="sample", sigma_max=9.0, solver="heun", max_norm=3.0)
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    assert "Infinity" not in text and '"aug_dim": null' in text
    loaded = PoissonFlowScheduler.from_pretrained(tmp_path)
    ignored = {"_use_default_values"}
    assert {k: v for k, v in loaded.config.items() if k not in ignored} == {
        k: v for k, v in scheduler.config.items() if k not in ignored
    }
    assert PoissonFlowScheduler.from_config(scheduler.config, solver="euler").config.sigma_max == 9.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"aug_dim": 0}, "`aug_dim` must be a number > 0, or None for infinity, but is 0"),
        ({"aug_dim": -3.0}, "`aug_dim` must be"),
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max < inf, but are 0.0 and 40.0"),
        ({"sigma_min": 50.0}, "but are 50.0 and 40.0"),
        ({"sigma_max": 1e39}, "values of sigma between inf and inf are not distinct"),
        ({"sigma_min": None}, "but are None and 40.0"),
        ({"prediction_type": "flow"}, "`prediction_type` must be one of .* but is 'flow'"),
        ({"solver": "rk45"}, "`solver` must be one of .* but is 'rk45'"),
        ({"solver_order": 4}, "`solver_order` must be 1, 2 or 3, but is 4"),
        ({"solver_order": 2.0}, "`solver_order` must be a whole number, but is 2.0"),
        ({"max_norm": math.inf}, "`max_norm` must be a finite number > 0 or None, but is inf"),
        ({"gamma": math.inf}, "`gamma` must be a finite number >= 0, but is inf"),
        ({"gamma": -1.0}, "`gamma` must be a finite number >= 0, but is -1.0"),
        ({"sigma_data": 0.0}, "`sigma_data` must be a finite number > 0 or None, but is 0.0"),
        ({"sigma_data": math.inf}, "`sigma_data` must be a finite number > 0 or None, but is inf"),
        ({"max_norm": 0.0}, "`max_norm` must be a finite number > 0 or None, but is 0.0"),
    ],
)
def test_invalid_configs_raise(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler(**config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `num_inference_steps`, `sigmas` and `timesteps`"),
        ({"num_inference_steps": 5, "sigmas": [2.0, 1.0]}, "exactly one of"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number >= 1, but is 0"),
        ({"num_inference_steps": -3}, "whole number >= 1, but is -3"),
        ({"num_inference_steps": 2.5}, "whole number >= 1, but is 2.5"),
        (
            {"sigmas": [1.0, 2.0]},
            r"`sigmas` must be a list of positive, strictly decreasing numbers .* but is \[1.0, 2.0\]",
        ),
        ({"sigmas": [2.0, 2.0]}, "strictly decreasing"),
        ({"sigmas": [2.0, -1.0]}, "positive, strictly"),
        ({"sigmas": []}, "strictly decreasing"),
        ({"sigmas": [math.nan, 1.0]}, "strictly decreasing"),
        ({"sigmas": [1.0, 0.999999999, 0.5]}, "in float32"),
        ({"sigmas": [1.0, 1e-50, 0.0]}, "in float32"),
        ({"sigmas": 3.0}, "must be a list"),
        ({"sigmas": [[3.0, 2.0]]}, "must be a list"),
        ({"num_inference_steps": math.nan}, "whole number >= 1, but is nan"),
        ({"sigmas": [math.inf, 1.0]}, "strictly decreasing"),
        ({"sigmas": ["high", "low"]}, r"`sigmas` must be a list of numbers, but is \['high', 'low'\]"),
        ({"timesteps": "900"}, "`timesteps` must be a list of numbers, but is '900'"),
        ({"num_inference_steps": "20"}, "whole number >= 1, but is '20'"),
        ({"num_inference_steps": True}, "whole number >= 1, but is True"),
        ({"timesteps": [1.0, 2.0]}, "`timesteps` must be a list of positive, strictly decreasing numbers"),
    ],
)
def test_invalid_timesteps_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoissonFlowScheduler().set_timesteps(**arguments)


def test_custom_sigmas_on_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    on_mps, as_tensor = torch.tensor([3.0, 2.0, 1.0]), torch.as_tensor

    def without_float64(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        if data is on_mps and dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return as_tensor(data, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "as_tensor", without_float64)
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)  # `on_mps.cpu()`
    for name in ("sigmas", "timesteps"):
        scheduler = PoissonFlowScheduler()
        scheduler.set_timesteps(**{name: on_mps})
        assert scheduler.timesteps.tolist() == [3.0, 2.0, 1.0] and scheduler.timesteps.dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
        {"beta_schedule": "linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "sigma_data": 0.5},
        {"prediction_type": "v_prediction", "sigma_data": 1.0, "aug_dim": 3.0},
    ],
)
def test_x_hat_of_the_exact_velocity_is_the_data(options: dict[str, Any]) -> None:
    scheduler = PoissonFlowScheduler(**options)
    scheduler.set_timesteps(5)
    x, noise = (torch.randn(5, 2, 3, 3, generator=seeded(i)).double() for i in (0, 1))
    for i, t in enumerate(scheduler.timesteps[1:], 1):
        states = scheduler.add_noise(x, noise, t)
        velocity = scheduler.get_velocity(x, noise, t)
        sigma = float(scheduler.sigmas[i])
        denoised = scheduler.parameterization.denoised(velocity, states * scheduler.data_scale(sigma), sigma)
        assert torch.allclose(denoised, x, atol=1e-3)  # σ is rounded to float32
        many = scheduler.get_velocity(x, noise, t.repeat(5))
        assert torch.equal(many, velocity) and velocity.dtype == torch.float64


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_velocity_equals_that_of_ddpm(schedule: str) -> None:
    ours, theirs = (kind(beta_schedule=schedule) for kind in (epsilon, DDPMScheduler))
    x, noise = (torch.randn(6, 2, 4, 4, generator=seeded(i)) for i in (0, 1))
    t = torch.tensor([0, 1, 50, 500, 998, 999])
    assert torch.allclose(ours.get_velocity(x, noise, t), theirs.get_velocity(x, noise, t), atol=1e-6)
    assert ours.get_velocity(x.half(), noise.half(), t).dtype == torch.float16


def epsilon(**options: Any) -> PoissonFlowScheduler:
    return PoissonFlowScheduler(None, prediction_type="epsilon", **options)


def test_a_network_with_sigma_data_needs_a_scaled_input() -> None:
    scheduler, x = epsilon(sigma_data=0.5), torch.ones(1, 1, 2, 2)
    for _ in range(2):  # the second run is checked again
        scheduler.set_timesteps(2)
        with pytest.raises(ValueError, match=r"`scale_model_input` was not called before `step`.*DDPMPipeline"):
            scheduler.step(x, scheduler.timesteps[0], x)
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            scheduler.step(x, t, x)


def test_a_run_from_an_unknown_start_warns(caplog: pytest.LogCaptureFixture) -> None:
    x, output = torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2, 2)
    for ask in (
        lambda scheduler: scheduler.init_noise_sigma,
        lambda scheduler: scheduler.sample_prior((1, 1, 2, 2), seeded()),
        lambda scheduler: scheduler.add_noise(x, x, torch.tensor(1.0)),
        lambda scheduler: scheduler.scale_model_input(x, scheduler.timesteps[0]),
        None,
    ):
        scheduler = PoissonFlowScheduler()
        scheduler.set_timesteps(2)
        if ask is not None:
            ask(scheduler)
        assert not caplog.records
        scheduler.step(output, scheduler.timesteps[0], x)
    assert [record.getMessage()[:25] for record in caplog.records] == ["`step` begins a run, but "]


def test_a_single_number_as_state_raises() -> None:
    for scheduler in (epsilon(beta_schedule="linear"), epsilon(sigma_data=0.5), PoissonFlowScheduler()):
        scheduler.set_timesteps(2)
        with pytest.raises(ValueError, match=r"`sample` must be a state .* StableDiffusionLatentUpscalePipeline"):
            scheduler.scale_model_input(scheduler.sigmas[0], scheduler.timesteps[0])


def test_prev_timestep_must_be_the_next_timestep() -> None:
    scheduler = epsilon(beta_schedule="linear")
    scheduler.set_timesteps(3)
    x, (first, second, third) = torch.ones(1, 1, 2, 2), scheduler.timesteps
    scheduler.step(x, first, x, prev_timestep=second)
    with pytest.raises(ValueError, match="`prev_timestep` must be the element of `timesteps` after this one"):
        scheduler.step(x, second, x, prev_timestep=second)
    scheduler.step(x, second, x, prev_timestep=int(third))
    scheduler.step(x, third, x, prev_timestep=None)


@pytest.mark.parametrize("begin", [-1, 4])
def test_a_begin_index_without_steps_raises(begin: int) -> None:
    scheduler = PoissonFlowScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(
        ValueError, match="`strength` \\* `num_inference_steps` is less than 1, so that no step is left"
    ):
        scheduler.set_begin_index(begin)


def test_original_sample_is_another_name_of_sample() -> None:
    assert PoissonFlowScheduler(prediction_type="original_sample").config.prediction_type == "sample"


def test_a_learned_variance_is_ignored() -> None:
    x, output, variance = (torch.randn(2, 3, 4, 4, generator=seeded(i)) for i in range(3))
    plain, learned = epsilon(beta_schedule="linear"), epsilon(beta_schedule="linear", variance_type="learned_range")
    ends = []
    for scheduler, outputs in ((plain, output), (learned, torch.cat([output, variance], 1)), (learned, output)):
        scheduler.set_timesteps(3)
        ends.append(scheduler.step(outputs, scheduler.timesteps[0], x).prev_sample)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    plain.set_timesteps(3)
    with pytest.raises(ValueError, match=r"`model_output` must have the shape .*`variance_type`"):
        plain.step(torch.cat([output, variance], 1), plain.timesteps[0], x)
    with pytest.raises(ValueError, match=r"`variance_type` must be one of .* but is 'large'"):
        epsilon(variance_type="large")
    with pytest.raises(
        ValueError, match=r"'learned_range' are for networks of diffusion models.* Set `variance_type=None`"
    ):
        PoissonFlowScheduler(variance_type="learned")


def test_equal_sigmas_in_float32_raise() -> None:
    scheduler = PoissonFlowScheduler(sigma_min=1.0, sigma_max=1.000001)
    with pytest.raises(ValueError, match=r"100 values of sigma between 1.0\d* and 1.0 are not distinct in float32"):
        scheduler.set_timesteps(100)


def test_steps_out_of_order_raise() -> None:
    scheduler, x, output = PoissonFlowScheduler(), torch.ones(1, 1, 4, 4), torch.ones(1, 2, 4, 4)
    with pytest.raises(ValueError, match="used before `set_timesteps`"):
        scheduler.step(output, 1.0, x)
    scheduler.set_timesteps(2)
    with pytest.raises(
        ValueError, match=r"`model_output` must have the shape \(1, 2, 4, 4\) for prediction_type 'field'"
    ):
        scheduler.step(x, scheduler.timesteps[0], x)
    for t in scheduler.timesteps:
        scheduler.step(output, t, x)
    with pytest.raises(ValueError, match="after the last of 2 timesteps"):
        scheduler.step(output, scheduler.timesteps[-1], x)
    for begin in (-1, 2):
        with pytest.raises(ValueError, match=f"`begin_index` must be from 0 to 1, but is {begin}"):
            scheduler.set_begin_index(begin)


def test_an_unreachable_max_norm_raises() -> None:
    with pytest.raises(ValueError, match=r"`max_norm` = 1\.0 is out of reach"):
        PoissonFlowScheduler(max_norm=1.0).sample_prior((2, 3, 8, 8), seeded())
    with pytest.raises(ValueError, match="list of 1, but the batch has 2"):
        PoissonFlowScheduler(max_norm=500.0).sample_prior((2, 1, 8, 8), [seeded()])


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, None])
def test_prior_and_noise_are_draws_of_the_kernel(aug_dim: float | None) -> None:
    shape, kernel = (3, 1, 4, 4), PoissonKernel(aug_dim)
    for max_norm in (None, 1e6):
        scheduler = PoissonFlowScheduler(aug_dim, max_norm=max_norm)
        assert torch.equal(scheduler.sample_prior(shape, seeded()), kernel.sample(shape, 40.0, seeded()))
    assert torch.equal(scheduler.sample_noise(shape, seeded()), kernel.sample(shape, 1.0, seeded()))


@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_each_step_follows_the_plan(charges: torch.Tensor, solver: str) -> None:
    # At large σ, where x̂ depends on x: all end points at σ = 0 are charges, whatever the steps before.
    sigmas = [40.0, 30.0, 22.0, 16.0, 12.0, 9.0]
    scheduler, model = PoissonFlowScheduler(solver=solver), ChargeField(charges)
    x = y = scheduler.sample_prior((3, 1, 4, 4), seeded(1), dtype=torch.float64)
    scheduler.set_timesteps(sigmas=sigmas)
    history: list[torch.Tensor] = []
    for step, t in zip(plan_steps([*sigmas, 0.0], solver), scheduler.timesteps, strict=True):
        history.insert(0, posterior_mean(x, step.sigma, charges))
        x = step(x, history)
        y = scheduler.step(model(y, t).sample, t, y).prev_sample
        assert torch.allclose(x, y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_step_returns_the_posterior_mean(charges: torch.Tensor, gamma: float) -> None:
    scheduler, x = PoissonFlowScheduler(gamma=gamma), charges[:3] + 1
    scheduler.set_timesteps(sigmas=[2.0, 1.0])
    output = ChargeField(charges, gamma=gamma)(x, 2.0).sample
    denoised = scheduler.step(output, scheduler.timesteps[0], x).pred_original_sample
    assert torch.allclose(denoised, posterior_mean(x, 2.0, charges))


def test_indices_follow_the_run_and_are_reset(charges: torch.Tensor) -> None:
    scheduler, x = PoissonFlowScheduler(), charges[:3] + 0.3
    scheduler.set_timesteps(8)
    assert scheduler.index_for_timestep(123.0) == 0 and scheduler.step_index is None
    scheduler.set_begin_index(3)
    scheduler.step(torch.ones(3, 2, 4, 4), scheduler.timesteps[3], x)
    assert scheduler.begin_index == 3 and scheduler.step_index == 4
    scheduler.set_timesteps(sigmas=[30.0, 3.0])
    assert scheduler.begin_index is None and scheduler.step_index is None and scheduler.init_noise_sigma == 30


def test_heun_from_a_second_call_continues_at_the_next_step(charges: torch.Tensor) -> None:
    scheduler, model, x = PoissonFlowScheduler(solver="heun"), ChargeField(charges), charges[:3] + 0.3
    scheduler.set_timesteps(8)
    sigmas = scheduler.timesteps.unique().flip(0).tolist()
    late = scheduler.timesteps[5:].tolist()
    scheduler.set_timesteps(sigmas=sigmas[3:])
    expected = run(scheduler, model, x)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(5)
    y = x
    for t in late:  # as numbers, which both calls of a step have in common
        y = scheduler.step(model(y, t).sample, t, y).prev_sample
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_only_rounded_at_the_end(dtype: torch.dtype) -> None:
    x, output = (torch.randn(3, c, 4, 4, generator=seeded(c)).to(dtype) for c in (1, 2))
    results = []
    for kind in (dtype, torch.float32):
        scheduler = PoissonFlowScheduler(gamma=0.1)
        scheduler.set_timesteps(sigmas=[1.0, 0.7])
        results.append(scheduler.step(output.to(kind), scheduler.timesteps[0], x.to(kind)).prev_sample.to(dtype))
    assert torch.equal(*results)


def test_prior_in_half_precision_respects_max_norm() -> None:
    prior = PoissonFlowScheduler(max_norm=500.0).sample_prior((20_000, 1, 8, 8), seeded(), dtype=torch.bfloat16)
    assert prior.flatten(1).float().norm(dim=1).max() <= 500


def test_add_noise_keeps_the_dtype() -> None:
    scheduler = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=0.5)
    scheduler.set_timesteps(7)
    x, noise = torch.zeros(7, 1, 2, 2), torch.ones(7, 1, 2, 2)
    noisy = scheduler.add_noise(x.half(), noise.half(), scheduler.timesteps)
    expected = scheduler.add_noise(x, noise, scheduler.timesteps).half()
    assert noisy.dtype == torch.float16 and torch.equal(noisy, expected)


def test_a_single_step_goes_from_the_prior_to_its_mean(charges: torch.Tensor) -> None:
    scheduler = PoissonFlowScheduler(prediction_type="sample")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [40.0]
    x = charges[:2] + 1
    assert torch.equal(scheduler.step(charges[:2], scheduler.timesteps[0], x).prev_sample, charges[:2])


def test_noise_is_limited_as_in_training() -> None:
    """The perturbation objective limits the noise to the norm σ · reach at every σ."""
    reach = 4 * 192**0.5
    options = {"prediction_type": "epsilon", "sigma_data": 0.5, "sigma_max": 80.0, "max_norm": 80 * reach}
    scheduler = PoissonFlowScheduler(1.0, **options)
    assert scheduler.sample_noise((2000, 192), seeded()).norm(dim=1).max() <= 1.00001 * reach
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.1])
    assert scheduler.sample_prior((2000, 192), seeded()).norm(dim=1).max() <= 1.00001 * reach
    theirs = EDMEulerScheduler.from_config(scheduler.config)
    assert (
        PoissonFlowScheduler.from_scheduler(theirs).sample_noise((2000, 192), seeded()).norm(dim=1).max()
        <= 1.00001 * reach
    )
    field = PoissonFlowScheduler(max_norm=100.0)  # its training has another distribution of noise
    assert field.sample_noise((2000, 192), seeded()).norm(dim=1).max() > reach
