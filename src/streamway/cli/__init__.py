"""The command line: the only room that prints, reads settings and exits."""

from streamway.cli.entry import main

__all__ = ["main"]
