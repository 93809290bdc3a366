"""The command line. Nothing heavy is imported before a command runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of `vauban`."""
    from vauban.cli.app import app

    app()
