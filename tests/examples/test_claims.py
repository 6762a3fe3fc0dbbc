"""The claims of the papers: both verdicts of each by constructed figures, and small measurements."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from diffusers_pfgm import ChargeField, PoissonFlow, PoissonFlowScheduler, PoissonKernel
from diffusers_pfgm.examples.claims import calls, euler, field_target, latents, norms, speed, weak_networks
from diffusers_pfgm.examples.claims.claim import CONFIRMED, NOT_MEASURABLE, REFUTED, Check, Claim, interval
from diffusers_pfgm.examples.claims.page import make_page, read_claims
from diffusers_pfgm.examples.claims.weak_networks import CONTROL, EDM, PFGM
from diffusers_pfgm.examples.digits import split_digits
from tests.networks import seeded
from tests.training.data.test_images import write_images

NOISE = (0.99, 1.0, 1.01)  # factors of a figure, one for each seed


@pytest.mark.parametrize(
    ("relation", "values", "verdict"),
    [
        ("above", [2.0, 2.1, 2.2], CONFIRMED),
        ("below", [2.0, 2.1, 2.2], REFUTED),
        ("above", [0.1, 0.2, 0.3], REFUTED),
        ("below", [0.1, 0.2, 0.3], CONFIRMED),
        ("above", [0.0, 2.0, 4.0], NOT_MEASURABLE),
        ("below", [1.0], NOT_MEASURABLE),
        ("above", [1.1], CONFIRMED),
    ],
)
def test_a_check_needs_the_whole_interval(relation: str, values: list[float], verdict: str) -> None:
    assert Check("", relation, 1.0, values).verdict == verdict


def test_the_interval_is_that_of_student() -> None:
    """4.3027 is the 97.5 % quantile of Student's t with two degrees of freedom, from tables."""
    mean, half_width = interval([1.0, 2.0, 6.0])
    assert mean == 3 and half_width == pytest.approx(4.3027 * math.sqrt(7 / 3), rel=1e-4)


