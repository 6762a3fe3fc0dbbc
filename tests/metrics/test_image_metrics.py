"""Metrics against closed forms, and a ladder of corruptions that each metric must notice in the right order."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from diffusers_pfgm.metrics.feature_networks import MNISTFeatures
from diffusers_pfgm.metrics.inception_score import inception_score
from diffusers_pfgm.metrics.kernel_distance import kernel_distance
from diffusers_pfgm.metrics.nearest_neighbors import nearest_distances
from diffusers_pfgm.metrics.precision_recall import precision_recall
from diffusers_pfgm.metrics.sliced_wasserstein import sliced_wasserstein
from diffusers_pfgm.training.run.evaluation_metrics import FeatureStatistics, compare_features, find_memorized
from tests.networks import seeded


def test_the_kernel_distance_is_that_of_the_polynomial_kernel() -> None:
    first = torch.randn(40, 5, generator=seeded(0), dtype=torch.float64)
    second = torch.randn(30, 5, generator=seeded(1), dtype=torch.float64) + 0.4
    # The mean over subsets of an unbiased estimate is the estimate of all images up to the choice of the subsets.
    kernels = [(a @ b.T / 5 + 1) ** 3 for a, b in ((first, first), (second, second), (first, second))]
    own = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    mean, deviation = kernel_distance(first, second)
    assert mean == pytest.approx((own[0] + own[1] - 2 * kernels[2].mean()).item(), abs=3 * deviation / math.sqrt(100))
    assert kernel_distance(first, second) == (mean, deviation) != kernel_distance(first, second, seed=1)
    with pytest.raises(ValueError, match="at least 3 samples"):
        kernel_distance(first[:2], second)


def test_the_inception_score_of_certain_classes_is_their_number() -> None:
    certain = 100 * functional.one_hot(torch.arange(2000) % 8).double()
    # Frequencies of 8 classes in 200 images have an entropy below log 8 by 7 / (2 * 200) on average.
    assert inception_score(certain)[0] == pytest.approx(8 * math.exp(-7 / 400), rel=0.01)
    # Two classes that no image has, whose probabilities underflow to 0: 0 · log 0 counts as 0.
    absent = 1e4 * functional.one_hot(torch.arange(2000) % 8, 10)
    assert inception_score(absent)[0] == pytest.approx(inception_score(certain)[0], rel=1e-6)
    assert inception_score(torch.zeros(50, 8))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 10 images"):
        inception_score(certain[:9])


def test_precision_and_recall_of_an_interval() -> None:
    data = torch.linspace(0, 1, 501)[:, None]
    half = torch.linspace(0, 0.5, 251)[:, None]
    assert precision_recall(half, data) == (1.0, pytest.approx(0.5, abs=0.01))
    assert precision_recall(data, half) == (pytest.approx(0.5, abs=0.01), 1.0)
    assert precision_recall(data + 5, data) == (0, 0)
    with pytest.raises(ValueError, match="more than 3 samples"):
        precision_recall(data[:3], data)


def test_random_state_is_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("The GPUs were seeded."))
    kernel_distance(torch.randn(20, 3, generator=seeded()), torch.randn(20, 3, generator=seeded(1)))
    inception_score(torch.randn(20, 3, generator=seeded()))
    assert torch.equal(torch.rand(3), expected)


def test_half_precision_bytes_and_gradients_give_the_numbers_of_float32() -> None:
    first, second = torch.randn(2, 40, 5, generator=seeded(0)).half()
    metrics = (kernel_distance, precision_recall, lambda a, b: nearest_distances(a, b)[0].tolist())
    for metric in (*metrics, lambda a, b: inception_score(a)):
        assert metric(first, second) == metric(first.float(), second.float().requires_grad_())
    bytes_ = torch.randint(256, (2, 40, 5), generator=seeded(0), dtype=torch.uint8)
    for metric in metrics:
        assert metric(*bytes_) == metric(*bytes_.float())
    assert kernel_distance(first.double(), second) == pytest.approx(kernel_distance(first, second), rel=1e-4)


def test_precision_and_recall_refuse_what_has_no_neighbours() -> None:
    points = torch.randn(10, 4, generator=seeded())
    with pytest.raises(ValueError, match="`data` must be finite"):
        precision_recall(points, points.log())
    for neighbors in (0, 2.5, True):
        with pytest.raises(ValueError, match="`neighbors` must be a whole number >= 1"):
            precision_recall(points, points, neighbors)


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        (kernel_distance, ("samples", "data")),
        (precision_recall, ("samples", "data")),
        (sliced_wasserstein, ("samples", "data")),
        (nearest_distances, ("images", "train_images")),
    ],
)
def test_points_of_other_sizes_and_broken_ones_are_refused(metric: Callable[..., Any], names: tuple[str, str]) -> None:
    points = torch.randn(10, 4, generator=seeded())
    for narrow in (1, 3):
        with pytest.raises(ValueError, match=rf"but have {narrow} in `{names[0]}` and 4 in `{names[1]}`"):
            metric(points[:, :narrow], points)
    with pytest.raises(ValueError, match=f"`{names[0]}` must be finite"):
        metric(points / 0, points)


def test_nothing_is_nearest_in_an_empty_set() -> None:
    with pytest.raises(ValueError, match="`train_images` must be at least one point"):
        nearest_distances(torch.zeros(2, 3), torch.zeros(0, 3))


def test_copies_have_the_distance_zero() -> None:
    train = torch.randn(300, 1, 4, 4, generator=seeded(0)) + 20  # whose norms cancel badly in a matrix product
    distances, indices = nearest_distances(train[100:130] + 0.0, train)
    assert not distances.any() and indices.tolist() == [*range(100, 130)]


def test_neighbours_of_points_far_from_0_are_found() -> None:
    points, others = torch.randn(2, 200, 5, generator=seeded()).mul(16).round()  # not rounded when shifted
    shift = torch.tensor([3e6, -3e6, 0.0, 1e6, 0.0])
    assert torch.equal(nearest_distances(points + shift, others + shift)[0], nearest_distances(points, others)[0])
    assert precision_recall(points + shift, others + shift) == precision_recall(points, others)


@pytest.fixture(scope="module")
def quarters(digits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two quarters of scikit-learn's digits, enlarged to 28 x 28 pixels."""
    images = functional.interpolate(digits.float(), 18, mode="bilinear")
    images = functional.pad(images, (5, 5, 5, 5), value=-1)
    return images[::4], images[1::4]


