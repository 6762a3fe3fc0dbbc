"""Figures of the physics, one for each function. Needs matplotlib, which the extra `training` installs."""

from ..utils.extras import require_extra

require_extra("training", "matplotlib")

from .animation import animate_images, animate_points, save_gif
from .denoised import plot_denoised
from .hemisphere import Agreement, AngleLaw, hemisphere_angles, hemisphere_laws, plot_hemisphere, uniformity
from .lines import dome, field_lines, normal_angles, plot_field_lines, potential
from .sigma_density import plot_sigma_density
from .trajectories import Trajectory, norm_quantiles, plot_trajectories, record_trajectory

__all__ = [
    "Agreement",
    "AngleLaw",
    "Trajectory",
    "animate_images",
    "animate_points",
    "dome",
    "field_lines",
    "hemisphere_angles",
    "hemisphere_laws",
    "norm_quantiles",
    "normal_angles",
    "plot_denoised",
    "plot_field_lines",
    "plot_hemisphere",
    "plot_sigma_density",
    "plot_trajectories",
    "potential",
    "record_trajectory",
    "save_gif",
    "uniformity",
]
