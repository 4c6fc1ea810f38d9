"""`trestle prepare` for pictures with captions: files, lists and tars → checked pairs → shard sets, and a report.

    check.py       refuses a recipe that cannot work
    pipeline.py    the phases, in order: start here
    finding.py     what sources are made of: pictures with captions beside them, lists, tars
    reading.py     the first phase: each kind of source → checked pairs on disk (lists.py, tars.py, raw.py)
    checking.py    the checks that look at one pair at a time (pictures.py: does it decode, is it large enough)
    store.py       checked pairs on disk between the phases
    duplicates.py  copies and near copies (hashing.py: what a picture looks like; banding.py: what is near)
    selecting.py   copies taken out, a share held out
    encoding.py    tokenizer and shard sets
    reporting.py   what the report is made of (tally.py: counts, reasons, examples)

The phases are tasks of data_pipeline.prepare.runner. Equal input gives equal bytes, for any number of workers, any size
of parts and any history of kills. Until the end the pictures lie in the output folder twice.
"""

from data_pipeline.pairs.prepare.encoding import PairSetResult
from data_pipeline.pairs.prepare.pipeline import PairCorpusResult, PairPrepareResult, prepare_pairs

__all__ = ["PairCorpusResult", "PairPrepareResult", "PairSetResult", "prepare_pairs"]
