"""What the commands themselves refuse."""

from __future__ import annotations


class UserError(Exception):
    """A command that cannot work as given. One line that says how to mend it."""

    exit_code = 2


class EnvironmentFailure(Exception):
    """The machine gave out while a command wrote its files. Nothing half-written is left looking whole."""

    exit_code = 1
