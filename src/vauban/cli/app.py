"""The verbs, one file a group."""

from __future__ import annotations

from vauban.cli import auditing, catalogue, files, runs, setup
from vauban.cli.verb import app

GROUPS = (auditing, runs, files, catalogue, setup)
"""Importing a group registers its verbs, in this order."""

__all__ = ["GROUPS", "app"]
