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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import torch
from matplotlib.figure import Figure

from diffusers_pfgm import PFGMPipeline, PoissonFlowScheduler, fit_sigmas
from diffusers_pfgm.examples.diffusers_solvers import DIFFUSERS_SOLVERS, draw_by_diffusers, karras_sigmas
from diffusers_pfgm.examples.images import load_images
from diffusers_pfgm.metrics.feature_networks import load_feature_network
from diffusers_pfgm.metrics.frechet_distance import FrechetDistance
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.pipelines.class_conditioning import Label
from diffusers_pfgm.training.run.option_types import integer, positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.training.run.tuning_checks import check_same_kind
from diffusers_pfgm.utils.output_file import figure_file

REFERENCE_STEPS = 200
TOLERANCES = (1e-2, 1e-3, 1e-4)  # the tolerances of RK45
SOLVERS: dict[str, dict[str, Any]] = {
    "multistep, fitted": {},
    "multistep, equal ratios": {"sigma_knots": None},
    "heun": {"sigma_knots": None, "solver": "heun"},
    "euler": {"sigma_knots": None, "solver": "euler"},
}


class Measures(NamedTuple):
    """The number of network calls of a run, its two measures, and its time per image."""

    nfe: int
    error: float
    distance: float
    milliseconds: float


Results = dict[str, list[Measures]]  # the measures of the runs of each solver


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    pipe = load_pipeline(args.model, args.device)
    consistency = None
    if args.consistency_model:
        consistency = load_pipeline(args.consistency_model, args.device)
        check_consistency_model(args, pipe, consistency)
    comparison = Comparison(args, pipe)
    results = measure_solvers(comparison, args.calls)
    if args.diffusers_solvers:
        results |= measure_diffusers_solvers(comparison, args.calls)
    if args.searched:
        results["multistep, searched"] = measure_searched_steps(comparison, args.searched)
    if consistency:
        results["consistency model"] = measure_consistency_model(comparison, consistency)
    print_table(comparison, results)
    draw_figure(comparison, results, args.calls).savefig(args.output, dpi=110)
    print(f"\nFigure: {args.output}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id of a pipeline")
    add("--data", required=True, help="images to compare with, a folder or a parquet file")
    add(
        "--calls",
        type=positive,
        nargs="+",
        default=[1, 2, 3, 5, 7, 10, 15, 20, 35, 50],
        help="numbers of network calls",
    )
    add("--consistency_model", help="folder or Hub id of a model that was tuned from the first")
    add("--searched", type=positive, nargs="*", default=[], help="calls whose noise levels are searched")
    add("--diffusers_solvers", action="store_true", help="compare with three solvers of diffusers")
    add("--features", help="feature network of the Fréchet distance: inception, mnist or a backbone")
    add("--guidance_scale", type=float, default=1.0, help="guidance of a model with classes")
    add("--batch_size", type=positive, default=1024, help="number of images of each solver, in one batch")
    add("--seed", type=integer(0), default=0, help="seed of the latents")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the pipeline")
    add("--output", type=figure_file, default=Path("quality-against-calls.png"), help="file of the figure")
    args = parser.parse_args(argv)
    if args.searched and args.guidance_scale != 1:
        parser.error("--searched fits the network without guidance: leave out --guidance_scale")
    return args


