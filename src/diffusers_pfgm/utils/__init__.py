"""Helpers that belong to no part of the package: optional packages, files, messages."""