def leave_out_pictures(module: ModuleType, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture of each claim is drawn, in the case where it is confirmed; an empty one takes less time."""
    if verdict != CONFIRMED:
        monkeypatch.setattr(module, "_draw", lambda *figures: Figure())


def check_published_texts(letter: str, claim: Claim, has_same_sizes: bool = True) -> None:
    """Check that docs/claims.json has the texts of the code, so that a change of one is also made in the other."""
    published = read_claims(Path(__file__).parents[2] / "docs" / "claims.json")[letter]
    texts = [
        (each.title, each.statement, each.source, each.header, each.pictures, list(each.sizes))
        for each in (claim, published)
    ]
    assert texts[0] == texts[1]
    assert [check.quantity for check in claim.checks] == [check.quantity for check in published.checks]
    assert {cell for row in claim.rows for cell in row if isinstance(cell, str)} <= {
        cell for row in published.rows for cell in row if isinstance(cell, str)
    }
    assert claim.method == published.method or not has_same_sizes


def claim_of(*values: float) -> Claim:
    return Claim("", "", "", "", checks=[Check("", "above", 0.0, [value]) for value in values])


def test_a_claim_needs_all_checks() -> None:
    assert [claim_of(*values).verdict for values in [(1, 1), (1, -1), (1, 0), (0, -1)]] == [
        CONFIRMED,
        REFUTED,
        NOT_MEASURABLE,
        REFUTED,
    ]
    assert claim_of().verdict == NOT_MEASURABLE


@pytest.mark.parametrize(
    ("share", "growth", "verdict"), [(0.99, 1.0, CONFIRMED), (0.5, 1.0, REFUTED), (0.99, 2.0, REFUTED)]
)
def test_few_calls(share: float, growth: float, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mnist(seeds: Any, images: int, counts: Any) -> tuple[dict, dict]:
        keys = [("mnist_consistency", 1), ("mnist_consistency", 2), *(("mnist", count) for count in counts)]
        figures = {key: [40 * noise for noise in NOISE] for key in keys}
        figures["mnist", counts[-2]] = [growth * value for value in figures["mnist", counts[-1]]]
        return figures, figures

    monkeypatch.setattr(calls, "_agreements", lambda *arguments: {calls.FITTED: [[share] * 3] * 3})
    monkeypatch.setattr(calls, "_mnist", mnist)
    leave_out_pictures(calls, verdict, monkeypatch)
    claim = calls.few_calls(tmp_path)
    assert claim.verdict == verdict
    check_published_texts("a", claim)
    assert Image.open(tmp_path / calls.PICTURE).width >= 512


@pytest.mark.parametrize(
    ("edm", "control", "verdict"), [(2.0, 1.5, CONFIRMED), (0.5, 1.5, REFUTED), (2.0, 0.8, REFUTED)]
)
def test_weak_networks(edm: float, control: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = {PFGM: 1.0, EDM: edm, CONTROL: control}
    monkeypatch.setattr(weak_networks, "trained_network", lambda kind, width, seed, steps: (kind, seed))
    monkeypatch.setattr(weak_networks, "distance_of", lambda pipe, *sizes: distances[pipe[0]] * NOISE[pipe[1]])
    claim = weak_networks.weak_networks()
    assert claim.verdict == verdict
    check_published_texts("b", claim)


def test_small_networks_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control differs from EDM by its noise levels alone, and equal seeds have equal weights."""
    networks = {kind: weak_networks.trained_network(kind, 8, 0, 2) for kind in (PFGM, EDM, CONTROL)}
    configs = {kind: pipe.scheduler.config for kind, pipe in networks.items()}
    assert (configs[PFGM].aug_dim, configs[EDM].aug_dim) == (1, None)
    assert configs[PFGM].mean_square_std > 0 and dict(configs[EDM]) == dict(configs[CONTROL])
    weights = [network.unet.conv_in.weight for network in networks.values()]
    assert not torch.equal(weights[1], weights[2]) and (weights[1] - weights[2]).abs().max() < 0.01
    monkeypatch.setattr(weak_networks, "digits_distance", lambda epochs: lambda images: images.abs().amax().item())
    assert weak_networks.distance_of(euler.with_euler(networks[EDM]), 3, 2, 1) <= 1


@pytest.mark.parametrize(
    ("share", "growth", "verdict"), [(0.9, 2.0, CONFIRMED), (0.6, 2.0, REFUTED), (0.9, 0.5, REFUTED)]
)
def test_step_sizes(share: float, growth: float, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def agreements(aug_dim: float | None, prior: str | None, runs: Any, steps: list, *sizes: Any) -> list[list[float]]:
        return [[noise * (0.8 if aug_dim is None else share) for noise in NOISE] for _ in steps]

    def distance(pipe: tuple[str, int], samples: int, count: int, epochs: int) -> float:
        return NOISE[pipe[1]] * (growth if pipe[0] == EDM and count == 10 else 1.0)

    monkeypatch.setattr(euler, "agreement_with_reference", agreements)
    monkeypatch.setattr(euler, "trained_network", lambda kind, width, seed, steps: (kind, seed))
    monkeypatch.setattr(euler, "with_euler", lambda pipe: pipe)
    monkeypatch.setattr(euler, "distance_of", distance)
    leave_out_pictures(euler, verdict, monkeypatch)
    monkeypatch.setattr(euler, "_mnist", lambda *sizes: ([[0.0] * 3] * 4,) * 2)
    claim = euler.step_sizes(tmp_path)
    assert claim.verdict == verdict
    check_published_texts("c", claim)
    assert Image.open(tmp_path / euler.PICTURE).width >= 512


@pytest.mark.slow
@pytest.mark.parametrize(("aug_dim", "verdict"), [(1.0, CONFIRMED), (1000.0, REFUTED)])
def test_norms(aug_dim: float | None, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured on few samples, and with a kernel without heavy tails in the place of PFGM's."""
    monkeypatch.setattr(norms, "FLOWS", {"PFGM, D = 1": aug_dim, "VE, D = ∞": None})
    leave_out_pictures(norms, verdict, monkeypatch)
    claim = norms.norms_against_z(tmp_path, samples=400, steps=4)
    assert [check.verdict for check in claim.checks[1:]] == [verdict] * 2
    assert claim.checks[0].verdict == verdict or aug_dim != 1
    check_published_texts("d", claim)
    assert Image.open(tmp_path / norms.PICTURE).width >= 512
    closed_form, measured = claim.rows[2][-2], claim.rows[0][-2]
    assert interval(measured)[0] == pytest.approx(closed_form, rel=0.4 if aug_dim == 1 else 0.1)


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [([1.0, 0.5, 0.2], CONFIRMED), ([1.0, 0.9, 0.8], REFUTED), ([1.0, 0.2, 0.3], REFUTED)],
)
def test_variance_of_the_target(errors: list[float], verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        field_target, "target_errors", lambda points, charges, seed: [error * NOISE[seed] for error in errors]
    )
    assert field_target.variance_of_the_target(charges=(1, 2, 4)).verdict == verdict


def test_the_texts_of_the_target_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_target, "target_errors", lambda points, charges, seed: [1.0 / count for count in charges])
    check_published_texts("e", field_target.variance_of_the_target())


def test_the_target_of_all_charges_has_no_error() -> None:
    one, some, all_charges = field_target.target_errors(5, (1, 700, 1437), 0)
    assert one > some > all_charges and all_charges < 1e-20


@pytest.mark.parametrize(("bits", "verdict"), [(1.0, CONFIRMED), (2.0, REFUTED)])
def test_likelihood(bits: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """−log₂ of the probability of a bin, density times 2/255 in each of the 784 dimensions, is 784 times the bits."""
    log_prob = -784 * (bits * math.log(2) + math.log(2 / 255))
    output = SimpleNamespace(log_prob=torch.tensor([log_prob, log_prob]), nfe=90)

    class Pipe:
        set_progress_bar_config = staticmethod(lambda disable: None)
        __call__ = staticmethod(lambda images, **options: output)

    monkeypatch.setattr(latents, "load_model", lambda name: SimpleNamespace(components={}))
    monkeypatch.setattr(latents, "PFGMLikelihoodPipeline", Pipe)
    monkeypatch.setattr(latents, "image_sets", lambda mnist, sets, count: [torch.zeros(2, 1, 28, 28)] * sets)
    claim = latents.likelihood("mnist.parquet")
    assert claim.verdict == verdict and claim.checks[0].values == pytest.approx([bits] * 3)
    check_published_texts("f", claim)


@pytest.mark.parametrize(("prior", "verdict"), [(1.0, CONFIRMED), (None, REFUTED), (2.0, REFUTED)])
def test_theorem_one(prior: float | None, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents of another kernel than that of D = 1 are not uniform on the hemisphere."""

    def encode(flow: PoissonFlow, x: torch.Tensor, tolerance: float, class_labels: torch.Tensor | None = None) -> Any:
        assert class_labels is None or (class_labels == 10).all()
        mean = flow.scheduler.config.data_mean or 0.0
        return SimpleNamespace(latents=mean + PoissonKernel(prior).sample(x.shape, flow.sigma_max, seeded(5)))

    monkeypatch.setattr(PoissonFlow, "encode", encode)
    monkeypatch.setattr(latents, "image_sets", lambda mnist, sets, count: [torch.zeros(count, 1, 28, 28)] * sets)
    claim = latents.theorem_one("mnist.parquet", images=200)
    assert claim.verdict == verdict
    check_published_texts("g", claim)


def test_sets_of_images_are_disjoint_and_complete(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=6, size=(28, 28))
    sets = latents.image_sets(str(folder), 3, 2)
    assert [tuple(images.shape) for images in sets] == [(2, 1, 28, 28)] * 3
    assert len(torch.cat(sets).unique(dim=0)) == 6
    with pytest.raises(ValueError, match=r"`mnist` \(option `--mnist`\) .* has 6 images, but 2 sets of 4 .* least 8"):
        latents.image_sets(str(folder), 2, 4)


@pytest.mark.slow
def test_digits_become_uniform_in_their_exact_field() -> None:
    """The control of Theorem 1, which fails for directions that are measured from another point than the mean."""
    digits = split_digits()[0].double()
    flow = PoissonFlow(ChargeField(digits), PoissonFlowScheduler(sigma_max=98.0))
    (angles,) = latents.encoded_uniformity(flow, {0: digits[:60]}, digits.mean().item(), 1e-3)
    assert min(agreement.p_value for agreement in angles.values()) > 0.01
    (angles,) = latents.encoded_uniformity(flow, {0: digits[:60]}, digits.mean().item() + 20, 1e-3)
    assert angles["elevation"].p_value < 0.01


def test_claims_on_images_that_are_missing() -> None:
    for claim in (latents.likelihood(None), latents.theorem_one(None)):
        assert claim.verdict == NOT_MEASURABLE
        page = make_page({"f": claim})
        assert f"**{NOT_MEASURABLE} (not measured)**: {latents.MISSING}" in page
        assert f"| f | {claim.title} | **{NOT_MEASURABLE} (not measured)** |" in page
    assert "MNIST=" in latents.MISSING


@pytest.mark.parametrize(
    ("naive", "step", "verdict"), [(20.0, 0.5, CONFIRMED), (5.0, 0.5, REFUTED), (20.0, 1.5, REFUTED)]
)
def test_speed(naive: float, step: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def times() -> Iterator[float]:
        yield from [naive, 1.0] * 3
        yield from itertools.cycle([step, 1.0])

    taken = times()

    def seconds(function: Callable[[], object]) -> float:
        function()
        return next(taken)

    monkeypatch.setattr(speed, "seconds", seconds)
    claim = speed.speed(2, (1, 1, 8, 8), (4, 16, 64))
    assert claim.verdict == verdict
    check_published_texts("h", claim, has_same_sizes=False)


def test_the_naive_target_is_the_same() -> None:
    x, z, charges = torch.randn(5, 30), torch.rand(5) + 0.5, torch.randn(40, 30)
    ours = speed.normalized_field(x, z, charges)
    assert torch.allclose(speed.naive_target(x, z, charges), ours, atol=1e-4)
