"""Train a network for each augmented dimension D and preconditioning, and compare their quality and robustness.

    python pipelines_examples/robustness/quality_against_aug_dim.py

The data are scikit-learn's digits, or labelled images by --train_data and --test_data. Each network is trained by
training/train_pfgm.py for as many steps, with its default noise levels. The measure is the Fréchet distance between
generated and test images in the features of a small classifier, for several numbers of network calls, with noise in
each step (alpha sigma n, as in PFGM++, arXiv 2302.04265, section 5), and with rounded weights. The control is a network
with D = infinity whose training has noise levels with the logarithmic mean and spread of those at D = 1.

The script prints a table of means and standard deviations over seeds, and saves a figure. Results are kept in the
output folder: the same command continues after an interruption, and variants can be added later. Other data, steps or
sample numbers need another output folder.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import diffusers_pfgm.examples  # noqa: F401 - names the extra if one of its packages is missing

# isort: split
import torch
from matplotlib.figure import Figure

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.examples.classifier import load_labelled_images, make_classifier, predict_classes, train_classifier
from diffusers_pfgm.examples.digits import split_digits, split_labels, write_parquet
from diffusers_pfgm.examples.launch import has_ended, launch_training
from diffusers_pfgm.examples.robustness import NoiseInSteps, pfgm_log_noise_moments, round_weights, small_unet_config
from diffusers_pfgm.metrics.frechet_distance import FrechetDistance
from diffusers_pfgm.physics.bounded_noise import LEAST_AUG_DIM
from diffusers_pfgm.training.data.images import ImageTensors
from diffusers_pfgm.training.data.labels import read_class_labels
from diffusers_pfgm.training.data.order import evenly_spaced
from diffusers_pfgm.training.data.source import open_images
from diffusers_pfgm.training.run.option_types import integer, number
from diffusers_pfgm.training.run.samples import draw_samples
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.training.run.settings import differences
from diffusers_pfgm.utils.atomic_file import atomic_file

TRAINING = Path(__file__).resolve().parents[2] / "training" / "train_pfgm.py"
CONTROL = "control"  # D = infinity, trained on noise levels like those of D = 1
SETTINGS = ("train_data", "test_data", "resolution", "max_train_steps", "train_batch_size", "num_samples")
ROBUSTNESS_CALLS = 20  # network calls of the measurements with noise and with rounded weights


class Variant(NamedTuple):
    """One network that is trained: its preconditioning or CONTROL, D, the channels of its first block, and its seed."""

    preconditioning: str
    aug_dim: float
    width: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.preconditioning}-D{self.aug_dim:g}-width{self.width}-seed{self.seed}"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train_data", help="labelled images, a folder or a parquet file; scikit-learn's digits by default")
    add("--test_data", help="other labelled images, which the generated ones are compared with")
    add("--resolution", type=integer(4), default=8, help="height and width of the images")
    aug_dim = number(LEAST_AUG_DIM, or_infinity=True)
    add("--aug_dims", type=aug_dim, nargs="+", default=[1, 2, 5, 16, 64, 128, 2048, math.inf], help="values of D")
    add("--preconditionings", nargs="+", choices=["student_t", "edm", CONTROL], default=["student_t", "edm", CONTROL])
    add("--widths", type=integer(8), nargs="+", default=[32], help="channels of the first block, multiples of 8")
    add("--seeds", type=integer(0), nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    add("--max_train_steps", type=integer(1), default=600, help="training steps of each network")
    add("--train_batch_size", type=integer(1), default=64, help="images of a training step")
    add("--calls", type=integer(1), nargs="+", default=[5, 10, 20], help="numbers of network calls")
    add("--noises", type=number(0, 1), nargs="*", default=[0.1, 0.2], help="values of alpha, the noise in each step")
    add("--bits", type=integer(2), nargs="*", default=[8, 5], help="numbers of bits of rounded weights")
    add("--num_samples", type=integer(2), default=2000, help="number of generated images")
    add("--threads", type=integer(1), help="CPU threads of a training; all by default")
    add("--output_dir", type=Path, default=Path("quality-against-aug-dim"), help="output folder")
    args = parser.parse_args(argv)
    if (args.train_data is None) != (args.test_data is None):
        parser.error("--train_data and --test_data must be passed together")
    if any(width % 8 for width in args.widths):
        parser.error(f"--widths must be multiples of 8, but are {args.widths}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    uses_digits = args.train_data is None
    if uses_digits:
        args.train_data, args.test_data = (str(folder / f"digits-{name}.parquet") for name in ("train", "test"))
    check_output_folder(args)
    if uses_digits:
        for name, images, labels in zip((args.train_data, args.test_data), split_digits(), split_labels(), strict=True):
            write_parquet(images, Path(name), labels)
    dataset = open_images(args.train_data)
    id2label = read_class_labels(dataset)[1]
    channels = ImageTensors(dataset, args.resolution, center_crop=True).channels
    images, labels = load_labelled_images(args.train_data, args.resolution, channels, id2label)
    test_images, test_labels = load_labelled_images(args.test_data, args.resolution, channels, id2label)
    torch.manual_seed(0)
    classifier = make_classifier(images.shape[1], args.resolution, len(id2label))
    train_classifier(classifier, images, labels, epochs=math.ceil(20_000 / len(images)))
    accuracy = (predict_classes(classifier, test_images) == test_labels).double().mean().item()
    distance = FrechetDistance(classifier[:-2], test_images)  # without dropout and the last layer
    floor = distance(images[evenly_spaced(len(images), args.num_samples)])  # of all classes if the data are sorted
    print(f"The classifier is right on {100 * accuracy:.2f} % of {len(test_images):,} test images.")
    print(f"Fréchet distance of {min(args.num_samples, len(images)):,} training images to them: {floor:.2f}\n")

    results = []
    for variant in variants(args):
        path = folder / variant.name / "distances.json"  # exists when the network is trained
        if not path.exists():
            launch_training(TRAINING, training_options(variant, args, images), args.threads)
            if not has_ended(folder / variant.name, args.max_train_steps):
                raise SystemExit("The training was stopped. Start the same command again to continue.")
            with atomic_file(path) as partial:
                partial.write_text("{}")
        known = json.loads(path.read_text())
        pipe = PFGMPipeline.from_pretrained(folder / variant.name)
        pipe.set_progress_bar_config(disable=True)
        for condition in conditions(args):
            if condition not in known:
                known[condition] = distance(samples_of(pipe, condition, args.num_samples) * 2 - 1)
                with atomic_file(path) as partial:
                    partial.write_text(json.dumps(known, indent=2))
        results.append((variant, known))
        print(f"{variant.name}: " + ", ".join(f"{name} {known[name]:.1f}" for name in conditions(args)), flush=True)
    report(results, conditions(args), floor, folder)


def check_output_folder(args: argparse.Namespace) -> None:
    """Check that the results in the output folder have the same settings, or note the settings in a new folder."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    path = args.output_dir / "settings.json"
    saved = json.loads(path.read_text()) if path.exists() else settings
    if saved != settings:
        raise SystemExit(
            f"--output_dir {args.output_dir} has results with other settings: "
            f"{', '.join(differences(saved, settings))}. Pass the same settings, or another --output_dir."
        )
    path.write_text(json.dumps(settings, indent=2))


