"""Packages that not every user needs: what is missing is named together with the extra that brings it."""

from __future__ import annotations

import importlib.util


def require_extra(extra: str, *packages: str) -> None:
    """Raises ModuleNotFoundError, with the command that installs them, unless all of these packages are there.

    Args:
        extra: of `pyproject.toml`.
        packages: the names by which they are imported.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} must be installed for this. Install the extra `{extra}`: "
            f"pip install '.[{extra}]' in a checkout of diffusers-pfgm.",
            name=missing[0],
        )
