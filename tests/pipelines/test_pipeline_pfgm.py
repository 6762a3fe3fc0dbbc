"""The pipeline behaves as a diffusers pipeline, is saved and loaded, and explains wrong arguments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_pfgm import ChargeField, Inpainting, PFGMInversePipeline, PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.pipelines import saving
from tests.networks import make_tiny_pipeline, make_tiny_unet, seeded
from tests.warm_python import WarmPython


def test_exact_field_draws_its_charges(digits: torch.Tensor) -> None:
    charges = digits[:20].float()
    pipe = PFGMPipeline(ChargeField(charges), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    images = pipe(64, 40, seeded(), output_type="pt").images * 2 - 1
    nearest = torch.cdist(images.flatten(1), charges.flatten(1)).min(1)
    assert nearest.values.max() < 0.01 and len(nearest.indices.unique()) > 12


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("sample_size", [8, (8, 12)])
def test_any_channels_and_sizes(channels: int, sample_size: int | tuple[int, int]) -> None:
    pipe = make_tiny_pipeline(channels, sample_size)
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    pil = pipe(2, 3, seeded())
    assert pil.nfe == 3 and all(image.size == (width, height) for image in pil.images)
    array = pipe(2, 3, seeded(), output_type="np").images
    tensor = pipe(2, 3, seeded(), output_type="pt").images
    assert array.shape == (2, height, width, channels) and tensor.shape == (2, channels, height, width)
    assert np.allclose(array, tensor.permute(0, 2, 3, 1).numpy()) and array.min() >= 0 and array.max() <= 1
    assert np.array_equal(np.asarray(pil.images[0]), (array[0] * 255).round().astype("uint8").squeeze())


@pytest.mark.parametrize("prediction_type", ["field", "sample", "epsilon", "v_prediction"])
def test_every_prediction_type_runs(prediction_type: str) -> None:
    assert make_tiny_pipeline(prediction_type=prediction_type)(2, 3, seeded(), output_type="pt").images.isfinite().all()


def test_each_generator_makes_its_image_in_any_batch() -> None:
    pipe, before = make_tiny_pipeline(), torch.get_rng_state()
    whole = pipe(4, 5, [seeded(i) for i in range(4)], output_type="pt").images
    for first, last in ((0, 1), (1, 3), (3, 4)):
        part = pipe(last - first, 5, [seeded(i) for i in range(first, last)], output_type="pt").images
        assert torch.allclose(part, whole[first:last], atol=1e-5)
    assert torch.equal(before, torch.get_rng_state())


def test_latents_replace_the_prior() -> None:
    pipe = make_tiny_pipeline()
    latents = pipe.scheduler.sample_prior((3, 1, 8, 8), seeded(5))
    output = pipe(latents=latents, num_inference_steps=4, output_type="pt")
    assert torch.equal(output.images, pipe(3, 4, seeded(5), output_type="pt").images)


def test_user_sigmas_and_tuples() -> None:
    pipe = make_tiny_pipeline()
    images, nfe = pipe(2, generator=seeded(), sigmas=[40.0, 4.0, 0.4], output_type="pt", return_dict=False)
    assert nfe == 3 and images.shape == (2, 1, 8, 8)


def test_callback_is_called_after_each_step_and_may_change_the_latents() -> None:
    pipe, records = make_tiny_pipeline(), []

    def zero(pipe: PFGMPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        records.append((step, timestep.item(), sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    images = pipe(
        2,
        4,
        seeded(),
        output_type="pt",
        callback_on_step_end=zero,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    ).images
    assert [step for step, *_ in records] == [0, 1, 2, 3] and records[0][1:] == (
        40.0,
        ["latents", "pred_original_sample"],
    )
    assert torch.equal(images, torch.full_like(images, 0.5))


def test_progress_bar_counts_calls(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = make_tiny_pipeline()
    pipe.set_progress_bar_config()
    pipe(1, 7, seeded())
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_from_a_folder(tmp_path: Path, dtype: torch.dtype) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path)
    pipe = PFGMPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == dtype
    images = pipe(2, 5, seeded(), output_type="pt").images
    full = make_tiny_pipeline()(2, 5, seeded(), output_type="pt").images
    # Only the network is in half precision, so the difference is its rounding error and not that of the state.
    assert images.dtype == torch.float32 and (images - full).abs().mean() < 0.05


def test_fresh_process_draws_the_same_bits(python: WarmPython, tmp_path: Path) -> None:
    pipe = make_tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    here = pipe(3, 6, seeded(11), output_type="pt").images
    script = f"""
