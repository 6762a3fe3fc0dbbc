"""Text of error messages."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """Return the type and the message of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
