"""The networks whose features the metrics compare: Inception, a backbone of transformers, and one for MNIST.

Each takes images (B, C, H, W) in [-1, 1] and returns features (B, F) and, if it is a classifier, logits (B, K).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

from ..utils.extras import require_extra
from ..utils.messages import one_line

Features = tuple[torch.Tensor, torch.Tensor | None]
MNIST_WEIGHTS = Path(__file__).with_name("mnist_classifier.safetensors")
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


def load_feature_network(name: str, weights: str | Path | None = None) -> torch.nn.Module:
    """Load a network for features, in evaluation mode on the CPU.

    Args:
        name: "inception", the network of the FID, computed by torch-fidelity; "mnist", a small classifier of MNIST that
            comes with this package; or the folder or Hub id of a vision backbone of transformers, such as
            "facebook/dinov2-base".
        weights: the file of Inception's weights; by default it is downloaded.

    Raises:
        ModuleNotFoundError: if torch-fidelity or transformers is needed and missing.
        ValueError: if weights cannot be read or downloaded. The message says where to get them.
    """
    if name == "mnist":
        return MNISTFeatures().eval()
    if name == "inception":
        return InceptionFeatures(weights).eval()
    return BackboneFeatures(name).eval()


class MNISTFeatures(torch.nn.Module):
    """A classifier of MNIST digits, 28 x 28 with one channel. Its features are the input of the last layer, F = 128.

    It was trained on the 60,000 training images by `pipelines_examples/data/train_mnist_classifier.py`.

    Args:
        pretrained: whether to load the weights that come with the package; if False they are random. Defaults to True.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        nn = torch.nn
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(576, 128), nn.ReLU()),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(128, 10))
        if pretrained:
            self.load_state_dict({key: value.float() for key, value in load_file(MNIST_WEIGHTS).items()})

    def forward(self, images: torch.Tensor) -> Features:
        if images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"The feature network 'mnist' takes images 1 x 28 x 28, but got {tuple(images.shape[1:])}. Choose "
                "'inception', or a backbone of transformers, for other images."
            )
        features = self.features(images)
        return features, self.classifier(features)


class InceptionFeatures(torch.nn.Module):
    """Inception-v3 of the FID's authors, in the implementation of torch-fidelity, F = 2,048.

    Args:
        weights: the file of the weights; by default it is downloaded.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        require_extra("inception", "torch_fidelity")
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except Exception as error:  # torchvision beside another build of torch raises RuntimeError
            raise ValueError(
                f"torch-fidelity cannot be imported: {one_line(error)}. Install the torchvision of your torch build."
            ) from error
        try:
            # torch-fidelity loads the file without `weights_only`, so it is loaded with it first.
            if weights is None:
                torch.hub.load_state_dict_from_url(INCEPTION_URL, check_hash=True, weights_only=True)
            else:
                torch.load(weights, map_location="cpu", weights_only=True)
            self.network: Any = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], None if weights is None else str(weights)
            )
        except Exception as error:  # the download and torch.load raise errors of many classes
            raise ValueError(
                f"The weights of Inception cannot be loaded: {one_line(error)}. Download {INCEPTION_URL} on another "
                "machine and pass its path as `weights` (option `--inception_weights` of evaluate_pfgm.py)."
            ) from error

    def forward(self, images: torch.Tensor) -> Features:
        pixels = (_in_colour(images) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return self.network(pixels)


class BackboneFeatures(torch.nn.Module):
    """A vision model of transformers, such as DINOv2 (arXiv 2304.07193). The features are its pooled output.

    Images are resized to the model's size by bicubic interpolation, and normalized as in its configuration.

    Args:
        name: folder or Hub id of the model.
    """

    def __init__(self, name: str) -> None:
        require_extra("evaluation", "transformers")
        super().__init__()
        from transformers import AutoModel
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            self.network: Any = AutoModel.from_pretrained(name)
            if self.network.main_input_name != "pixel_values":  # a model of text, or of text and images such as CLIP
                raise ValueError(f"a {type(self.network).__name__} takes {self.network.main_input_name}")
            options, _ = ImageProcessingMixin.get_image_processor_dict(name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The feature network {name!r} cannot be loaded: {one_line(error)}. It must be 'inception', 'mnist', "
                "or the folder or Hub id of a vision model of transformers."
            ) from error
        size = options.get("crop_size") or options.get("size") or self.network.config.image_size
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.size = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
        self.register_buffer("mean", torch.tensor(options.get("image_mean", [0.5] * 3)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(options.get("image_std", [0.5] * 3)).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> Features:
        size = (self.size, self.size)
        pixels = functional.interpolate(_in_colour(images), size, mode="bicubic", antialias=True).clamp(-1, 1)
        output = self.network((pixels / 2 + 0.5 - self.mean) / self.std)
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1), None


def _in_colour(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) from images with one or three channels."""
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"Feature networks take images with 1 or 3 channels, but these have {images.shape[1]}. Convert them."
        )
    return images.expand(-1, 3, -1, -1)
