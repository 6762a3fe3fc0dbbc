"""Likelihoods by the pipeline, and of a data set by the script."""

import json
import math
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from diffusers_pfgm import (
    ChargeField,
    Parameterization,
    PFGMLikelihoodPipeline,
    PoissonFlow,
    PoissonFlowScheduler,
    PoissonKernel,
)
from diffusers_pfgm.examples.digits import split_digits, write_parquet
from diffusers_pfgm.flow.dequantization import dequantize
from diffusers_pfgm.training.data.order import position_generators
from diffusers_pfgm.training.run import likelihood_arguments, likelihood_evaluation
from diffusers_pfgm.training.run.records import Records, read_records
from tests.networks import ExactNetwork, make_tiny_pipeline, make_tiny_unet, seeded

SCHEDULER = PoissonFlowScheduler(sigma_min=0.3, sigma_max=2000.0)


def pipeline_of(network: torch.nn.Module, scheduler: PoissonFlowScheduler = SCHEDULER) -> PFGMLikelihoodPipeline:
    pipe = PFGMLikelihoodPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_images(count: int) -> torch.Tensor:
    """Images (count, 1, 4, 4) in [0, 1] with 256 pixel values."""
    return torch.randint(256, (count, 1, 4, 4), generator=seeded()).double() / 255


@pytest.mark.slow
def test_bits_are_those_of_the_exact_density() -> None:
    images = random_images(6)
    charges = images[:3] * 2 - 1
    scheduler = PoissonFlowScheduler(sigma_min=0.3, sigma_max=2000.0, prediction_type="sample")
    pipe = pipeline_of(ChargeField(charges, prediction_type="sample"), scheduler)
    generators = [seeded(i) for i in range(6)]
    output = pipe(images, divergence="exact", generator=generators, batch_size=4)
    points = dequantize(images * 2 - 1, 256, [seeded(i) for i in range(6)])
    kernels = [PoissonKernel(1.0).log_prob(points - charge, 0.3) for charge in charges]
    expected = torch.stack(kernels).logsumexp(0) - math.log(3)
    assert (output.log_prob - expected).abs().max() < 5e-3 and (output.standard_error == 0).all()
    # A bin is 2/255 wide
    assert torch.allclose(output.bits_per_dim, -(expected / 16 + math.log(2 / 255)) / math.log(2), atol=1e-3)
    assert output.latents.shape == (6, 1, 4, 4) and output.nfe > 20
    assert (output.bits_per_dim[:3] < output.bits_per_dim[3:].min()).all()  # the charges are more likely


@pytest.mark.slow
def test_images_are_accepted_in_every_form() -> None:
    images = random_images(2)
    pipe = pipeline_of(ChargeField(images * 2 - 1))
    pil = [Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()) for image in images]
    arrays = images.permute(0, 2, 3, 1).numpy()
    log_probs = [pipe(each, None, 10, "exact", generator=seeded()).log_prob for each in (images, pil, arrays)]
    assert torch.allclose(log_probs[0], log_probs[1], atol=1e-3) and torch.allclose(log_probs[0], log_probs[2])
    whole = pipe(images, None, 10, num_probes=4, return_dict=False, generator=seeded(), num_levels=None)
    assert len(whole) == 5 and whole[1].shape == (2,)  # no bits per dimension without `num_levels`


@pytest.mark.slow
def test_likelihood_under_a_class() -> None:
    charges = torch.stack([torch.full((1, 4, 4), -0.6), torch.full((1, 4, 4), 0.6)]).double()
    network = ExactNetwork(charges, Parameterization("sample"), 1.0, torch.tensor([0, 1]))
    scheduler = PoissonFlowScheduler(sigma_min=0.3, sigma_max=2000.0, prediction_type="sample")
    pipe = PFGMLikelihoodPipeline(network, scheduler, {0: "dark", 1: "bright"})
    pipe.set_progress_bar_config(disable=True)
    images = charges / 2 + 0.5
    dark, right, any_class = (
        pipe(images, labels, 40, "exact", num_levels=None).log_prob for labels in ("dark", ["dark", "bright"], None)
    )
    assert abs(right[0] - right[1]) < 0.01 and dark[1] < right[1] - 5
    assert (right - any_class - math.log(2)).abs().max() < 0.1


@pytest.mark.slow
def test_a_saved_pipeline_computes_likelihoods(tmp_path: Path) -> None:
    make_tiny_pipeline(prediction_type="sample").save_pretrained(tmp_path)
    pipe = PFGMLikelihoodPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    images = torch.randint(256, (2, 1, 8, 8), generator=seeded()) / 255
    output = pipe(images, num_inference_steps=8, num_probes=2, generator=seeded())
    flow = PoissonFlow(pipe.unet, pipe.scheduler)
    generator = seeded()
    points = dequantize(images * 2 - 1, 256, generator)
    assert torch.equal(output.log_prob, flow.log_prob(points, 8, "hutchinson", 2, generator).log_prob)
    assert output.standard_error.shape == (2,)


