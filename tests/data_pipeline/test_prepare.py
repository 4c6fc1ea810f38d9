"""`prepare` as a whole: what it writes, that it writes it twice alike, and what it refuses or survives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.config import ClusterConfig
from cluster.session import open_session
from data_pipeline.baseline import bits_per_byte, unigram_cross_entropy
from data_pipeline.config import ShardSource
from data_pipeline.errors import BadConfig, BadCorpus
from data_pipeline.prepare import PrepareResult, prepare
from data_pipeline.prepare.ray_tasks import RayTasks
from data_pipeline.prepare.runner import InProcess
from data_pipeline.recipe import CorpusConfig, TokenizerConfig
from data_pipeline.shard_reader import ShardSet
from data_pipeline.stream import Stream, ValidationSet
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.conftest import mix_of, small_recipe
from tests.data_pipeline.outputs import hashes, run, text_of, without_reports

REPOSITORY = Path(__file__).parents[2]


def test_what_is_written_is_what_the_result_and_the_mix_say(prepared: tuple[Path, PrepareResult]) -> None:
    output, result = prepared
    assert sorted(path.name for path in output.iterdir() if not path.name.startswith(".")) == [
        "mix.yaml", "network", "network-validation", "report.html", "report.json", "tokenizer.model", "tools",
        "tools-validation",
    ]  # fmt: skip
    assert not (output / ".prepare").exists()
    assert Tokenizer(output / "tokenizer.model").sha256 == result.tokenizer_sha256
    for corpus in result.corpora:
        assert corpus.training is not None and corpus.validation is not None
        for written in (corpus.training, corpus.validation):
            shard_set = ShardSet(written.path)
            shard_set.verify()
            assert (shard_set.name, shard_set.samples, shard_set.tokens) == (
                written.name,
                written.samples,
                written.tokens,
            )
            assert written.samples * 32 + 1 + written.dropped_tokens == written.tokens
        kept = corpus.training.documents + corpus.validation.documents + corpus.held_out_dropped
        dropped = sum(drop.documents for drop in corpus.tally.dropped.values())
        assert kept == corpus.tally.kept["deduplicate"][0] == corpus.tally.read - dropped
    mix = yaml.safe_load((output / "mix.yaml").read_text())
    assert mix["mix"] == [
        {"shards": str(output / "network"), "weight": 0.7},
        {"shards": str(output / "tools"), "weight": 0.31},
    ]
    assert [entry["shards"] for entry in mix["validation"]] == [s.shards for s in mix_of(output).validation]
    assert Stream(mix_of(output), 1).vocab_size == result.vocab_size == 600
    assert len(ValidationSet(mix_of(output).validation)) > 10


def test_documents_come_back_from_the_shards_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    originals = [f"  odd \t\r\n text ▁ number {n}\0 \n\n\n\n\n" * 40 for n in range(30)]
    for n, text in enumerate(originals):
        (source / f"{n:02}.txt").write_bytes(text.encode())
    config = small_recipe(
        tmp_path / "out",
        corpora=[CorpusConfig("raw", [str(source)], stages=[])],
        tokenizer=TokenizerConfig(type="bpe", vocab_size=300),
        validation_fraction=0.0,
    )
    run(config)
    tokenizer = Tokenizer(tmp_path / "out" / "tokenizer.model")
    documents = text_of(ShardSet(tmp_path / "out" / "raw"), tokenizer)
    assert documents[:-1] == originals[:-1]
    assert originals[-1].startswith(documents[-1])


def test_no_held_out_document_is_in_the_training_text(shards: Path) -> None:
    tokenizer = Tokenizer(shards / "tokenizer.model")
    training = "".join("".join(text_of(ShardSet(shards / name), tokenizer)) for name in ("network", "tools"))
    for name in ("network-validation", "tools-validation"):
        for document in text_of(ShardSet(shards / name), tokenizer):
            lines = [line for line in document.splitlines() if len(line) > 40]
            assert sum(line in training for line in lines) <= 0.3 * len(lines)


def test_copies_are_dropped_across_corpora_and_near_copies_from_the_held_out_part(tmp_path: Path) -> None:
    base = " ".join(f"clause {n} of the licence says {n * n}" for n in range(60))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    for n in range(60):
        (first / f"{n:02}.txt").write_text(f"Copyright holder number {n}. {base}")
        (first / f"own{n:02}.txt").write_text(" ".join(f"{n}:{m}" for m in range(50)))
    shutil.copy(first / "00.txt", second / "copy.txt")
    (second / "new.txt").write_text("a text of its own " * 30)
    corpora = [
        CorpusConfig("first", [str(first)], validation_fraction=0.3),
        CorpusConfig("second", [str(second)], validation_fraction=0.0),
    ]
    result = run(small_recipe(tmp_path / "out", corpora=corpora, tokenizer=TokenizerConfig("bpe", 300)))
    dropped = {reason: drop.documents for reason, drop in result.corpora[1].tally.dropped.items()}
    assert dropped == {"deduplicate: a copy of an earlier document": 1}
    assert result.corpora[0].held_out_dropped > 5
    held_out = text_of(ShardSet(tmp_path / "out" / "first-validation"), Tokenizer(tmp_path / "out" / "tokenizer.model"))
    assert len(held_out) > 5 and not any("licence" in text for text in held_out)


def test_twice_gives_the_same_bytes_for_any_number_of_threads(tmp_path: Path, shards: Path) -> None:
    prepare(small_recipe(tmp_path / "again"), lambda line: None, InProcess(threads=3))
    again, first = hashes(tmp_path / "again"), hashes(shards)
    assert again.pop("mix.yaml") != first.pop("mix.yaml")  # it names its folder
    assert without_reports(again) == without_reports(first) and len(first) > 10


def test_workers_change_no_byte(tmp_path: Path) -> None:
    """Many parts, two at a time on Ray, against one after the other in this process."""
    prepare(small_recipe(tmp_path / "here", part_bytes=50_000), lambda line: None)
    with open_session(ClusterConfig(), 2, on_close=lambda: None):
        prepare(small_recipe(tmp_path / "ray", part_bytes=50_000), lambda line: None, RayTasks())
    here, ray = (without_reports(hashes(tmp_path / name)) for name in ("here", "ray"))
    assert {**here, "mix.yaml": ""} == {**ray, "mix.yaml": ""}


def test_an_existing_tokenizer_is_used_as_it_is(tmp_path: Path, shards: Path) -> None:
    model = shards / "tokenizer.model"
    result = run(
        small_recipe(
            tmp_path / "out",
            corpora=[CorpusConfig("json", ["{stdlib}/json/*.py"], validation_fraction=0.0)],
            tokenizer=TokenizerConfig(model=str(model)),
        )
    )
    assert result.tokenizer_sha256 == Tokenizer(model).sha256
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.read_bytes()


def test_a_finished_output_is_replaced_on_request_only(tmp_path: Path) -> None:
    json_only = [CorpusConfig("json", ["{stdlib}/json/*.py"], validation_fraction=0.0)]
    config = small_recipe(tmp_path / "out", corpora=json_only, tokenizer=TokenizerConfig("bpe", 400))
    run(config)
    before = hashes(tmp_path / "out")
    with pytest.raises(BadConfig, match="overwrite: true"):
        run(config)
    assert hashes(tmp_path / "out") == before
    config.overwrite, config.sequence_length = True, 16
    run(config)
    assert ShardSet(tmp_path / "out" / "json").sequence_length == 16
    (tmp_path / "out2" / "json").mkdir(parents=True)
    (tmp_path / "out2" / "json" / "thesis.tex").touch()
    with pytest.raises(BadConfig, match="is no shard set"):
        run(small_recipe(tmp_path / "out2", corpora=json_only))
    assert (tmp_path / "out2" / "json" / "thesis.tex").exists()


def test_the_unigram_bar_lies_between_nothing_learned_and_everything(shards: Path) -> None:
    config = mix_of(shards)
    nats = unigram_cross_entropy(config.mix, config.validation)
    assert 4.0 < nats < np.log(600)
    own = unigram_cross_entropy(config.validation, config.validation)
    assert own < nats
    counts = ShardSet(shards / "tools").counts() + 1.0
    alone = [ShardSource(str(shards / "tools"))]
    entropy = -(ShardSet(shards / "tools").counts() / (counts.sum() - 600) * np.log(counts / counts.sum())).sum()
    assert unigram_cross_entropy(alone, alone) == pytest.approx(entropy)
    tools = ShardSet(shards / "tools")
    assert bits_per_byte(np.log(2), alone) == pytest.approx(tools.tokens / tools.bytes)


def test_the_output_is_never_a_source_and_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for n in range(40):
        (tmp_path / "data" / f"{n}.txt").write_text(f"text number {n} " * 30)
    corpora = [CorpusConfig("all", [str(tmp_path / "data")], validation_fraction=0.0)]
    config = small_recipe(tmp_path / "data" / "shards", corpora=corpora, tokenizer=TokenizerConfig("bpe", 300))
    config.overwrite = True
    first, second = run(config), run(config)
    assert first.corpora[0].tally.read == second.corpora[0].tally.read == 40
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("mine")
    config.output = str(tmp_path / "other")
    with pytest.raises(BadConfig, match=r"report\.html exists and is not of an earlier prepare"):
        run(config)
    assert (tmp_path / "other" / "report.html").read_text() == "mine"


def test_of_two_corpora_with_the_same_sources_the_one_of_higher_priority_keeps_all(tmp_path: Path) -> None:
    corpora = [CorpusConfig(name, ["{stdlib}/json/*.py"], validation_fraction=0.0) for name in ("one", "two")]
    corpora[0].sources = ["{stdlib}/json/*.py", "{stdlib}/email/*.py"]
    config = small_recipe(tmp_path / "out", corpora=corpora, tokenizer=TokenizerConfig("bpe", 500))
    config.priority = ["two"]
    result = run(config)
    assert [c.tally.kept["deduplicate"][0] for c in result.corpora] == [result.corpora[0].tally.read - 5, 5]
    config.overwrite, config.corpora[0].sources = True, ["{stdlib}/json/*.py"]
    with pytest.raises(BadCorpus, match="corpus one is empty: 5 files, 5 documents read, 0 kept"):
        run(config)
