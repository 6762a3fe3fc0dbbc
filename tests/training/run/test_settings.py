"""A run resumes only from a checkpoint with the same settings."""

import pytest

from diffusers_pfgm.training.run.arguments import parse_args
from diffusers_pfgm.training.run.settings import check_settings, check_steps, run_settings


def test_each_setting_that_differs_is_listed_with_both_values() -> None:
    saved = run_settings({"learning_rate": 1e-4, "gamma": 5.0, "output_dir": "a"}, images_per_step=32)
    check_settings(saved, run_settings({"learning_rate": 1e-4, "gamma": 5.0, "output_dir": "b"}, images_per_step=32))
    current = run_settings({"learning_rate": 1e-3, "aug_dim": 1.0}, images_per_step=32)
    with pytest.raises(ValueError, match=r"aug_dim was None and is 1.0; gamma was 5.0 and is None") as error:
        check_settings(saved, current)
    assert "learning_rate was 0.0001 and is 0.001" in str(error.value) and "output_dir was" not in str(error.value)


def test_an_error_of_the_batch_size_names_possible_numbers_of_processes() -> None:
    with pytest.raises(ValueError, match=r"images_per_step was 32 and is 48; .* number of processes that divides 32"):
        check_settings(run_settings({}, images_per_step=32), run_settings({}, images_per_step=48))


def test_settings_have_the_form_they_have_in_json() -> None:
    settings = run_settings({"aug_dim": float("inf"), "channels": (8, 16)})
    assert settings == {"aug_dim": "inf", "channels": [8, 16]}


def test_settings_of_the_data_are_compared_up_to_rounding() -> None:
    saved = run_settings({}, images_per_step=32, **{"data.images": "ab", "data.sigma_max": 17.88})
    check_settings(saved, saved | {"data.sigma_max": 17.88 * (1 + 1e-7)})
    for name, value in {"data.images": "cd", "data.sigma_max": 17.9, "data.classes": "ef"}.items():
        current = saved | {name: value}
        with pytest.raises(ValueError, match=rf"{name} was .* follow from the images, labels and class names"):
            check_settings(current, saved)
    with pytest.raises(ValueError, match=r"data.sigma_max was 17.88 and is 1.6"):
        check_settings(saved, saved | {"data.sigma_max": 1.6})


def test_a_checkpoint_without_settings_of_the_data_is_accepted() -> None:
    saved = run_settings({}, images_per_step=32)
    check_settings(saved, run_settings({}, images_per_step=32, **{"data.images": "ab", "data.M": 261}))


def test_a_run_does_not_end_before_its_checkpoint() -> None:
    check_steps(4, 4)
    with pytest.raises(ValueError, match=r"written after step 1,000, but the run ends after step 999"):
        check_steps(1000, 999)


def test_checkpoints_of_earlier_versions_have_the_preconditioning_of_their_objective() -> None:
    # Version 0.1.0 saved the options of both objectives, and no preconditioning.
    earlier = {"aug_dim": 1.0, "prediction_type": "epsilon", "sigma_data": 0.5, "gamma": 5.0}
    names = {"objective", "aug_dim", "prediction_type", "preconditioning", "sigma_data", "gamma", "p_mean", "p_std"}

    def settings(*options: str) -> dict[str, object]:
        values = vars(parse_args(None, [*options]))
        return run_settings({name: values[name] for name in names}, images_per_step=32)

    field = run_settings({**earlier, "objective": "field"}, images_per_step=32)
    check_settings(field, settings("--objective=field"))
    perturbation = run_settings({**earlier, "objective": "perturbation"}, images_per_step=32)
    check_settings(perturbation, settings("--preconditioning=edm"))
    with pytest.raises(ValueError, match="preconditioning was 'edm' and is 'student_t'"):
        check_settings(perturbation, settings())
    with pytest.raises(ValueError, match="preconditioning was 'none' and is 'edm'"):
        check_settings(field, settings("--objective=field", "--preconditioning=edm"))
