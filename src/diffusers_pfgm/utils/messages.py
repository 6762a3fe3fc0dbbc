"""The text of errors in one line, for messages."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """Return the type and the message of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def reason(error: Exception) -> str:
    """Return the message of an error in one line without a final period, or its type if it has no message."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
