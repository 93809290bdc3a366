"""`python -m vauban`."""

from vauban.cli import main

main()
