"""Helpers for all parts of the package: argument checks, optional packages, files, error messages."""