class Comparison:
    """A model, the latents at which all runs start, the data, and the images of the reference run.

    Args:
        args: the options of the script.
        pipe: the pipeline of `--model`.
    """

    def __init__(self, args: argparse.Namespace, pipe: PFGMPipeline) -> None:
        self.device = args.device
        self.guidance_scale = args.guidance_scale
        self.pipe = pipe
        self.pipe.scheduler = PoissonFlowScheduler.from_scheduler(self.pipe.scheduler)
        self.config = self.pipe.scheduler.config
        size = self.pipe.unet.config.sample_size
        channels = self.pipe.unet.config.in_channels
        self.data = load_images(args.data, size, channels)
        shape = (args.batch_size, channels, size, size)
        self.latents = self.pipe.scheduler.sample_prior(shape, torch.Generator().manual_seed(args.seed), args.device)
        classes = self.pipe.config.id2label
        self.labels: list[Label] | None = classes and [index % len(classes) for index in range(args.batch_size)]
        self.measure_distance: Callable[[torch.Tensor], float]
        if args.features:
            self.measure_name = "Fréchet distance"
            self.measure_distance = FrechetDistance(load_feature_network(args.features), self.data)
        else:
            self.measure_name = "sliced Wasserstein distance"
            self.measure_distance = functools.partial(sliced_wasserstein, data=self.data)
        _, self.reference = self.draw(self.pipe, num_inference_steps=REFERENCE_STEPS)
        self.reference_distance = self.measure_distance(self.reference)

    def draw(self, pipe: PFGMPipeline, **options: Any) -> tuple[int, torch.Tensor]:
        """Call a pipeline, and return its number of network calls and its images (B, C, H, W) in [-1, 1]."""
        if self.labels is not None:
            options |= {"class_labels": self.labels, "guidance_scale": self.guidance_scale}
        output = pipe(latents=self.latents, generator=torch.Generator().manual_seed(1), output_type="pt", **options)
        return output.nfe, output.images.cpu() * 2 - 1

    def draw_by_diffusers(self, name: str, sigmas: list[float]) -> tuple[int, torch.Tensor]:
        """Like `draw`, by one of `DIFFUSERS_SOLVERS` with a network call at each of the noise levels."""
        images = draw_by_diffusers(name, self.pipe, self.latents, sigmas, self.labels, self.guidance_scale).cpu()
        return len(sigmas), images

    def measure(self, draw: Callable[..., tuple[int, torch.Tensor]], *arguments: Any, **options: Any) -> Measures:
        """Compare the images of `draw` or `draw_by_diffusers` with those of the reference run, and with the data."""
        start = time.perf_counter()
        nfe, images = draw(*arguments, **options)
        milliseconds = 1000 * (time.perf_counter() - start) / len(images)
        error = (images - self.reference).flatten(1).square().mean(1).sqrt().mean().item()
        return Measures(nfe, error, self.measure_distance(images), milliseconds)


def load_pipeline(name: str, device: str) -> PFGMPipeline:
    """Load a pipeline from a folder or the Hub, without progress bars."""
    pipe = PFGMPipeline.from_pretrained(name).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_consistency_model(args: argparse.Namespace, pipe: PFGMPipeline, consistency: PFGMPipeline) -> None:
    """Raise a ValueError unless `--consistency_model` can have been tuned from `--model` with `--guidance_scale`."""
    config = consistency.scheduler.config
    name = f"`--consistency_model` {args.consistency_model!r}"
    if config.get("consistency_sigmas") is None:
        raise ValueError(f"{name} is no consistency model. Pass one of tune_consistency.py.")
    learned = config.get("consistency_guidance") or 1
    if args.guidance_scale != learned:
        raise ValueError(
            f"`--guidance_scale` is {args.guidance_scale:g}, but {name} has learned {learned:g}. Pass that."
        )
    check_same_kind(name, consistency, f"`--model` {args.model!r}", pipe)


