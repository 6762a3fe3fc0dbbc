"""Statistics of features survive their file, and their Fréchet distance equals other libraries' and closed forms."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusers_pfgm.metrics import FeatureStatistics, frechet_distance, load_feature_network
from diffusers_pfgm.metrics.feature_statistics import MNIST_STATISTICS, mnist_statistics
from tests.networks import seeded
from tests.scripts import load_script


def make_features(count: int, seed: int, dim: int = 12) -> torch.Tensor:
    mixing = torch.randn(dim, dim, generator=seeded(99)) / dim**0.5
    return torch.randn(count, dim, generator=seeded(seed)).exp() @ mixing


def test_distance_equals_that_of_torchmetrics_and_of_a_matrix_root() -> None:
    first, second = make_features(400, 0), make_features(300, 1) * 1.2 + 0.1
    distance = frechet_distance(*map(FeatureStatistics.of_features, (first, second)))
    network = torch.nn.Identity()
    network.num_features = 12
    metric = FrechetInceptionDistance(network)
    metric.update(first, real=True)
    metric.update(second, real=False)
    assert distance == pytest.approx(metric.compute().item(), rel=1e-3)
    means = [each.double().mean(0).numpy() for each in (first, second)]
    covariances = [np.cov(each.double().numpy(), rowvar=False) for each in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert distance == pytest.approx(expected, rel=1e-6)


def test_messages_for_too_few_images_name_the_number_that_is_needed() -> None:
    with pytest.warns(UserWarning, match="does not have full rank.*at least 13 images"):
        few = FeatureStatistics.of_features(make_features(12, 0))
    assert np.isfinite(frechet_distance(few, few)) and frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureStatistics.of_features(make_features(13, 0))
    with pytest.raises(ValueError, match="at least 2 images, but there are 1"):
        FeatureStatistics.of_features(make_features(1, 0))
    with pytest.raises(ValueError, match="NaN or infinity"):
        FeatureStatistics.of_features(make_features(20, 0).log())


def test_features_of_another_shape_and_with_a_gradient(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`features` must have the shape \(K, F\), but have \(9, 1, 2, 2\)"):
        FeatureStatistics.of_features(torch.zeros(9, 1, 2, 2))
    features = torch.randn(9, 2, requires_grad=True)
    FeatureStatistics.of_features(features).save(tmp_path / "statistics.npz")
    assert torch.equal(FeatureStatistics.load(tmp_path / "statistics.npz").features, features)


def test_a_file_holds_all_statistics(tmp_path: Path) -> None:
    statistics = FeatureStatistics.of_features(make_features(50, 0), "mnist", "0123")
    path = tmp_path / "reference.npz"
    statistics.save(path)
    loaded = FeatureStatistics.load(path)
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.covariance, statistics.covariance)
    assert (loaded.count, loaded.network, loaded.images) == (50, "mnist", "0123")
    assert loaded.features is not None and torch.equal(loaded.features, make_features(50, 0))
    assert [*tmp_path.iterdir()] == [path]


def test_files_of_other_codes_are_read(tmp_path: Path) -> None:
    features = make_features(50, 0).double().numpy()
    path = tmp_path / "fid.npz"  # the form of EDM, pytorch-fid and clean-fid
    np.savez(path, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    loaded = FeatureStatistics.load(path)
    assert (loaded.count, loaded.network, loaded.features) == (None, None, None)
    expected = FeatureStatistics.of_features(torch.from_numpy(features), "inception")
    assert frechet_distance(loaded, expected) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "holds no feature statistics"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"`mu` of shape \(3,\) and `sigma` of shape \(2, 2\)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "NaN or infinity"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "holds no feature statistics"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.load(path)


def damaged_archive() -> bytes:
    """A compressed file in the form of clean-fid, in whose middle some bytes are damaged."""
    file = io.BytesIO()
    np.savez_compressed(file, mu=np.zeros(3), sigma=np.eye(3))
    content = file.getvalue()
    return content[:60] + b"\xff" * 20 + content[80:]


@pytest.mark.parametrize("content", [b"", b"no zip", damaged_archive()])
def test_damaged_and_missing_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "reference.npz"
    with pytest.raises(ValueError, match="holds no feature statistics"):
        FeatureStatistics.load(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no feature statistics"):
        FeatureStatistics.load(path)


def test_statistics_of_other_networks_are_refused() -> None:
    statistics = [FeatureStatistics.of_features(make_features(50, 0), name) for name in ("inception", "mnist")]
    with pytest.raises(ValueError, match="12 features of inception and 12 features of mnist"):
        frechet_distance(*statistics)
    other = FeatureStatistics.of_features(make_features(50, 0, dim=5))
    with pytest.raises(ValueError, match="12 features of inception and 5 features of an unknown network"):
        frechet_distance(statistics[0], other)


def test_statistics_of_mnist_are_those_of_the_script(tmp_path: Path) -> None:
    """They are symmetric, fit the bundled network, and are of its size in float32; the script writes the same form."""
    statistics = mnist_statistics()
    assert MNIST_STATISTICS.stat().st_size < 100_000
    assert (statistics.network, statistics.count, statistics.features) == ("mnist", 10_000, None)
    assert (
        torch.linalg.eigvalsh(statistics.covariance).min() > -1e-4 and frechet_distance(statistics, statistics) < 1e-4
    )
    images = torch.rand(300, 1, 28, 28, generator=seeded()) * 2 - 1
    network = load_feature_network("mnist")
    load_script("train_mnist_classifier").save_statistics(network, images, tmp_path / "statistics.npz")
    written = FeatureStatistics.load(tmp_path / "statistics.npz")
    expected = FeatureStatistics.of_features(network(images)[0].detach())
    assert torch.allclose(written.mean, expected.mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(written.covariance, expected.covariance, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "statistics.npz").stat().st_size < 100_000 and written.count == 300
