"""Optional packages: the error for a missing package names the extra that installs it."""

from __future__ import annotations

import importlib.util


def require_extra(extra: str, *packages: str) -> None:
    """Check that optional packages are installed.

    Args:
        extra: the extra of `pyproject.toml` that installs them.
        *packages: the names by which the packages are imported.

    Raises:
        ModuleNotFoundError: if one of them is missing; the message has the command that installs it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} must be installed for this. Install the extra `{extra}`: "
            f"pip install '.[{extra}]' in a checkout of diffusers-pfgm.",
            name=missing[0],
        )
