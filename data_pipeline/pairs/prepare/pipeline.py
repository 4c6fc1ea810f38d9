"""The phases of `trestle prepare` for pictures with captions, in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data_pipeline.errors import BadCorpus
from data_pipeline.pairs.prepare.check import check, held_out_fraction
from data_pipeline.pairs.prepare.checking import NO_CAPTION
from data_pipeline.pairs.prepare.duplicates import Duplicates, find_duplicates
from data_pipeline.pairs.prepare.encoding import PairSetResult, make_tokenizer, write_sets
from data_pipeline.pairs.prepare.reading import Part, read_corpora, read_tally
from data_pipeline.pairs.prepare.reporting import report_data, write_reports
from data_pipeline.pairs.prepare.selecting import Selected, select
from data_pipeline.pairs.prepare.tally import PairTally
from data_pipeline.pairs.recipe import PairCorpusConfig, PairPrepareConfig
from data_pipeline.pairs.tokenizers import CaptionTokenizer, open_caption_tokenizer
from data_pipeline.prepare.progress import Progress
from data_pipeline.prepare.runner import Executor, InProcess, Runner
from data_pipeline.shards import publish, sync_path, write_synced
from data_pipeline.workspace import check_output, disk_errors, work_folder

#: By kind of source, where every caption is missing.
_CAPTION_ADVICE = {
    "pictures": "put NAME.txt beside each picture NAME.jpg, or set caption: folder",
    "lists": "set caption_field to the column of the list that has one text a row (a list of texts is none)",
    "tars": "put KEY.txt beside each KEY.jpg in the tar, or set caption_field to the key in KEY.json that has a text",
}


@dataclass
class PairCorpusResult:
    """One corpus: what became of its pairs, and its shard sets."""

    name: str
    weight: float
    tally: PairTally
    training: PairSetResult | None = None
    validation: PairSetResult | None = None


@dataclass
class PairPrepareResult:
    """What was written, and what was dropped on the way. vocab_size: with the tokens for start and end."""

    output: str
    vocab_size: int
    tokenizer_sha256: str
    corpora: list[PairCorpusResult]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase, in seconds."""


def prepare_pairs(
    config: PairPrepareConfig, progress: Callable[[str], None], executor: Executor | None = None
) -> PairPrepareResult:
    """Runs the whole recipe; `progress` is called with a line now and then, `executor` makes the calls.

    Raises BadConfig, BadCorpus or BadTokenizer for what the user can mend, EnvironmentFailure for a full disk. What is
    finished by then is kept in the output folder, out of sight, and not done again.
    """
    check(config)
    output = Path(config.output)
    given = [path for path in (config.tokenizer.model, config.tokenizer.clip_merges) if path is not None]
    with disk_errors(output):
        check_output(output, [corpus.name for corpus in config.pairs], overwrite=config.overwrite, given=given)
    with disk_errors(output), work_folder(output) as work:
        runner = Runner(work, executor or InProcess(), Progress(progress))
        result = _Preparation(config, output, runner).run()
        shutil.rmtree(work)
        return result


