"""Compare the sample quality of all solvers at several numbers of network calls.

    python pipelines_examples/few_calls/quality_against_calls.py --model demo-output/model \\
        --data demo-output/held-out.parquet

Each solver starts from the same latents of one saved model. The script prints a table and saves a figure of two
measures against the number of network calls: the root-mean-square difference between an image and that of a run of 200
calls, and the sliced Wasserstein distance between all images and the data. The distance of the run of 200 calls is the
limit that the network itself sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import torch
from matplotlib.figure import Figure

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.source import open_images

REFERENCE_STEPS = 200
TOLERANCES = (1e-2, 1e-3, 1e-4)  # of RK45
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
        "--calls", type=int, nargs="+", default=[5, 7, 10, 15, 20, 35, 50, 100], help="numbers of network calls"
    )
    parser.add_argument("--batch_size", type=int, default=1024, help="number of images of each solver, in one batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the pipeline"
    )
    parser.add_argument("--output", type=Path, default=Path("quality-against-calls.png"), help="file of the figure")
    args = parser.parse_args(argv)

    pipe = PFGMPipeline.from_pretrained(args.model).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    size = pipe.unet.config.sample_size
    data = ImageTensors(open_images(args.data), size, center_crop=True)
    real = data.__getitems__(range(len(data)))
    shape = (args.batch_size, pipe.unet.config.in_channels, size, size)
    latents = pipe.scheduler.sample_prior(shape, torch.Generator().manual_seed(args.seed), args.device)

    def draw(**options: Any) -> tuple[int, torch.Tensor]:
        output = pipe(latents=latents, output_type="pt", **options)
        return output.nfe, output.images * 2 - 1

    def measure(nfe: int, images: torch.Tensor) -> tuple[int, float, float]:
        error = (images - reference).flatten(1).square().mean(1).sqrt().mean().item()
        return nfe, error, sliced_wasserstein(images, real)

    _, reference = draw(num_inference_steps=REFERENCE_STEPS)
    reference_distance = sliced_wasserstein(reference, real)
    results: dict[str, list[tuple[int, float, float]]] = {}
    for name, options in SOLVERS.items():
        pipe.scheduler = PoissonFlowScheduler.from_config(config, **options)
        # n steps of Heun cost 2n − 1 calls
        steps = [(calls + 1) // 2 if name == "heun" else calls for calls in args.calls]
        results[name] = [measure(*draw(num_inference_steps=count)) for count in steps]
    results["RK45"] = [measure(*draw(tolerance=tolerance)) for tolerance in TOLERANCES]

    print(f"{args.batch_size} generated images, {len(real)} images of data")
    print(f"Sliced Wasserstein distance of a run of {REFERENCE_STEPS} calls: {reference_distance:.4f}\n")
    print(f"{'solver':<24} calls  error   sliced Wasserstein distance")
    for name, rows in results.items():
        for nfe, error, distance in rows:
            print(f"{name:<24} {nfe:5d}  {error:.4f}  {distance:.4f}")

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in results.items():
        calls, errors, distances = zip(*rows, strict=True)
        left.plot(calls, errors, marker="o", markersize=4, label=name)
        right.plot(calls, distances, marker="o", markersize=4)
    right.axhline(reference_distance, color="gray", linestyle=":", label=f"{REFERENCE_STEPS} calls")
    left.set(xlabel="network calls", ylabel=f"RMS difference from {REFERENCE_STEPS} calls", xscale="log", yscale="log")
    right.set(xlabel="network calls", ylabel="sliced Wasserstein distance to data", xscale="log", yscale="log")
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
