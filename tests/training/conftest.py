"""Fixtures of the tests of tuning."""

from pathlib import Path

import pytest

from diffusers_pfgm.examples.digits import split_digits, split_labels, write_parquet
from diffusers_pfgm.training.run.outputs import Outputs
from tests.training.tune import save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.parquet"
    write_parquet(split_digits()[0][:100], path, split_labels()[0][:100])
    return path


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process keep their first noise levels and draw no figures."""
    monkeypatch.setattr(Outputs, "_fit_levels", lambda self, pipeline: None)
    monkeypatch.setattr(Outputs, "_save_figure", lambda self, figure, name: None)
