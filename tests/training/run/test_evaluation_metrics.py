"""Comparisons of many images are bounded in memory, and take all classes alike."""

import pytest
import torch

from diffusers_pfgm.examples.digits import split_digits
from diffusers_pfgm.training.run import evaluation_metrics
from diffusers_pfgm.training.run.evaluation_metrics import compare_pixels, find_memorized


def test_images_are_compared_within_a_bound_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = ((split_digits()[0][:90] + 1) * 127.5).round().to(torch.uint8)
    expected = find_memorized(digits[:20], digits[20:40], digits[10:])
    monkeypatch.setattr(evaluation_metrics, "_count_compared", lambda pixels, reference: 20)
    assert find_memorized(digits[:20], digits[20:40], digits[10:]) == expected
    monkeypatch.undo()
    monkeypatch.setattr(evaluation_metrics, "MAX_BYTES", 8 * 64 * 7)
    assert len(find_memorized(digits, digits, digits)["nearest"]) == 7
    assert compare_pixels(digits[:7], digits[:7]) == 0
    compared: list[tuple[int, int]] = []
    monkeypatch.setattr(
        evaluation_metrics, "sliced_wasserstein", lambda samples, data: compared.append((len(samples), len(data)))
    )
    compare_pixels(digits, digits)
    assert compared == [(7, 7)]


def test_the_compared_images_have_all_classes_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[torch.Tensor] = []
    monkeypatch.setattr(evaluation_metrics, "sliced_wasserstein", lambda samples, data: compared.append(samples))
    labels = (torch.arange(50_000) % 10).to(torch.uint8).view(-1, 1, 1, 1)  # generated images have the classes in turn
    compare_pixels(labels, labels[:10_000])
    counts = torch.bincount(((compared[0] + 1) * 127.5).round().long().flatten())
    assert len(counts) == 10 and ((counts - 1000).abs() < 100).all()  # the standard deviation is 27
