"""How often a run reads each of its corpora: the one part of a plan that looks at files."""

from __future__ import annotations

from launcher.job import Job
from launcher.mixes import epochs


def epochs_of(job: Job, tokens: int) -> dict[str, float] | None:
    """Epochs by corpus in a run of `tokens` (`Estimate.training.tokens`); None where no shards are at hand.

    Raises BadShards, BadConfig for shards that are there and unfit.
    """
    length = job.recipe.model.sequence_length
    return epochs(job.recipe.data, length, tokens // length)