def measure_solvers(comparison: Comparison, calls: Sequence[int]) -> Results:
    """Measure the solvers of this package: those with fixed steps by `calls`, and RK45 by `TOLERANCES`."""
    pipe = comparison.pipe
    results: Results = {}
    for name, options in SOLVERS.items():
        pipe.scheduler = PoissonFlowScheduler.from_config(comparison.config, **options)
        # n steps of Heun cost 2n − 1 calls
        steps = [(count + 1) // 2 for count in calls if count % 2] if name == "heun" else calls
        results[name] = [comparison.measure(comparison.draw, pipe, num_inference_steps=count) for count in steps]
    pipe.scheduler = PoissonFlowScheduler.from_config(comparison.config)
    results["RK45"] = [comparison.measure(comparison.draw, pipe, tolerance=tolerance) for tolerance in TOLERANCES]
    return results


def measure_diffusers_solvers(comparison: Comparison, calls: Sequence[int]) -> Results:
    """Measure our solver, of its order and of order 2, and those of diffusers at the noise levels of EDM."""
    pipe = comparison.pipe
    sigma_max, sigma_min = pipe.scheduler.sigma_range
    spacings = [karras_sigmas(sigma_max, sigma_min, count) for count in calls]
    results: Results = {}
    for name, options in (("order 2, EDM's levels", {"solver_order": 2}), ("multistep, EDM's levels", {})):
        pipe.scheduler = PoissonFlowScheduler.from_config(comparison.config, **options)
        results[name] = [comparison.measure(comparison.draw, pipe, sigmas=sigmas) for sigmas in spacings]
    for name in DIFFUSERS_SOLVERS:
        results[name] = [comparison.measure(comparison.draw_by_diffusers, name, sigmas) for sigmas in spacings]
    return results


def measure_searched_steps(comparison: Comparison, calls: Sequence[int]) -> list[Measures]:
    """Measure runs of each number of calls, with noise levels that are searched for this number."""
    pipe = comparison.pipe
    shape, classes = comparison.latents.shape[1:], pipe.config.id2label
    options = {} if classes is None else {"class_labels": torch.arange(512, device=comparison.device) % len(classes)}
    rows = []
    for count in calls:
        generator = torch.Generator().manual_seed(2)
        pipe.scheduler = fit_sigmas(
            pipe.unet, pipe.scheduler, shape, generator, 512, 128, num_inference_steps=count, **options
        )
        rows.append(comparison.measure(comparison.draw, pipe, num_inference_steps=count))
    return rows


def measure_consistency_model(comparison: Comparison, pipe: PFGMPipeline) -> list[Measures]:
    """Measure runs of a consistency model, of each number of calls that it allows."""
    counts = range(1, len(pipe.scheduler.config.consistency_sigmas) + 1)
    return [comparison.measure(comparison.draw, pipe, num_inference_steps=count) for count in counts]


def print_table(comparison: Comparison, results: Results) -> None:
    """Print the measures of each run."""
    name = comparison.measure_name
    print(f"{len(comparison.latents)} generated images, {len(comparison.data)} images of data")
    print(f"The {name} of a run of {REFERENCE_STEPS} calls: {comparison.reference_distance:.4f}\n")
    print(f"{'solver':<24} calls  error   {name:<27}  ms per image")
    for solver, rows in results.items():
        for nfe, error, distance, milliseconds in rows:
            print(f"{solver:<24} {nfe:5d}  {error:.4f}  {distance:<27.4f}  {milliseconds:.2f}")


def draw_figure(comparison: Comparison, results: Results, ticks: Sequence[int]) -> Figure:
    """Draw both measures against the number of network calls, with ticks at some of the numbers."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in results.items():
        if not rows:  # Heun's method has no run of an even number of calls
            continue
        calls, errors, distances, _ = zip(*rows, strict=True)
        left.plot(calls, errors, marker="o", markersize=4, label=name)
        right.plot(calls, distances, marker="o", markersize=4)
    limit = comparison.reference_distance
    right.axhline(limit, color="gray", linestyle=":", label=f"{REFERENCE_STEPS} calls")
    left.set(ylabel=f"RMS difference from {REFERENCE_STEPS} calls")
    right.set(ylabel=f"{comparison.measure_name} to data")
    for axes in (left, right):
        axes.set(xlabel="network calls", xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(calls) for calls in ticks])
        axes.minorticks_off()
        axes.legend(frameon=False)
    right.set_yticks([limit * factor for factor in (1, 1.2, 1.5, 2, 4, 8)])
    right.yaxis.set_major_formatter("{x:.3f}")
    return figure


if __name__ == "__main__":
    run_script(main)
