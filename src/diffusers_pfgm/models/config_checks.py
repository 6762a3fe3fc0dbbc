"""Checks of the configurations of the published networks."""

from __future__ import annotations

from typing import Any


def check_sample_size(config: Any) -> None:
    """Raise a ValueError unless the images are square and can be halved as often as there are levels."""
    if not isinstance(config.sample_size, int):
        raise ValueError(
            f"`sample_size` must be a whole number, the height and width of square images, but is {config.sample_size}."
        )
    levels = len(config.block_out_channels)
    factor = 2 ** (levels - 1)
    if config.sample_size % factor:
        raise ValueError(
            f"`sample_size` must be a multiple of {factor} for {levels} levels, but is {config.sample_size}. Use fewer "
            "`block_out_channels` or another size."
        )


def check_choices(config: Any, **choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless each of these options of the configuration has one of its allowed values."""
    for name, allowed in choices.items():
        if config[name] not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, but is {config[name]!r}.")
