"""What can go wrong in the data pipeline, each as one class with one clear line.

`exit_code` is what the command line ends with: 2 for a mistake that the user can mend, 1 for a machine that gave out.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a recipe, in its files or in how they fit together. The message says what to change."""

    exit_code = 2


class BadConfig(UserError):
    """A value of the recipe that cannot work."""


class BadCorpus(UserError):
    """Sources that give no text: nothing matches, nothing can be read, or nothing is left after the filters."""


class BadTokenizer(UserError):
    """A tokenizer that does not fit: not lossless, not the shards' own, or not trainable on this text."""


class BadShards(UserError):
    """A folder that is no complete shard set, or shard sets that do not fit together."""


class DataMismatch(UserError):
    """A resume whose data differs from the checkpoint's; the message names the difference."""


class EnvironmentFailure(Exception):
    """The machine gave out: disk full, file gone. Nothing half-written is left looking whole."""

    exit_code = 1


class DamagedShard(EnvironmentFailure):
    """A shard whose bytes are not those that were written; the message names the file."""
