"""Train the classifier whose features compare MNIST digits, and save its weights and the statistics of its features.

    python pipelines_examples/data/train_mnist_classifier.py --train_data mnist-parquet/train.parquet \\
        --test_data mnist-parquet/test.parquet --output mnist_classifier.safetensors

The script prints the share of test images that it classifies correctly. Mean and covariance of its features on the test
images are written beside the weights, as mnist_statistics.npz. The files that come with the package were made by it.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffusers_pfgm.examples.classifier import load_labelled_images, predict_classes, train_classifier
from diffusers_pfgm.metrics.feature_networks import MNISTFeatures
from diffusers_pfgm.metrics.feature_statistics import MNIST_STATISTICS, FeatureStatistics
from diffusers_pfgm.training.run.option_types import positive
from diffusers_pfgm.training.run.script_errors import run_script
from diffusers_pfgm.utils.output_file import output_file

ID2LABEL = {digit: str(digit) for digit in range(10)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data", required=True, help="MNIST's training images with labels")
    parser.add_argument("--test_data", required=True, help="MNIST's test images with labels")
    parser.add_argument("--epochs", type=positive, default=8, help="number of epochs")
    parser.add_argument(
        "--output",
        type=output_file(".safetensors"),
        default=Path("mnist_classifier.safetensors"),
        help="file of the weights",
    )
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    network = MNISTFeatures(pretrained=False)
    classifier = torch.nn.Sequential(network.features, network.classifier)
    train_data = load_labelled_images(args.train_data, 28, 1, ID2LABEL)
    images, labels = load_labelled_images(args.test_data, 28, 1, ID2LABEL)
    train_classifier(classifier, *train_data, args.epochs)
    network.half().float()  # the saved precision
    accuracy = (predict_classes(classifier, images) == labels).double().mean().item()
    save_file({key: value.half() for key, value in network.state_dict().items()}, args.output)
    save_statistics(network, images, args.output.with_name(MNIST_STATISTICS.name))
    print(f"{args.output}: {100 * accuracy:.2f} % of {len(images):,} test images are classified correctly")


@torch.no_grad()
def save_statistics(network: MNISTFeatures, images: torch.Tensor, path: Path) -> None:
    """Save mean and covariance of the features of images (K, 1, 28, 28) in float32, without the features themselves."""
    features = torch.cat([network(batch)[0] for batch in images.split(500)])
    statistics = FeatureStatistics.of_features(features, "mnist")
    mean = statistics.mean.float()
    covariance = statistics.covariance.float()
    dataclasses.replace(statistics, mean=mean, covariance=covariance, features=None).save(path)


if __name__ == "__main__":
    run_script(main)
