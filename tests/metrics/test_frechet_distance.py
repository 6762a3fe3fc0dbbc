"""The Fréchet distance against its closed form for normal distributions."""

import pytest
import torch

from diffusers_pfgm.metrics.feature_networks import load_feature_network
from diffusers_pfgm.metrics.frechet_distance import FrechetDistance
from tests.networks import seeded


def test_distance_equals_that_of_the_normal_distributions_with_the_same_moments() -> None:
    first = torch.randn(1300, 1, 2, 3, generator=seeded(0))
    second = torch.randn(700, 1, 2, 3, generator=seeded(1)) * torch.linspace(0.5, 2, 6).view(1, 1, 2, 3) + 0.3
    means = [images.flatten(1).double().mean(0) for images in (first, second)]
    covariances = [images.flatten(1).double().T.cov() for images in (first, second)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    expected = (means[0] - means[1]).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * cross
    assert FrechetDistance(torch.nn.Flatten(), first)(second) == pytest.approx(expected.item(), rel=1e-4)


def test_distance_to_the_data_themselves_is_zero_at_each_call() -> None:
    data = torch.randn(600, 1, 2, 2, generator=seeded(0))
    distance = FrechetDistance(torch.nn.Flatten(), data)
    assert distance(data + 1) == pytest.approx(4, rel=1e-4)
    assert distance(data) == pytest.approx(0, abs=1e-4)


def test_the_features_of_a_classifier_are_the_first_of_its_results() -> None:
    first, second = torch.rand(2, 150, 1, 28, 28, generator=seeded(0)) * 2 - 1
    network = load_feature_network("mnist")
    assert isinstance(network(first[:1]), tuple)
    assert FrechetDistance(network, first)(second) == FrechetDistance(network.features, first)(second)


def test_too_few_and_infinite_images_are_refused() -> None:
    data = torch.randn(10, 1, 2, 2, generator=seeded(0))
    with pytest.raises(ValueError, match="`data` must be at least 2 images"):
        FrechetDistance(torch.nn.Flatten(), data[:1])
    distance = FrechetDistance(torch.nn.Flatten(), data)
    with pytest.raises(ValueError, match="`samples` must be at least 2 images"):
        distance(data[:1])
    with pytest.raises(ValueError, match="samples"):
        distance(data.log())