def variants(args: argparse.Namespace) -> list[Variant]:
    """Return the networks to train. At D = infinity both preconditionings are EDM's."""
    kinds = dict.fromkeys(
        ("edm" if name == "student_t" and aug_dim == math.inf else name, aug_dim)
        for name in args.preconditionings
        for aug_dim in ([math.inf] if name == CONTROL else args.aug_dims)
    )
    return [Variant(*kind, width, seed) for seed in args.seeds for width in args.widths for kind in kinds]


def training_options(variant: Variant, args: argparse.Namespace, images: torch.Tensor) -> list[str]:
    """Write the configuration of a variant's network, and return the options of train_pfgm.py for it."""
    folder = args.output_dir / variant.name
    path = args.output_dir / f"unet-width{variant.width}.json"
    path.write_text(json.dumps(small_unet_config(variant.width, images.shape[1], args.resolution), indent=2))
    options = {
        "dataset_name": args.train_data,
        "resolution": args.resolution,
        "model_config_name_or_path": path,
        "aug_dim": variant.aug_dim,
        "preconditioning": "edm" if variant.preconditioning == CONTROL else variant.preconditioning,
        "train_batch_size": args.train_batch_size,
        "max_train_steps": args.max_train_steps,
        "learning_rate": 1e-3,
        "lr_warmup_steps": min(100, args.max_train_steps // 2),
        "seed": variant.seed,
        "resume_from_checkpoint": "latest",
        "logger": "none",
        "output_dir": folder,
    }
    if variant.preconditioning == CONTROL:
        options["p_mean"], options["p_std"] = pfgm_log_noise_moments(images)
    return [f"--{name}={value}" for name, value in options.items()]


def conditions(args: argparse.Namespace) -> list[str]:
    """Return the names of the measurements of each network."""
    calls = [f"{count} calls" for count in args.calls]
    return calls + [f"noise {alpha:g}" for alpha in args.noises] + [f"{bits} bits" for bits in args.bits]


def samples_of(pipe: PFGMPipeline, condition: str, count: int) -> torch.Tensor:
    """Draw samples (count, C, H, W) in [0, 1] under one of the `conditions`."""
    if condition.endswith("calls"):
        return draw_samples(pipe, count, int(condition.split()[0]))
    if condition.endswith("bits"):
        rounded = PFGMPipeline(round_weights(pipe.unet, int(condition.split()[0])), pipe.scheduler)
        rounded.set_progress_bar_config(disable=True)
        return draw_samples(rounded, count, ROBUSTNESS_CALLS)
    noise = NoiseInSteps(float(condition.split()[1]))
    return draw_samples(pipe, count, ROBUSTNESS_CALLS, callback_on_step_end=noise)


def report(results: list[tuple[Variant, dict[str, float]]], names: list[str], floor: float, folder: Path) -> None:
    """Print the table of means and standard deviations over seeds, and save it with the figure and all values."""
    groups: dict[tuple[str, int, float], list[list[float]]] = {}
    for variant, distances in results:
        key = (variant.preconditioning, variant.width, variant.aug_dim)
        groups.setdefault(key, []).append([distances[name] for name in names])
    means = {key: torch.tensor(values).mean(0).tolist() for key, values in groups.items()}
    stds = {key: torch.tensor(values).std(0, correction=0).tolist() for key, values in groups.items()}
    lines = ["| preconditioning | width | D | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for (preconditioning, width, aug_dim), mean in means.items():
        std = stds[preconditioning, width, aug_dim]
        cells = [f"{value:.1f} ± {spread:.1f}" for value, spread in zip(mean, std, strict=True)]
        lines.append(f"| {preconditioning} | {width} | {aug_dim:g} | " + " | ".join(cells) + " |")
    print("\nFréchet distances, mean and standard deviation over seeds\n\n" + "\n".join(lines))
    (folder / "table.md").write_text("\n".join(lines) + "\n")

    figure = Figure(figsize=(4 * len(names), 3.8), layout="constrained")
    aug_dims = sorted({key[2] for key in means})
    for column, (name, axes) in enumerate(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True)):
        for preconditioning, width in dict.fromkeys(key[:2] for key in means):
            keys = [key for key in sorted(means) if key[:2] == (preconditioning, width)]
            places = [aug_dims.index(key[2]) for key in keys]
            values, spreads = ([table[key][column] for key in keys] for table in (means, stds))
            label = f"{preconditioning}, width {width}"
            axes.errorbar(places, values, spreads, marker="o", markersize=4, capsize=3, label=label)
        axes.axhline(floor, color="gray", linestyle=":", label="training images")
        axes.set_xticks(range(len(aug_dims)), ["∞" if math.isinf(D) else f"{D:g}" for D in aug_dims])
        axes.set(title=name, xlabel="D", yscale="log")
    figure.axes[0].set_ylabel("Fréchet distance")
    figure.axes[0].legend(frameon=False)
    figure.savefig(folder / "quality-against-aug-dim.png", dpi=110)
    print(f"\nTable and figure: {folder}")


if __name__ == "__main__":
    run_script(main)