import torch
from diffusers_pfgm import PFGMPipeline
pipe = PFGMPipeline.from_pretrained({str(tmp_path / "model")!r})
images = pipe(3, 6, torch.Generator().manual_seed(11), output_type="pt").images
torch.save(images, {str(tmp_path / "images.pt")!r})
"""
    done = python.run("-c", script)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "images.pt", weights_only=True), here)


def test_saved_folder_names_the_package_and_holds_safetensors(tmp_path: Path) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers_pfgm", "PoissonFlowScheduler"]
    assert index["_class_name"] == ["pipeline", "PFGMPipeline"]
    weights = [path.name for path in (tmp_path / "unet").iterdir() if path.suffix != ".json"]
    assert weights == ["diffusion_pytorch_model.safetensors"]
    assert type(PFGMPipeline.from_pretrained(tmp_path).scheduler) is PoissonFlowScheduler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1, but is 0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be a whole number >= 1, but is 0"),
        ({"num_inference_steps": None}, "`num_inference_steps` must be a whole number >= 1, but is None"),
        ({"output_type": "png"}, "`output_type` must be 'pil', 'np', 'pt' or 'latent', but is 'png'"),
        ({"generator": [seeded()], "batch_size": 2}, "list of 1, but the batch has 2"),
        (
            {"latents": torch.zeros(2, 1, 8, 9)},
            r"`latents` must have the shape \(2, 1, 8, 8\) .* but have \(2, 1, 8, 9\)",
        ),
        ({"latents": torch.zeros(2, 1, 8, 8), "batch_size": 3}, r"shape \(3, 1, 8, 8\)"),
        ({"latents": torch.full((1, 1, 8, 8), np.nan)}, "`latents` must be finite, but index 0 holds"),
        ({"latents": np.zeros((1, 1, 8, 8))}, "`latents` must be a tensor of real numbers, but is ndarray"),
        ({"latents": torch.zeros(1, 1, 8, 8) * 1j}, r"tensor of real numbers, but is torch\.complex64"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"must be among .* but has \['noise'\]"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tiny_pipeline()(**arguments)


def test_user_sigmas_start_from_the_prior_at_the_first_sigma() -> None:
    # One charge in four is apart. Latents with norms too small for the first noise level would reach it too often.
    charges = torch.tensor([[-1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1], [1.0, 0.0]]).view(4, 2, 1, 1)
    pipe = PFGMPipeline(ChargeField(charges), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    sigmas = np.geomspace(20, 0.01, 40).tolist()
    images = pipe(20_000, generator=seeded(), sigmas=sigmas, output_type="pt").images
    assert (images[:, 0] > 0.5).float().mean().item() == pytest.approx(0.25, abs=0.015)
    latents = pipe.scheduler.sample_prior((20_000, 2, 1, 1), seeded())
    assert latents.flatten(1).norm(dim=1).median().item() == pytest.approx(20 * 3**0.5, rel=0.05)


def test_a_network_without_a_size_takes_it_from_the_latents() -> None:
    pipe = make_tiny_pipeline()
    pipe.unet.register_to_config(sample_size=None)
    assert pipe(latents=torch.randn(2, 1, 16, 8), num_inference_steps=2, output_type="pt").images.shape == (2, 1, 16, 8)
    message = (
        r"`unet` has no `sample_size`. Set it by `pipe.unet.register_to_config\(sample_size=\(height.* pass `latents`"
    )
    restore, operator = PFGMInversePipeline(**pipe.components), Inpainting(torch.ones(1, 1))
    restore.set_progress_bar_config(disable=True)
    measurement = torch.zeros(2, 1, 16, 8)
    for takes in (pipe, lambda: restore(measurement, operator)):
        with pytest.raises(ValueError, match=message):
            takes()
    pipe.unet.register_to_config(sample_size=(16, 8))
    assert restore(measurement, operator, num_inference_steps=2).samples.shape == (2, 1, 16, 8)


def test_points_come_out_as_tensors_only() -> None:
    pipe = PFGMPipeline(ChargeField(torch.randn(9, 5)), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    assert pipe(4, output_type="pt").images.shape == (4, 5)
    with pytest.raises(ValueError, match=r"output_type 'np' is for images \(B, C, H, W\), not \(4, 5\)"):
        pipe(4, output_type="np")


def test_a_float16_network_gets_no_infinity() -> None:
    config = make_tiny_unet().config
    scheduler = PoissonFlowScheduler(aug_dim=0.3, prior="plane")  # radii far beyond 65,504
    inputs: list[torch.Tensor] = []

    class Network(torch.nn.Module):
        dtype, device = torch.float16, torch.device("cpu")

        def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            inputs.append(sample)
            return (torch.cat([0 * sample, sample * 0 - 1], dim=1),)

    network = Network()
    network.config = config
    pipe = PFGMPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    for options in ({"num_inference_steps": 3}, {"tolerance": 0.1}):
        assert pipe(64, generator=seeded(), output_type="pt", **options).images.isfinite().all()
    assert all(sample.isfinite().all() and sample.dtype == torch.float16 for sample in inputs)
    assert inputs[0].abs().max() == torch.finfo(torch.float16).max


def test_a_network_of_the_wrong_kind_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PFGMPipeline(make_tiny_unet(1, 1), PoissonFlowScheduler())
    with pytest.raises(ValueError, match=r"`unet` returns 1 channels for 1, but prediction_type 'field' .* needs 2"):
        pipe()
    with pytest.raises(ValueError, match="output_type 'pil' cannot show 5 channels"):
        make_tiny_pipeline(channels=5)()
    for field in (ChargeField(torch.zeros(2, 1, 4, 4), gamma=1.0), ChargeField(torch.zeros(2, 1, 4, 4), aug_dim=2.0)):
        with pytest.raises(ValueError, match=r"of the field is .*, but that of the scheduler is"):
            PFGMPipeline(field, PoissonFlowScheduler())()
    with pytest.raises(
        ValueError, match="`unet` returns 2 channels for 1, but prediction_type 'epsilon' of the scheduler needs 1"
    ):
        PFGMPipeline(make_tiny_unet(), DDPMScheduler())()
    pipe = PFGMPipeline(ChargeField(torch.zeros(2, 1, 4, 4)), PoissonFlowScheduler())
    created: list[str] = []
    monkeypatch.setattr(saving, "create_repo", lambda repo_id, **_: created.append(repo_id))
    for save in (pipe.save_pretrained, pipe.push_to_hub):
        with pytest.raises(ValueError, match="ChargeField, which has nothing to save"):
            save(tmp_path / "charges")
    assert not created  # no empty repository


def test_twenty_steps_by_default() -> None:
    assert make_tiny_pipeline()(1, output_type="pt").nfe == 20


def test_heun_counts_both_of_its_calls() -> None:
    pipe = make_tiny_pipeline()
    pipe.scheduler = PoissonFlowScheduler(solver="heun")
    assert pipe(1, 4, seeded(), output_type="pt").nfe == 7


def test_callback_may_return_none() -> None:
    pipe, names = make_tiny_pipeline(), []
    expected = pipe(2, 4, seeded(), output_type="pt").images
    images = pipe(
        2, 4, seeded(), output_type="pt", callback_on_step_end=lambda *args: names.append(list(args[3]))
    ).images
    assert torch.equal(images, expected) and names == [["latents"]] * 4


def test_one_callback_tensor_may_be_named_alone() -> None:
    pipe, names = make_tiny_pipeline(), []
    record = lambda *args: names.append(list(args[3]))  # noqa: E731
    pipe(1, 2, seeded(), callback_on_step_end=record, callback_on_step_end_tensor_inputs="pred_original_sample")
    assert names == [["pred_original_sample"]] * 2


@pytest.mark.parametrize("aug_dim", [None, float("inf")])
def test_both_names_of_infinity_fit(aug_dim: float | None) -> None:
    field = ChargeField(torch.zeros(2, 1, 4, 4), aug_dim)
    pipe = PFGMPipeline(field, PoissonFlowScheduler(aug_dim=None))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(1, 2, seeded(), output_type="pt").images.isfinite().all()


def test_half_precision_latents_are_stepped_in_float32() -> None:
    pipe = make_tiny_pipeline()
    latents = pipe.scheduler.sample_prior((2, 1, 8, 8), seeded(5)).half()
    images = pipe(latents=latents, num_inference_steps=4, output_type="pt").images
    assert images.dtype == torch.float32
    assert torch.equal(images, pipe(latents=latents.float(), num_inference_steps=4, output_type="pt").images)


def test_network_gets_scaled_input() -> None:
    scheduler, deviations = PoissonFlowScheduler(None, 0.002, 80.0, "epsilon", sigma_data=0.5), []
    pipe = PFGMPipeline(make_tiny_unet(1, 1), scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.register_forward_pre_hook(lambda module, args: deviations.append(args[0].std().item()))
    pipe(64, 1, seeded(), output_type="pt")
    assert deviations == [pytest.approx(1.0, rel=0.05)]


def test_batch_size_is_a_whole_number() -> None:
    with pytest.raises(ValueError, match=r"`batch_size` must be a whole number >= 1, but is 2\.5"):
        make_tiny_pipeline()(2.5, 2)  # type: ignore[arg-type]


def test_offloaded_models_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, calls = make_tiny_pipeline(), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: calls.append(1))
    pipe(1, 2, seeded())
    assert calls == [1]
