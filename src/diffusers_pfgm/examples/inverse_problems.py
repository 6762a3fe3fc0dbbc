"""What the examples of inverse problems share: pictures, every method on them, figures and the picture."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ..inverse import LinearOperator
from ..physics import ChargeField
from ..pipelines import PFGMInversePipeline
from ..plots.image_grid import image_grid
from ..schedulers import PoissonFlowScheduler
from ..training.data.images import ImageTensors
from ..training.data.source import open_images
from .digits import split_digits

SHOWN = 2  # draws of each method in the picture


def make_parser(description: str, output: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; without it the exact field of the training images")
    parser.add_argument("--data", help="images to measure, a folder or a parquet file; scikit-learn's digits without")
    parser.add_argument("--train_data", help="images for the best charge and the exact field, as large; the digits too")
    parser.add_argument("--noise_std", type=float, default=0.1, help="of the measurement, for images in [-1, 1]")
    parser.add_argument("--num_images", type=int, default=10, help="images to measure")
    parser.add_argument("--draws", type=int, default=4, help="posterior samples of each")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="of the guidance")
    parser.add_argument("--num_sweeps", type=int, default=10, help="of latent sampling; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(output))
    return parser


def load_images(name: str, size: int) -> torch.Tensor:
    """(K, C, size, size) in [-1, 1]."""
    images = ImageTensors(open_images(name), size, center_crop=True)
    return images.__getitems__(range(len(images)))


def make_pipeline(args: argparse.Namespace) -> tuple[PFGMInversePipeline, torch.Tensor, torch.Tensor]:
    """The pipeline, images for training and images to measure."""
    train, held_out = split_digits()
    if args.model:
        pipe = PFGMInversePipeline.from_pretrained(args.model)
    if args.data:
        held_out = load_images(args.data, pipe.unet.config.sample_size if args.model else 8)
    if args.train_data:
        train = load_images(args.train_data, held_out.shape[-1])
    if train.shape[1:] != held_out.shape[1:]:
        raise ValueError(
            f"`--train_data` has images {tuple(train.shape[1:])}, but those of `--data` or the digits are "
            f"{tuple(held_out.shape[1:])}. Name both, of the model's kind."
        )
    if not args.model:
        pipe = PFGMInversePipeline(ChargeField(train), PoissonFlowScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(args.device), train.to(args.device), held_out[: args.num_images].to(args.device)


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], the mean over them."""
    errors = (images.clamp(-1, 1) - truth).flatten(1).square().mean(1)
    return float(10 * torch.log10(4 / errors.clamp(min=1e-10)).mean())


def compare(
    args: argparse.Namespace,
    pipe: PFGMInversePipeline,
    train: torch.Tensor,
    truth: torch.Tensor,
    operator: LinearOperator,
) -> None:
    """Measure, solve by each method, print the figures and save the picture."""
    generator = torch.Generator().manual_seed(args.seed)
    clean = operator(truth)
    measurement = clean + args.noise_std * torch.randn(clean.shape, generator=generator).to(clean)
    inverted = operator.pseudo_inverse(measurement)
    distances = torch.cdist(measurement.flatten(1), operator(train).flatten(1))
    plain = {"pseudo-inverse": inverted, "best charge": train[distances.argmin(1)]}
    kind = f"the model {args.model}" if args.model else f"the exact field of {len(train)} images"
    print(f"{len(truth)} images, noise {args.noise_std:g}, {args.draws} draws of each by {kind}\n")
    print(f"{'':<16} PSNR   of the draws' mean   error of the measurement   calls   seconds")
    for name, images in plain.items():
        error = (operator(images) - clean).square().mean().sqrt()
        print(f"{name:<16} {psnr(images, truth):5.2f} {'':20} {error:25.3f}")

    rows = [truth, inverted, plain["best charge"]]
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
        draws = output.samples.unflatten(0, (len(truth), args.draws))
        each = sum(psnr(draws[:, i], truth) for i in range(args.draws)) / args.draws
        error = (operator(output.samples) - clean.repeat_interleave(args.draws, 0)).square().mean().sqrt()
        print(
            f"{method:<16} {each:5.2f} {psnr(draws.clamp(-1, 1).mean(1), truth):20.2f} {error:25.3f} {output.nfe:9d} "
            f"{seconds:9.1f}"
        )
        if method != "replacement":
            rows += [draws[:, i] for i in range(min(SHOWN, args.draws))]
    pictures = torch.cat(rows).clamp(-1, 1) / 2 + 0.5
    image_grid(pictures, max(1, 48 // truth.shape[-1]), columns=len(truth)).save(args.output)
    names = ["truth", "measurement", "best charge", "guidance", "latent samples"][: 5 if args.num_sweeps else 4]
    print(f"\nRows: {', '.join(names)}: {args.output}")
