"""The phases of `trestle prepare`, in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data_pipeline.dedup.find import Part as DedupPart
from data_pipeline.dedup.find import find_duplicates
from data_pipeline.documents import Tally
from data_pipeline.errors import BadCorpus
from data_pipeline.prepare.check import check
from data_pipeline.prepare.encoding import ShardSetResult, TextFile, encode_sets, make_tokenizer
from data_pipeline.prepare.progress import Progress
from data_pipeline.prepare.reading import Part, read_corpora, read_tally
from data_pipeline.prepare.reporting import Findings, report_data, write_reports
from data_pipeline.prepare.runner import Executor, InProcess, Runner
from data_pipeline.prepare.scoring import CLASSIFIER, score_parts
from data_pipeline.prepare.selecting import Mask, Selected, check_held_out, held_out_fraction, select
from data_pipeline.recipe import CorpusConfig, PrepareConfig
from data_pipeline.shards import publish, sync_path, write_synced
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.workspace import check_output, disk_errors, work_folder


@dataclass
class CorpusResult:
    """One corpus: what became of its documents, and its shard sets."""

    name: str
    weight: float
    tally: Tally
    held_out_dropped: int = 0
    """Held-out documents dropped because they overlap with the training text or are too short to tell."""
    training: ShardSetResult | None = None
    validation: ShardSetResult | None = None


@dataclass
class PrepareResult:
    """What was written, and what was dropped on the way."""

    output: str
    vocab_size: int
    tokenizer_sha256: str
    corpora: list[CorpusResult]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase, in seconds."""


def prepare(config: PrepareConfig, progress: Callable[[str], None], executor: Executor | None = None) -> PrepareResult:
    """Runs the whole recipe; `progress` is called with a line now and then, `executor` makes the calls.

    Raises BadConfig, BadCorpus or BadTokenizer for what the user can mend, EnvironmentFailure for a full disk. What is
    finished by then is kept in the output folder, out of sight, and not done again.
    """
    check(config)
    output = Path(config.output)
    with disk_errors(output):
        given = [] if config.tokenizer.model is None else [config.tokenizer.model]
        check_output(output, [corpus.name for corpus in config.corpora], overwrite=config.overwrite, given=given)
    with disk_errors(output), work_folder(output) as work:
        runner = Runner(work, executor or InProcess(), Progress(progress))
        result = _Preparation(config, output, runner).run()
        shutil.rmtree(work)
        return result


