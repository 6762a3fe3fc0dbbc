"""Does a class-conditional model draw what its labels say? Ask a classifier that was trained on real images.

Prints the classifier's accuracy on real images that it has not seen, and the share of drawn images on which it agrees
with the label, and leaves a picture with a row for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from diffusers_pfgm import PFGMPipeline
from diffusers_pfgm.examples.classifier import load, load_conditional, make_classifier, predict, train
from diffusers_pfgm.pipelines.inputs import PIL_MODES
from diffusers_pfgm.plots.image_grid import image_grid
from diffusers_pfgm.training.run.samples import draw_samples

SHOWN = 10  # drawn images of each class in the picture


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
