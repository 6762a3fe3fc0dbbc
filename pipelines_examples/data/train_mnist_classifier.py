"""Train the classifier whose features compare MNIST digits, and save its weights.

    python pipelines_examples/data/train_mnist_classifier.py --train_data mnist-parquet/train.parquet \\
        --test_data mnist-parquet/test.parquet --output mnist_classifier.safetensors

The script prints the share of test images that it classifies correctly. The weights that come with the package were
trained by it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffusers_pfgm.examples.classifier import load_labelled_images, predict_classes, train_classifier
from diffusers_pfgm.metrics.feature_networks import MNISTFeatures

ID2LABEL = {digit: str(digit) for digit in range(10)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data", required=True, help="MNIST's training images with labels")
    parser.add_argument("--test_data", required=True, help="MNIST's test images with labels")
    parser.add_argument("--epochs", type=int, default=8, help="number of epochs")
    parser.add_argument("--output", type=Path, default=Path("mnist_classifier.safetensors"), help="file of the weights")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    network = MNISTFeatures(pretrained=False)
    classifier = torch.nn.Sequential(network.features, network.classifier)
    train_classifier(classifier, *load_labelled_images(args.train_data, 28, "L", ID2LABEL), args.epochs)
    network.half().float()  # the saved precision
    images, labels = load_labelled_images(args.test_data, 28, "L", ID2LABEL)
    accuracy = (predict_classes(classifier, images) == labels).double().mean().item()
    save_file({key: value.half() for key, value in network.state_dict().items()}, args.output)
    print(f"{args.output}: {100 * accuracy:.2f} % of {len(images):,} test images are classified correctly")


if __name__ == "__main__":
    main()
