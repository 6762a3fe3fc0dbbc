"""Errors of other libraries in one line of a message."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """An error's kind and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
