"""The common part of the inverse-problem examples: arguments, images, and a comparison of all methods."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ..inverse import LinearOperator
from ..physics import ChargeField
from ..pipelines import PFGMInversePipeline
from ..pipelines.inputs import latents_shape
from ..plots.image_grid import save_image_grid
from ..schedulers import PoissonFlowScheduler
from ..training.data.order import evenly_spaced
from ..training.run.option_types import integer, positive
from ..utils.output_file import image_file
from .digits import split_digits
from .images import load_images

NUM_SHOWN = 2  # the number of samples of each method in the image grid
NEAREST = "nearest training image"


def make_parser(description: str, output: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all examples of inverse problems have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="folder or Hub id of a pipeline; by default the exact field of the training images is used")
    add("--data", help="images to measure, a folder or a parquet file; by default scikit-learn's held-out digits")
    add(
        "--train_data",
        help="images of the same size for the exact field and the nearest training image; by default scikit-learn's "
        "digits",
    )
    add("--noise_std", type=float, default=0.1, help="standard deviation of the noise, for images in [-1, 1]")
    add("--num_images", type=positive, default=10, help="number of images to measure")
    add("--draws", type=positive, default=4, help="number of posterior samples of each image")
    add("--num_inference_steps", type=positive, default=20, help="number of steps of the guidance")
    add("--num_sweeps", type=integer(0), default=10, help="number of sweeps of latent sampling; 0 skips it")
    add("--seed", type=integer(0), default=0, help="seed of the noise and the samples")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device of the pipeline")
    add("--output", type=image_file, default=Path(output), help="file of the image grid")
    return parser


def make_pipeline(args: argparse.Namespace) -> tuple[PFGMInversePipeline, torch.Tensor, torch.Tensor]:
    """Return the pipeline, the training images (K, C, H, W) and the images to measure (B, C, H, W).

    Raises:
        ValueError: if the two sets of images and the model have different sizes or channels.
    """
    train, held_out = split_digits()
    size, channels = 8, None
    if args.model:
        pipe = PFGMInversePipeline.from_pretrained(args.model)
        size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    if args.data:
        held_out = load_images(args.data, size, channels)
        held_out = held_out[evenly_spaced(len(held_out), args.num_images)]  # of all classes if the data are sorted
    if args.train_data:
        train = load_images(args.train_data, size, held_out.shape[1])
    if not args.model:
        pipe = PFGMInversePipeline(ChargeField(train), PoissonFlowScheduler())
    shapes = {
        "`--data`": tuple(held_out.shape[1:]),
        "`--train_data`": tuple(train.shape[1:]),
        "the model": latents_shape(pipe.unet.config, 1, None)[1:],
    }
    if len({*shapes.values()}) > 1:
        raise ValueError(
            "Images must have the same shape (C, H, W), but have "
            f"{', '.join(f'{shape} for {name}' for name, shape in shapes.items())}. Pass both `--data` and "
            "`--train_data`, which are scikit-learn's digits by default."
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(args.device), train.to(args.device), held_out[: args.num_images].to(args.device)


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of images in [-1, 1]."""
    errors = (images.clamp(-1, 1) - truth).flatten(1).square().mean(1)
    return float(10 * torch.log10(4 / errors.clamp(min=1e-10)).mean())


def compare_methods(
    args: argparse.Namespace,
    pipe: PFGMInversePipeline,
    train: torch.Tensor,
    truth: torch.Tensor,
    operator: LinearOperator,
) -> None:
    """Measure images, restore them with each method, print a table and save a grid of images.

    Args:
        args: the arguments of `make_parser`.
        pipe: the pipeline.
        train: (K, C, H, W), the training images. The nearest training image is the one whose measurement without noise
            is closest to the measurement of an image.
        truth: (B, C, H, W), the images that are measured.
        operator: the measurement.
    """
    generator = torch.Generator().manual_seed(args.seed)
    clean = operator(truth)
    measurement = clean + args.noise_std * torch.randn(clean.shape, generator=generator).to(clean)
    pseudo_inverse = operator.pseudo_inverse(measurement)
    distances = torch.cdist(measurement.flatten(1), operator(train).flatten(1))
    baselines = {"pseudo-inverse": pseudo_inverse, NEAREST: train[distances.argmin(1)]}
    prior = f"the model {args.model}" if args.model else f"the exact field of {len(train)} images"
    print(f"{len(truth)} images, noise {args.noise_std:g}, {args.draws} samples of each with {prior}\n")
    print(f"{'':<22} PSNR   PSNR of the samples' mean   error of the measurement   calls   seconds")
    for name, images in baselines.items():
        error = (operator(images) - clean).square().mean().sqrt()
        print(f"{name:<22} {psnr(images, truth):5.2f} {'':27} {error:25.3f}")

    rows = [truth, *baselines.values()]
    for method in ("replacement", "guidance", "latent")[: 3 if args.num_sweeps else 2]:
        started = time.perf_counter()
        output = pipe(
            measurement.repeat_interleave(args.draws, 0),
            operator,
            args.noise_std,
            method,
            args.num_inference_steps,
            args.num_sweeps,
            generator=torch.Generator().manual_seed(args.seed),
            output_type="pt",
        )
        seconds = time.perf_counter() - started
        samples = output.samples.unflatten(0, (len(truth), args.draws))
        mean_psnr = sum(psnr(samples[:, i], truth) for i in range(args.draws)) / args.draws
        psnr_of_mean = psnr(samples.clamp(-1, 1).mean(1), truth)
        error = (operator(output.samples) - clean.repeat_interleave(args.draws, 0)).square().mean().sqrt()
        print(f"{method:<22} {mean_psnr:5.2f} {psnr_of_mean:27.2f} {error:25.3f} {output.nfe:9d} {seconds:9.1f}")
        if method != "replacement":
            rows += [samples[:, i] for i in range(min(NUM_SHOWN, args.draws))]
    images = torch.cat(rows).clamp(-1, 1) / 2 + 0.5
    save_image_grid(args.output, images, max(1, 48 // truth.shape[-1]), columns=len(truth))
    names = ["truth", *baselines, "guidance", "latent samples"][: 5 if args.num_sweeps else 4]
    print(f"\nRows of the image grid (samples in {NUM_SHOWN} rows each): {', '.join(names)}: {args.output}")