class _Preparation:
    def __init__(self, config: PairPrepareConfig, output: Path, runner: Runner) -> None:
        self.config, self.output, self.runner, self.say = config, output, runner, runner.progress.say

    def run(self) -> PairPrepareResult:
        config, runner = self.config, self.runner
        parts = read_corpora(runner, config, self._by_priority())
        self._check_read(parts)
        found = find_duplicates(runner, parts, config.deduplicate)
        selected = select(runner, config, parts, found)
        results = {c.name: PairCorpusResult(c.name, c.weight, self._tally(c, parts, selected)) for c in config.pairs}
        in_order = [part for corpus in config.pairs for part in selected if part.corpus is corpus]
        path = make_tokenizer(runner, config, in_order)
        tokenizer = open_caption_tokenizer(path)
        folders = self._write(in_order, path, results)
        seconds = runner.progress.seconds
        made = PairPrepareResult(
            str(self.output), tokenizer.vocab_size, tokenizer.sha256, list(results.values()), seconds
        )
        self._publish(folders, tokenizer, made, found, parts)
        return made

    def _by_priority(self) -> list[PairCorpusConfig]:
        named = self.config.priority
        return sorted(self.config.pairs, key=lambda c: named.index(c.name) if c.name in named else len(named))

    def _check_read(self, parts: Sequence[Part]) -> None:
        """Before the pictures of other corpora are compared with none."""
        for corpus in self.config.pairs:
            tally, kinds = PairTally(), set()
            for part in parts:
                if part.corpus is corpus:
                    tally.merge(read_tally(part.tally))
                    kinds.add(part.kind)
            self._refuse_empty(corpus, tally, kinds)

    def _tally(self, corpus: PairCorpusConfig, parts: Sequence[Part], selected: Sequence[Selected]) -> PairTally:
        tally = PairTally()
        for path in [
            *(part.tally for part in parts if part.corpus is corpus),
            *(part.tally for part in selected if part.corpus is corpus),
        ]:
            tally.merge(read_tally(path))
        own = [s for s in selected if s.corpus is corpus]
        size = sum(s.training_size[1] + s.held_out_size[1] for s in own)
        self.say(f"{corpus.name}: {tally}, {size / 1e6:.1f} MB")
        self._refuse_empty(corpus, tally, {part.kind for part in parts if part.corpus is corpus})
        held_out = sum(s.held_out_size[0] for s in own)
        if not sum(s.training_size[0] for s in own):
            raise BadCorpus(
                f"corpus {corpus.name}: all of its {held_out} pairs are held out: give it a smaller "
                "validation_fraction, or more pairs"
            )
        if held_out_fraction(self.config, corpus) and not held_out:
            raise BadCorpus(
                f"corpus {corpus.name}: its pairs are too few to hold any out: give it a larger "
                "validation_fraction, or 0 to hold nothing out"
            )
        return tally

    def _refuse_empty(self, corpus: PairCorpusConfig, tally: PairTally, kinds: set[str]) -> None:
        if not tally.kept or list(tally.kept.values())[-1][0] == 0:
            missing = tally.dropped.get(NO_CAPTION)
            all_missing = missing is not None and missing.pairs == tally.kept.get("found", [0])[0]
            how = "loosen the filter that dropped most, or mend sources"
            if all_missing:
                how = "; ".join(advice for kind, advice in _CAPTION_ADVICE.items() if kind in kinds)
            raise BadCorpus(f"corpus {corpus.name} is empty: {tally}; {how}")

    # -- shard sets ---------------------------------------------------------------------------------------------------

    def _write(
        self, parts: Sequence[Selected], tokenizer: Path, results: dict[str, PairCorpusResult]
    ) -> list[tuple[Path, PairSetResult]]:
        sets = []
        for corpus in self.config.pairs:
            own = [part for part in parts if part.corpus is corpus]
            sets.append((corpus.name, [(part.part, part.training) for part in own]))
            if any(part.held_out_size[0] for part in own):
                sets.append((f"{corpus.name}-validation", [(part.part, part.held_out) for part in own]))
        written = write_sets(self.runner, tokenizer, sets)
        for _, made in written:
            made.path = str(self.output / made.name)
            self.say(f"{made.name}: {made.samples} pairs, {made.bytes / 1e6:.1f} MB of pictures")
            if made.name in results:
                results[made.name].training = made
            else:
                results[made.name.removesuffix("-validation")].validation = made
        return written

    def _publish(
        self,
        sets: Sequence[tuple[Path, PairSetResult]],
        tokenizer: CaptionTokenizer,
        made: PairPrepareResult,
        found: Duplicates,
        parts: Sequence[Part],
    ) -> None:
        """mix.yaml goes first and comes last: where it is, all that it names is there."""
        mix = {
            "mix": [{"shards": c.training.path, "weight": c.weight} for c in made.corpora if c.training],
            "validation": [{"shards": c.validation.path} for c in made.corpora if c.validation],
        }
        report = report_data(self.config, made, found, parts)
        (self.output / "mix.yaml").unlink(missing_ok=True)
        files = {
            tokenizer.path.name: tokenizer.path.read_bytes(),
            "mix.yaml": yaml.safe_dump(mix, sort_keys=False).encode(),
        }
        for folder, result in sets:
            publish(folder, self.output / result.name)
        write_reports(self.output, report)
        for name, content in files.items():
            write_synced(self.output / f".{name}", content)
            os.replace(self.output / f".{name}", self.output / name)
        sync_path(self.output)
