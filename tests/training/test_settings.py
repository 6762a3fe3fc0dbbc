"""A run goes on only from its own configuration."""

import pytest

from diffusers_pfgm.training.settings import check_settings, run_settings


def test_each_key_that_differs_is_named_with_both_values() -> None:
    saved = run_settings({"learning_rate": 1e-4, "gamma": 5.0, "output_dir": "a"}, images_per_step=32)
    check_settings(saved, run_settings({"learning_rate": 1e-4, "gamma": 5.0, "output_dir": "b"}, images_per_step=32))
    current = run_settings({"learning_rate": 1e-3, "aug_dim": 1.0}, images_per_step=32)
    with pytest.raises(ValueError, match=r"aug_dim was None and is 1.0; gamma was 5.0 and is None") as error:
        check_settings(saved, current)
    assert "learning_rate was 0.0001 and is 0.001" in str(error.value) and "output_dir was" not in str(error.value)


def test_processes_that_do_not_divide_are_told_which_would() -> None:
    with pytest.raises(ValueError, match=r"images_per_step was 32 and is 48; .* divide 32 can go on"):
        check_settings(run_settings({}, images_per_step=32), run_settings({}, images_per_step=48))


def test_settings_are_strict_json_and_survive_it() -> None:
    settings = run_settings({"aug_dim": float("inf"), "channels": (8, 16)})
    assert settings == {"aug_dim": "inf", "channels": [8, 16]}