@pytest.fixture(scope="module")
def ladder(quarters: tuple[torch.Tensor, torch.Tensor]) -> dict[str, dict[str, float]]:
    """The metrics of corrupted samples by the name of the corruption."""
    from sklearn.datasets import load_digits

    samples, data = quarters
    noise = torch.randn(samples.shape, generator=seeded())
    is_present = torch.tensor(load_digits().target[::4] != 3)
    sets = {
        "real": samples,
        "little noise": (samples + 0.3 * noise).clamp(-1, 1),
        "noise": (samples + 0.8 * noise).clamp(-1, 1),
        "blur": functional.avg_pool2d(samples, 5, 1, 2, count_include_pad=False),
        "missing class": samples[is_present],
        "duplicates": samples[:30].repeat(15, 1, 1, 1),
        "copies": data,
    }
    network = MNISTFeatures().eval()
    with torch.no_grad():
        reference = FeatureStatistics.of_features(network(data)[0], "mnist")
        return {name: compare_features(*network(images), reference, "mnist") for name, images in sets.items()}


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["frechet_distance", "kernel_distance"])
def test_distances_notice_every_corruption(ladder: dict[str, dict[str, float]], metric: str) -> None:
    values = {name: metrics[metric] for name, metrics in ladder.items()}
    assert values["copies"] < values["real"] < values["little noise"] < values["noise"]
    assert all(values["real"] < values[name] for name in ("blur", "missing class", "duplicates"))


@pytest.mark.slow
def test_precision_notices_bad_images_and_recall_missing_ones(ladder: dict[str, dict[str, float]]) -> None:
    precision, recall = ({name: each[metric] for name, each in ladder.items()} for metric in ("precision", "recall"))
    assert precision["copies"] == recall["copies"] == 1
    assert precision["real"] > precision["little noise"] > precision["noise"]
    assert recall["missing class"] < recall["real"] - 0.02 and recall["duplicates"] < recall["real"] - 0.1
    assert precision["missing class"] > precision["real"] - 0.02


@pytest.mark.slow
def test_the_inception_score_notices_what_is_no_clear_image_of_all_classes(ladder: dict[str, dict[str, float]]) -> None:
    score = {name: metrics["inception_score"] for name, metrics in ladder.items()}
    assert score["real"] > score["little noise"] > score["noise"]
    assert score["real"] > score["missing class"]


def test_memorised_samples_are_found(quarters: tuple[torch.Tensor, torch.Tensor]) -> None:
    order = torch.randperm(899, generator=seeded())  # neighbouring images are by the same hand
    images = ((torch.cat(quarters) + 1) * 127.5).to(torch.uint8)[order]
    train, held_out, others = images[:300], images[300:600], images[600:]
    honest = find_memorized(others, held_out, train)
    assert honest["share_of_near_copies"] < 0.04
    assert honest["mean_distance"] == pytest.approx(honest["mean_distance_of_reference"], rel=0.05)
    mixed = torch.cat([others[:150], train[:150]])
    report = find_memorized(mixed, held_out, train)
    assert report["share_of_near_copies"] == pytest.approx(0.5, abs=0.02)
    assert [pair["distance"] for pair in report["nearest"]] == [0] * 10
    assert all(pair["image"] == pair["train_image"] + 150 for pair in report["nearest"])
