"""`trestle prepare`: files → kept documents → a tokenizer → packed samples → shard sets, and a report.

    check.py      refuses a recipe that cannot work
    pipeline.py   the phases, in order: start here
    reading.py    files → documents, through the stages that look at one document at a time
    scoring.py    the learned quality filter
    selecting.py  duplicates and evaluation sets taken out, a share held out
    encoding.py   tokenizer, tokens, shard sets
    reporting.py  what the report is made of
    runner.py     runs a phase's tasks, each once, over restarts (progress.py says how far it is)
    ray_tasks.py  makes the calls on a Ray cluster

Equal input gives equal bytes, for any number of workers and any history of kills.
"""

from data_pipeline.prepare.encoding import ShardSetResult
from data_pipeline.prepare.pipeline import CorpusResult, PrepareResult, prepare

__all__ = ["CorpusResult", "PrepareResult", "ShardSetResult", "prepare"]
