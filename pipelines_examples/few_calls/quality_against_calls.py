"""Compare the sample quality of all solvers at several numbers of network calls, and that of a consistency model.

    python pipelines_examples/few_calls/quality_against_calls.py --model demo-output/model \\
        --data demo-output/held-out.parquet --consistency_model demo-tuned --searched 5 6

Each solver starts from the same latents of one saved model. The script prints a table and saves a figure of two
measures against the number of network calls: the root-mean-square difference between an image and that of a run of 200
calls, and the sliced Wasserstein distance between all images and the data. The distance of the run of 200 calls is the
limit that the network itself sets. The table has the time per image too.

--consistency_model adds a model of training/tune_consistency.py that was tuned from the first one. --searched adds runs
whose noise levels are searched for one number of calls, which takes minutes for each. --diffusers_solvers adds three
solvers of diffusers at the noise levels of EDM, and our solver at the same ones. --features replaces the sliced
Wasserstein distance by the Fréchet distance in the features of a network. A model with classes draws all classes in
turn.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import torch
from matplotlib.figure import Figure

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler, fit_sigmas
from diffusers_pfgm.examples.diffusers_solvers import DIFFUSERS_SOLVERS, integrate_by_diffusers, karras_sigmas
from diffusers_pfgm.metrics.feature_networks import load_feature_network
from diffusers_pfgm.metrics.frechet_distance import FrechetDistance
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.physics.denoiser import Denoiser
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import open_images

REFERENCE_STEPS = 200
TOLERANCES = (1e-2, 1e-3, 1e-4)  # the tolerances of RK45
SOLVERS: dict[str, dict[str, Any]] = {
    "multistep, fitted": {},
    "multistep, equal ratios": {"sigma_knots": None},
    "heun": {"sigma_knots": None, "solver": "heun"},
    "euler": {"sigma_knots": None, "solver": "euler"},
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a pipeline")
    parser.add_argument("--data", required=True, help="images to compare with, a folder or a parquet file")
    parser.add_argument(
        "--calls", type=int, nargs="+", default=[1, 2, 3, 5, 7, 10, 15, 20, 35, 50], help="numbers of network calls"
    )
    parser.add_argument("--consistency_model", help="folder or Hub id of a model that was tuned from the first")
    parser.add_argument("--searched", type=int, nargs="*", default=[], help="calls whose noise levels are searched")
    parser.add_argument("--diffusers_solvers", action="store_true", help="compare with three solvers of diffusers")
    parser.add_argument("--features", help="feature network of the Fréchet distance: inception, mnist or a backbone")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="guidance of a model with classes")
    parser.add_argument("--batch_size", type=int, default=1024, help="number of images of each solver, in one batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the pipeline"
    )
    parser.add_argument("--output", type=Path, default=Path("quality-against-calls.png"), help="file of the figure")
    args = parser.parse_args(argv)
    if args.searched and args.guidance_scale != 1:
        parser.error("--searched fits the network without guidance: leave out --guidance_scale")

    pipe = PFGMPipeline.from_pretrained(args.model).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    size = pipe.unet.config.sample_size
    data = ImageTensors(open_images(args.data), size, center_crop=True)
    real = data.__getitems__(range(len(data)))
    shape = (args.batch_size, pipe.unet.config.in_channels, size, size)
    latents = pipe.scheduler.sample_prior(shape, torch.Generator().manual_seed(args.seed), args.device)

    classes = pipe.config.id2label
    labels = None if classes is None else [index % len(classes) for index in range(args.batch_size)]

    if args.features:
        measure_name = "Fréchet distance"
        measure_distance: Callable[[torch.Tensor], float] = FrechetDistance(load_feature_network(args.features), real)
    else:
        measure_name = "sliced Wasserstein distance"
        measure_distance = functools.partial(sliced_wasserstein, data=real)

    def draw(pipe: PFGMPipeline, **options: Any) -> tuple[int, torch.Tensor, float]:
        if labels is not None:
            options |= {"class_labels": labels, "guidance_scale": args.guidance_scale}
        start = time.perf_counter()
        output = pipe(latents=latents, generator=torch.Generator().manual_seed(1), output_type="pt", **options)
        images = output.images.cpu()
        return output.nfe, images * 2 - 1, (time.perf_counter() - start) / len(images)

    def draw_by_diffusers(name: str, sigmas: list[float]) -> tuple[int, torch.Tensor, float]:
        flow = pipe.scheduler
        model_kwargs = pipe.prepare_class_labels(labels, args.batch_size, latents.device)
        denoiser = Denoiser(
            pipe.prepare_model(flow, labels, model_kwargs, args.guidance_scale), flow.parameterization, pipe.unet.dtype
        )
        start = time.perf_counter()
        with torch.no_grad():
            images = integrate_by_diffusers(name, denoiser, flow.move_to_prior(latents), sigmas).clamp(-1, 1).cpu()
        return denoiser.nfe, images, (time.perf_counter() - start) / len(images)

    def measure(nfe: int, images: torch.Tensor, seconds: float) -> tuple[int, float, float, float]:
        error = (images - reference).flatten(1).square().mean(1).sqrt().mean().item()
        return nfe, error, measure_distance(images), 1000 * seconds

    _, reference, _ = draw(pipe, num_inference_steps=REFERENCE_STEPS)
    reference_distance = measure_distance(reference)
    results: dict[str, list[tuple[int, float, float, float]]] = {}
    for name, options in SOLVERS.items():
        pipe.scheduler = PoissonFlowScheduler.from_config(config, **options)
        # n steps of Heun cost 2n − 1 calls
        steps = [(calls + 1) // 2 for calls in args.calls if calls % 2] if name == "heun" else args.calls
        results[name] = [measure(*draw(pipe, num_inference_steps=count)) for count in steps]
    pipe.scheduler = PoissonFlowScheduler.from_config(config)
    results["RK45"] = [measure(*draw(pipe, tolerance=tolerance)) for tolerance in TOLERANCES]
    if args.diffusers_solvers:
        sigma_max, sigma_min = pipe.scheduler.sigma_range
        spacings = [karras_sigmas(sigma_max, sigma_min, calls) for calls in args.calls]
        results["multistep, EDM's levels"] = [measure(*draw(pipe, sigmas=sigmas)) for sigmas in spacings]
        for name in DIFFUSERS_SOLVERS:
            results[name] = [measure(*draw_by_diffusers(name, sigmas)) for sigmas in spacings]
    for calls in args.searched:
        options = {} if labels is None else {"class_labels": torch.arange(512, device=args.device) % len(classes)}
        generator = torch.Generator().manual_seed(2)
        pipe.scheduler = fit_sigmas(
            pipe.unet, pipe.scheduler, shape[1:], generator, 512, 128, num_inference_steps=calls, **options
        )
        results.setdefault("multistep, searched", []).append(measure(*draw(pipe, num_inference_steps=calls)))
    if args.consistency_model is not None:
        tuned = PFGMPipeline.from_pretrained(args.consistency_model).to(args.device)
        tuned.set_progress_bar_config(disable=True)
        counts = range(1, len(tuned.scheduler.config.consistency_sigmas) + 1)
        results["consistency model"] = [measure(*draw(tuned, num_inference_steps=count)) for count in counts]

    print(f"{args.batch_size} generated images, {len(real)} images of data")
    print(f"The {measure_name} of a run of {REFERENCE_STEPS} calls: {reference_distance:.4f}\n")
    print(f"{'solver':<24} calls  error   {measure_name:<27}  ms per image")
    for name, rows in results.items():
        for nfe, error, distance, milliseconds in rows:
            print(f"{name:<24} {nfe:5d}  {error:.4f}  {distance:<27.4f}  {milliseconds:.2f}")

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in results.items():
        if not rows:  # Heun's method has no run of an even number of calls
            continue
        calls, errors, distances, _ = zip(*rows, strict=True)
        left.plot(calls, errors, marker="o", markersize=4, label=name)
        right.plot(calls, distances, marker="o", markersize=4)
    right.axhline(reference_distance, color="gray", linestyle=":", label=f"{REFERENCE_STEPS} calls")
    left.set(xlabel="network calls", ylabel=f"RMS difference from {REFERENCE_STEPS} calls", xscale="log", yscale="log")
    right.set(xlabel="network calls", ylabel=f"{measure_name} to data", xscale="log", yscale="log")
    for axes in (left, right):
        axes.set_xticks(args.calls, [str(calls) for calls in args.calls])
        axes.minorticks_off()
    right.set_yticks([reference_distance * factor for factor in (1, 1.2, 1.5, 2, 4, 8)])
    right.yaxis.set_major_formatter("{x:.3f}")
    left.legend(frameon=False)
    right.legend(frameon=False)
    figure.savefig(args.output, dpi=110)
    print(f"\nFigure: {args.output}")


if __name__ == "__main__":
    main()