class _Preparation:
    def __init__(self, config: PrepareConfig, output: Path, runner: Runner) -> None:
        self.config, self.output, self.runner, self.say = config, output, runner, runner.progress.say
        self.findings = Findings()

    def run(self) -> PrepareResult:
        config, runner = self.config, self.runner
        parts = read_corpora(runner, config, self._by_priority())
        selected = select(runner, config, parts, self._masks(parts))
        results = {c.name: CorpusResult(c.name, c.weight, self._tally(c, parts, selected)) for c in config.corpora}
        in_order = [part for corpus in config.corpora for part in selected if part.corpus is corpus]
        final = check_held_out(runner, config, in_order)
        self._check_left(in_order, final, results)
        tokenizer = Tokenizer(make_tokenizer(runner, config, final))
        folders = self._encode(final, tokenizer, results)
        seconds = runner.progress.seconds
        made = PrepareResult(str(self.output), tokenizer.vocab_size, tokenizer.sha256, list(results.values()), seconds)
        self._publish(folders, tokenizer, made)
        return made

    def _by_priority(self) -> list[CorpusConfig]:
        named = self.config.priority
        return sorted(self.config.corpora, key=lambda c: named.index(c.name) if c.name in named else len(named))

    # -- what is left out ---------------------------------------------------------------------------------------------

    def _masks(self, parts: Sequence[Part]) -> dict[Path, list[Mask]]:
        """The masks of the learned filter and of deduplication. parts: in order of priority."""
        masks: dict[Path, list[Mask]] = {part.documents: [] for part in parts}
        if any("quality" in part.corpus.stages for part in parts):
            trained, scores = score_parts(self.runner, self.config, parts)
            self.findings.classifier = trained
            for documents, score in scores.items():
                masks[documents].append(Mask("quality", score.kept, value=False))
                self.findings.score_tallies[documents] = score.tally
        exact = [part for part in parts if "deduplicate" in part.corpus.stages]
        near = [part for part in exact if "fuzzy_deduplicate" in part.corpus.stages]
        if exact:
            self._find(exact, masks, near=len(near) == len(exact), exact=True)
        if near and len(near) < len(exact):
            self._find(near, masks, near=True, exact=False)
        return masks

    def _find(self, parts: Sequence[Part], masks: dict[Path, list[Mask]], *, exact: bool, near: bool) -> None:
        given = [DedupPart(part.documents, [(m.path, m.value) for m in masks[part.documents]]) for part in parts]
        found = find_duplicates(
            self.runner, given, self.config.deduplicate, exact=exact, near=near, workers=self.runner.workers
        )
        for part, dropped in zip(parts, found.exact if exact else [], strict=False):
            reason = "deduplicate: a copy of an earlier document"
            masks[part.documents].append(Mask("deduplicate", dropped, True, reason))
        for part, dropped in zip(parts, found.near if near else [], strict=False):
            reason = "fuzzy_deduplicate: nearly a copy of an earlier document"
            masks[part.documents].append(Mask("fuzzy_deduplicate", dropped, True, reason))
        if near:
            self.findings.duplicates, self.findings.duplicate_parts = found, list(parts)

    # -- what is left -------------------------------------------------------------------------------------------------

    def _tally(self, corpus: CorpusConfig, parts: Sequence[Part], selected: Sequence[Selected]) -> Tally:
        tally = Tally()
        own = [part for part in parts if part.corpus is corpus]
        for path in [
            *(part.tally for part in own),
            *(self.findings.score_tallies[p.documents] for p in own if p.documents in self.findings.score_tallies),
            *(part.tally for part in selected if part.corpus is corpus),
        ]:
            tally.merge(read_tally(path))
        tally.kept = {stage: tally.kept[stage] for stage in ("read", *corpus.stages)}  # as they follow one another
        size = sum(s.training_size[1] + s.held_out_size[1] for s in selected if s.corpus is corpus)
        self.say(f"{corpus.name}: {tally}, {size / 1e6:.1f} MB")
        raw = tally.histograms["not extracted"]["HTML"] if "not extracted" in tally.histograms else 0
        if raw:
            self.say(f"{corpus.name}: {raw} documents are HTML with its markup: put extract first in its stages")
        if not any(s.training_size[0] for s in selected if s.corpus is corpus):
            raise BadCorpus(
                f"corpus {corpus.name} is empty: {tally}; loosen the stage that dropped most, or mend sources"
            )
        return tally

    def _check_left(
        self, before: Sequence[Selected], after: Sequence[Selected], results: dict[str, CorpusResult]
    ) -> None:
        for corpus in self.config.corpora:
            was = sum(part.held_out_size[0] for part in before if part.corpus is corpus)
            left = sum(part.held_out_size[0] for part in after if part.corpus is corpus)
            results[corpus.name].held_out_dropped = was - left
            if held_out_fraction(self.config, corpus) == 0:
                continue
            if not was:
                raise BadCorpus(
                    f"corpus {corpus.name}: its documents are too few to hold any out: give it a larger "
                    "validation_fraction, or 0 to hold nothing out"
                )
            if not left:
                raise BadCorpus(
                    f"corpus {corpus.name}: none of its {was} held-out documents differs enough from "
                    "the training text: give it a larger validation_fraction, or 0 to hold nothing out"
                )
            self.say(
                f"{corpus.name}: {left} documents held out, {was - left} more dropped for overlap with the training "
                "text"
            )

    # -- shard sets ---------------------------------------------------------------------------------------------------

    def _encode(
        self, parts: Sequence[Selected], tokenizer: Tokenizer, results: dict[str, CorpusResult]
    ) -> list[tuple[Path, ShardSetResult]]:
        sets = []
        for corpus in self.config.corpora:
            own = [part for part in parts if part.corpus is corpus]
            sets.append((corpus.name, [TextFile(part.training, part.training_size) for part in own]))
            held_out = [TextFile(part.held_out, part.held_out_size) for part in own]
            if any(file.size[0] for file in held_out):
                sets.append((f"{corpus.name}-validation", held_out))
        encoded = encode_sets(self.runner, self.config, tokenizer.path, sets)
        for _, made in encoded:
            made.path = str(self.output / made.name)
            self.say(
                f"{made.name}: {made.tokens} tokens, {made.bytes / made.tokens:.2f} bytes a token, "
                f"{made.samples} samples"
            )
            if made.name in results:
                results[made.name].training = made
            else:
                results[made.name.removesuffix("-validation")].validation = made
        return encoded

    def _publish(self, sets: Sequence[tuple[Path, ShardSetResult]], tokenizer: Tokenizer, made: PrepareResult) -> None:
        """mix.yaml goes first and comes last: where it is, all that it names is there."""
        mix = {
            "mix": [{"shards": c.training.path, "weight": c.weight} for c in made.corpora if c.training],
            "validation": [{"shards": c.validation.path} for c in made.corpora if c.validation],
        }
        report = report_data(self.config, made, self.findings)
        (self.output / "mix.yaml").unlink(missing_ok=True)
        files = {"tokenizer.model": tokenizer.path.read_bytes()}
        if self.findings.classifier is not None:
            files[CLASSIFIER] = (self.findings.classifier / CLASSIFIER).read_bytes()
        files["mix.yaml"] = yaml.safe_dump(mix, sort_keys=False).encode()  # the last
        for folder, result in sets:
            publish(folder, self.output / result.name)
        write_reports(self.output, report)
        for name, content in files.items():
            write_synced(self.output / f".{name}", content)
            os.replace(self.output / f".{name}", self.output / name)
        sync_path(self.output)
