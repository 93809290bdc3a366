"""The verbs, one file a group."""

from __future__ import annotations

import vauban.cli.auditing as auditing
import vauban.cli.catalogue as catalogue
import vauban.cli.files as files
import vauban.cli.runs as runs
import vauban.cli.setup as setup
from vauban.cli.verb import app

GROUPS = (auditing, runs, files, catalogue, setup)
"""Importing a group registers its verbs, in this order."""

__all__ = ["GROUPS", "app"]