def test_bad_requests_are_explained() -> None:
    pipe = make_tiny_pipeline()
    pipe = pipeline_of(pipe.unet, pipe.scheduler)
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"`guidance_scale` = 2.0 would ask for the likelihood of a guided sampler"):
        pipe(images, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`batch_size` must be a whole number >= 1, but is 0"):
        pipe(images, batch_size=0)
    with pytest.raises(ValueError, match="`num_probes` must be a whole number >= 1, but is 0"):
        pipe(images, num_probes=0)
    with pytest.raises(ValueError, match="`num_levels` must be a whole number >= 2"):
        pipe(images, num_levels=1)
    with pytest.raises(ValueError, match="`class_labels` were given, but the network has no classes"):
        pipe(images, class_labels=3)
    with pytest.raises(ValueError, match="`generator` is a list of 3, but there are 2 images"):
        pipe(images, generator=[seeded()] * 3)


def test_batches_have_about_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, sizes = make_tiny_pipeline(prediction_type="sample"), []
    pipe.unet.register_forward_pre_hook(lambda unet, inputs: sizes.append(len(inputs[0])))
    pipe = pipeline_of(pipe.unet, pipe.scheduler)
    images, options = torch.rand(10, 1, 8, 8, generator=seeded()), {"num_inference_steps": 1, "num_levels": None}
    for batch_size, expected in ((None, {10}), (10, {10}), (9, {5}), (4, {4, 2})):
        sizes.clear()
        pipe(images, generator=seeded(), batch_size=batch_size, **options)
        assert set(sizes) == expected
    monkeypatch.setattr("diffusers_pfgm.flow.densities.GRAPH_NUMBERS", 64 * 9)
    sizes.clear()
    pipe(images, generator=seeded(), **options)
    assert set(sizes) == {5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("likelihood")
    make_tiny_pipeline(prediction_type="sample").save_pretrained(folder / "model")
    write_parquet(split_digits()[1][:10], folder / "digits.parquet")
    return folder


def options(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        f"--model={folder / 'model'}",
        f"--dataset_name={folder / 'digits.parquet'}",
        f"--output={output}",
        "--num_inference_steps=8",
        *more,
    ]


def evaluate(arguments: list[str]) -> None:
    likelihood_evaluation.main(likelihood_arguments.parse_args(None, arguments))


@pytest.mark.slow
def test_an_interrupted_data_set_is_continued(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(options(folder, tmp_path / "whole.jsonl"))
    evaluate(options(folder, tmp_path / "parts.jsonl", "--max_images=4", "--batch_size=3"))
    with (tmp_path / "parts.jsonl").open("a") as file:
        file.write('{"event": "image", "step": 4, "log_')  # cut off by a kill
    capsys.readouterr()
    evaluate(options(folder, tmp_path / "parts.jsonl", "--batch_size=5"))
    whole, parts = (read_records(tmp_path / name, "image") for name in ("whole.jsonl", "parts.jsonl"))
    assert [record["step"] for record in parts] == list(range(10))
    rows = [record["image"] for record in parts]
    assert rows == [record["image"] for record in whole] and sorted(rows) == list(range(10))
    assert sorted(rows[:4]) != [0, 1, 2, 3]  # in data that are sorted by class these would be of one class
    for first, second in zip(whole, parts, strict=True):
        assert first["log_prob"] == pytest.approx(second["log_prob"], rel=1e-4)
    bits = torch.tensor([record["bits_per_dim"] for record in parts], dtype=torch.float64)
    printed = capsys.readouterr().out
    assert f"{bits.mean():.4f} ± {bits.std() / math.sqrt(10):.4f} bits/dim" in printed and "10 images" in printed


@pytest.mark.parametrize(("steps", "left_out"), [(None, ""), (8, ", without the error of the fixed steps")])
def test_the_summary_says_what_the_estimated_error_contains(
    steps: int | None, left_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Records(tmp_path / "likelihood.jsonl")
    records.write("settings", 0, settings={"num_inference_steps": steps})
    for index, error in enumerate((0.1, 0.3)):
        records.write("image", index, log_prob=1.0, bits_per_dim=2.0, truncation=error, nfe=9)
    likelihood_evaluation.print_summary(records.path)
    line = f"estimated error of the log-density of one image{left_out}: 0.2 nats on average, at most 0.3 nats\n"
    assert line in capsys.readouterr().out


def test_a_rejected_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.jsonl"
    with pytest.raises(ValueError, match="`num_probes` must be a multiple of 3"):
        evaluate(options(folder, output, "--divergence=hutch++"))
    assert not output.exists()
    with pytest.raises(ValueError, match=r"`--output` .* is a folder. Name a file"):
        evaluate(options(folder, tmp_path))
    # The folder of the file need not exist, and a full disk may have left a file without a line.
    output.touch()
    for path in (tmp_path / "new" / "o.jsonl", output):
        evaluate(options(folder, path, "--divergence=hutch++", "--num_probes=3", "--max_images=1"))


@pytest.mark.slow
def test_classes_are_matched_by_name(folder: Path, tmp_path: Path) -> None:
    unet = make_tiny_unet(out_channels=1, num_class_embeds=3)
    pipe = PFGMLikelihoodPipeline(unet, PoissonFlowScheduler(prediction_type="sample"), {0: "a", 1: "b", 2: "c"})
    pipe.save_pretrained(tmp_path / "model")
    images = datasets.load_dataset("parquet", data_files=str(folder / "digits.parquet"), split="train").select([0, 1])
    log_probs = []
    for labels in (["c", "b"], [2, 1]):
        column = datasets.ClassLabel(names=["a", "b", "c"]) if labels == [2, 1] else None
        images.add_column("label", labels, feature=column).to_parquet(tmp_path / "labelled.parquet")
        arguments = options(folder, tmp_path / f"{labels[0]}.jsonl", "--label_column=label")
        arguments[:2] = [f"--model={tmp_path / 'model'}", f"--dataset_name={tmp_path / 'labelled.parquet'}"]
        evaluate(arguments)
        log_probs.append([record["log_prob"] for record in read_records(tmp_path / f"{labels[0]}.jsonl", "image")])
    assert log_probs[0] == log_probs[1]
    images.add_column("label", ["c", "z"]).to_parquet(tmp_path / "labelled.parquet")
    unknown = [*arguments, f"--output={tmp_path / 'unknown.jsonl'}"]
    with pytest.raises(ValueError, match=r"`--label_column` 'label': `class_labels` has 'z', but the classes are"):
        evaluate(unknown)
    assert not (tmp_path / "unknown.jsonl").exists()
    images.add_column("label", ["b", "c"]).to_parquet(tmp_path / "labelled.parquet")
    with pytest.raises(ValueError, match=r"other settings: data.labels was '\w+' and is '\w+'"):
        evaluate(arguments)


def test_figures_of_other_settings_stay(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "digits.parquet"
    shutil.copy(folder / "digits.parquet", data)
    arguments = options(folder, tmp_path / "figures.jsonl", "--max_images=1", f"--dataset_name={data}")
    evaluate(arguments)
    before = (tmp_path / "figures.jsonl").read_text()
    with pytest.raises(ValueError, match=r"holds results of other settings: seed was 0 and is 1. Pass these again"):
        evaluate([*arguments, "--seed=1"])
    write_parquet(split_digits()[0][:10], data)  # other images under the same name
    with pytest.raises(ValueError, match=r"other settings: data.images was '\w+' and is '\w+'; settings that"):
        evaluate(arguments)
    assert (tmp_path / "figures.jsonl").read_text() == before
    (tmp_path / "own.txt").write_text(json.dumps({"event": "mine", "step": 0}))
    with pytest.raises(ValueError, match="exists and is not a file of this script"):
        evaluate(options(folder, tmp_path / "own.txt"))


@pytest.mark.parametrize("size", [(8, 4), None])
def test_networks_of_any_size_are_evaluated(folder: Path, tmp_path: Path, size: tuple[int, int] | None) -> None:
    pipe = make_tiny_pipeline(sample_size=size or 8, prediction_type="sample")
    pipe.unet.register_to_config(sample_size=size)
    pipe.save_pretrained(tmp_path / "model")
    height, width = size or (8, 8)
    pixels = torch.randint(0, 256, (2, 1, height, width), generator=seeded(), dtype=torch.uint8)
    for index, image in enumerate(pixels):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{index}.png")
    arguments = options(folder, tmp_path / "log_probs.jsonl")[2:]
    evaluate([f"--model={tmp_path / 'model'}", f"--train_data_dir={tmp_path / 'images'}", *arguments])
    log_probs = [record["log_prob"] for record in read_records(tmp_path / "log_probs.jsonl", "image")]
    likelihood = PFGMLikelihoodPipeline.from_pretrained(tmp_path / "model")
    expected = likelihood(pixels.float() / 255, None, 8, "hutchinson", 1, position_generators(0, 0, 2))
    assert log_probs == pytest.approx(expected.log_prob.tolist(), rel=1e-5)


def test_the_accelerator_is_detected_in_torch_2_6(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cuda", "mps"):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda name=device: torch.device(name))
        assert likelihood_evaluation.default_device() == device
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert likelihood_evaluation.default_device() == "cpu"
