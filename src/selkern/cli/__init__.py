"""The `selkern` program: one file for each command, options and function."""

from selkern.cli.program import COMMANDS, HELP, main

__all__ = ["COMMANDS", "HELP", "main"]
