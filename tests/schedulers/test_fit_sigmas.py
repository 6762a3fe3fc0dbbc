"""A fitted spacing works with any number of steps, every prediction type, and in a saved pipeline."""

from pathlib import Path

import pytest
import torch

from diffusers_pfgm import ChargeField, PFGMPipeline, PoissonFlowScheduler, fit_sigmas
from diffusers_pfgm.plots import plot_sigma_density
from diffusers_pfgm.schedulers import fit_sigmas as fitting
from tests.networks import ExactNetwork, make_tiny_pipeline, make_tiny_unet, seeded


@pytest.fixture(scope="module")
def charges() -> torch.Tensor:
    return torch.randn(7, 1, 4, 4, generator=seeded())


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow field lines in fewer steps, for tests that compare fits with each other."""
    monkeypatch.setattr(fitting, "FINE_STEPS", 50)


def test_a_fit_only_sets_the_knots_of_a_copy(charges: torch.Tensor) -> None:
    scheduler = PoissonFlowScheduler(sigma_max=30.0, max_norm=500.0, gamma=2.0)
    before = dict(scheduler.config)
    fitted = fit_sigmas(ChargeField(charges, gamma=2.0), scheduler, (1, 4, 4), seeded())
    assert dict(scheduler.config) == before and scheduler.num_inference_steps is None
    same = {name for name, value in before.items() if fitted.config[name] == value}
    assert set(before) - same <= {"sigma_knots", "_use_default_values"}
    assert fitted.config.sigma_knots[0] == pytest.approx(30) and fitted.config.sigma_knots[-1] == pytest.approx(0.01)
    for count in (1, 2, 9, 100):
        fitted.set_timesteps(count)
        assert len(fitted.timesteps) == count and fitted.timesteps[0].item() == pytest.approx(30)


def test_fits_with_the_same_seed_are_equal(charges: torch.Tensor) -> None:
    before, field = torch.get_rng_state(), ChargeField(charges)
    knots = [
        fit_sigmas(field, PoissonFlowScheduler(), (1, 4, 4), generator, 8).config.sigma_knots
        for generator in (seeded(), seeded(), [seeded(i) for i in range(8)])
    ]
    assert knots[0] == knots[1] != knots[2] and torch.equal(before, torch.get_rng_state())


def test_a_network_is_called_200_times_with_its_class_labels(charges: torch.Tensor) -> None:
    scheduler, labels = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=1.0), torch.arange(7) % 2
    network = ExactNetwork(charges, scheduler.parameterization, 1.0, labels)
    class_labels = torch.tensor([0, 1, 2, 2])
    fit_sigmas(network, scheduler, (1, 4, 4), seeded(), 4, class_labels=class_labels)
    assert [shape for shape, _ in network.calls] == [(4, 1, 4, 4)] * 200
    assert all(torch.equal(passed, class_labels) for _, passed in network.calls)


def test_a_fit_does_not_depend_on_the_batch_size(coarse: None, charges: torch.Tensor) -> None:
    scheduler, labels = PoissonFlowScheduler(prediction_type="epsilon", sigma_data=1.0), torch.arange(7) % 2
    class_labels = torch.tensor([0, 1, 2, 2, 0])
    knots = []
    for batch_size in (None, 2, 5, 9):
        network = ExactNetwork(charges, scheduler.parameterization, 1.0, labels)
        fitted = fit_sigmas(network, scheduler, (1, 4, 4), seeded(), 5, batch_size, class_labels=class_labels)
        knots.append(fitted.config.sigma_knots)
        assert max(shape[0] for shape, _ in network.calls) == (2 if batch_size == 2 else 5)
    assert all(each == pytest.approx(knots[0], rel=1e-9) for each in knots)
    with pytest.raises(ValueError, match="`batch_size` must be a whole number >= 1, but is 0"):
        fit_sigmas(network, scheduler, (1, 4, 4), seeded(), 5, 0, class_labels=class_labels)


def test_every_prediction_type_has_the_same_spacing(charges: torch.Tensor) -> None:
    knots = []
    for options in ({"prediction_type": "sample"}, {"prediction_type": "epsilon", "sigma_data": 0.5}):
        scheduler = PoissonFlowScheduler(aug_dim=None, **options)
        network = ExactNetwork(charges.double(), scheduler.parameterization)
        knots.append(fit_sigmas(network, scheduler, (1, 4, 4), seeded()).config.sigma_knots)
    assert knots[0] == pytest.approx(knots[1], rel=0.01)  # timesteps are rounded to float32


def test_knots_of_the_ddpm_family_are_within_its_timesteps(charges: torch.Tensor) -> None:
    scheduler = PoissonFlowScheduler(None, prediction_type="v_prediction", beta_schedule="linear")
    fitted = fit_sigmas(ExactNetwork(charges, scheduler.parameterization), scheduler, (1, 4, 4), seeded())
    fitted.set_timesteps(300)
    assert fitted.timesteps[0].item() == pytest.approx(999) and 0 <= fitted.timesteps[-1] < 10
    assert (fitted.timesteps.diff() < 0).all() and fitted.init_noise_sigma == 1
    infinite = PoissonFlowScheduler(None, prediction_type="sample", beta_schedule="linear", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="starts at infinite sigma"):
        fit_sigmas(ExactNetwork(charges, infinite.parameterization), infinite, (1, 4, 4))


def test_a_saved_pipeline_keeps_the_knots(coarse: None, tmp_path: Path) -> None:
    pipe = make_tiny_pipeline()
    pipe.scheduler = fit_sigmas(pipe.unet, pipe.scheduler, (1, 8, 8), seeded(), 2)
    pipe.save_pretrained(tmp_path)
    loaded = PFGMPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.sigma_knots == pipe.scheduler.config.sigma_knots
    loaded.set_progress_bar_config(disable=True)
    images = [each(2, 6, seeded(), output_type="pt").images for each in (pipe, loaded)]
    assert torch.equal(*images)


def test_a_network_with_the_wrong_output_shape_raises() -> None:
    with pytest.raises(ValueError, match="`model_output` must have the shape"):
        fit_sigmas(make_tiny_unet(1, 1), PoissonFlowScheduler(), (1, 8, 8))


def test_a_field_of_another_d_or_gamma_raises(charges: torch.Tensor) -> None:
    for name, field in (("aug_dim", ChargeField(charges, aug_dim=64.0)), ("gamma", ChargeField(charges, gamma=1.0))):
        with pytest.raises(ValueError, match=f"`{name}` of the field is .*, but that of the scheduler is "):
            fit_sigmas(field, PoissonFlowScheduler(), (1, 4, 4), seeded())


def test_the_density_plot(charges: torch.Tensor, tmp_path: Path) -> None:
    fitted = fit_sigmas(ChargeField(charges), PoissonFlowScheduler(), (1, 4, 4), seeded())
    figure = plot_sigma_density(fitted, 12)
    figure.savefig(tmp_path / "density.png")
    axes = figure.axes[0]
    values, edges, _ = axes.patches[0].get_data()
    decades = torch.as_tensor(edges).log10().diff()
    assert float((torch.as_tensor(values) * decades).sum()) == pytest.approx(1)  # shares of all steps
    assert len(axes.lines[1].get_xdata()) == 12 and axes.get_xscale() == "log"
    with pytest.raises(ValueError, match="has no `sigma_knots` to show"):
        plot_sigma_density(PoissonFlowScheduler())
