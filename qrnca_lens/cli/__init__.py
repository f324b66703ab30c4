"""A thin Typer face over the public functions."""

from qrnca_lens.cli.app import app

__all__ = ["app"]
