"""Does a class-conditional model draw what its labels say? Ask a classifier that was trained on real images.

Prints the classifier's accuracy on real images that it has not seen, and the share of drawn images on which it agrees
with the label, and leaves a picture with a row for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.evaluation import image_grid
from diffusers_pfgm.pipeline_inputs import PIL_MODES
from diffusers_pfgm.training.data_source import open_images
from diffusers_pfgm.training.image_data import ImageTensors
from diffusers_pfgm.training.image_labels import read_class_labels
from diffusers_pfgm.training.samples import draw_samples

SHOWN = 10  # drawn images of each class in the picture


def load(name: str, resolution: int, mode: str, id2label: dict[int, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (K, C, R, R) in [-1, 1] and labels (K,), numbered by `id2label`, of a parquet file, folder or Hub id."""
    dataset = open_images(name)
    numbers, names = read_class_labels(dataset)
    known = {label: number for number, label in id2label.items()}
    unknown = sorted({names[number] for number in numbers.tolist()} - set(known))
    if unknown:
        raise ValueError(f"{name!r} has the classes {unknown}, but the model's are {list(known)}. Use its own data.")
    labels = torch.tensor([known[names[number]] for number in numbers.tolist()])
    return ImageTensors(dataset, resolution, mode=mode, center_crop=True).plain(), labels


def load_conditional(kind: type[PFGMPipeline], name: str) -> tuple[Any, dict[int, str]]:
    """A pipeline of this kind, quiet, from a folder or Hub id, and the names of its classes."""
    pipe = kind.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    if not pipe.config.id2label:
        raise ValueError(f"`--model` {name!r} has no classes. Train one with `--class_conditional`.")
    return pipe, pipe.config.id2label


def make_classifier(channels: int, resolution: int, classes: int) -> torch.nn.Sequential:
    """Two convolutions and two layers, of 0.4 M parameters for 28 x 28 pixels."""
    nn, rest = torch.nn, resolution // 4
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * rest**2, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, classes)),
    )


def train(classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3)
    classifier.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            loss = torch.nn.functional.cross_entropy(classifier(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    classifier.eval()


@torch.no_grad()
def predict(classifier: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([classifier(part).argmax(1) for part in images.split(500)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a class-conditional pipeline")
    parser.add_argument("--train_data", required=True, help="real images with labels, to train the classifier on")
    parser.add_argument("--test_data", required=True, help="others, to measure it on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--per_class", type=int, default=100)
    parser.add_argument("--num_inference_steps", type=int, default=20)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("class-accuracy.png"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    pipe, names = load_conditional(PFGMPipeline, args.model)
    channels, resolution = pipe.unet.config.in_channels, pipe.unet.config.sample_size
    mode = PIL_MODES[channels]
    classifier = make_classifier(channels, resolution, len(names))
    train(classifier, *load(args.train_data, resolution, mode, names), args.epochs)
    images, labels = load(args.test_data, resolution, mode, names)
    right = (predict(classifier, images) == labels).double().mean().item()
    print(f"Classifier: right on {100 * right:.2f} % of {len(images):,} real images that it has not seen")

    wanted = torch.arange(len(names)).repeat_interleave(args.per_class)
    drawn = draw_samples(
        pipe, len(wanted), args.num_inference_steps, class_labels=wanted, guidance_scale=args.guidance_scale
    )
    agrees = (predict(classifier, drawn * 2 - 1) == wanted).view(len(names), -1).double().mean(1)
    calls = args.num_inference_steps
    print(f"Agrees with the label of {100 * agrees.mean():.1f} % of {len(wanted):,} drawn images, {calls} calls each")
    for name, share in zip(names.values(), agrees.tolist(), strict=True):
        print(f"  {name}: {100 * share:.0f} %")
    shown = drawn.view(len(names), args.per_class, *drawn.shape[1:])[:, :SHOWN].flatten(0, 1)
    image_grid(shown, scale=max(1, 64 // resolution), columns=min(SHOWN, args.per_class)).save(args.output)
    print(f"A row for each class: {args.output}")


if __name__ == "__main__":
    main()
