"""`prepare` as a whole: what it writes, that it writes it twice alike, and what it refuses or survives."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.config import ClusterConfig
from cluster.session import open_session
from data_pipeline.baseline import bits_per_byte, unigram_cross_entropy
from data_pipeline.config import ShardSource
from data_pipeline.decontamination import DecontaminationConfig
from data_pipeline.errors import BadConfig, BadCorpus, BadTokenizer, EnvironmentFailure, UserError
from data_pipeline.prepare import PrepareResult, prepare
from data_pipeline.prepare.ray_tasks import RayTasks
from data_pipeline.prepare.runner import InProcess
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from data_pipeline.shard_reader import ShardSet
from data_pipeline.shards import publish
from data_pipeline.stream import Stream, ValidationSet
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.conftest import mix_of, small_recipe

REPOSITORY = Path(__file__).parents[2]


def run(config: PrepareConfig) -> PrepareResult:
    return prepare(config, lambda line: None)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def text_of(shard_set: ShardSet, tokenizer: Tokenizer) -> list[str]:
    """The documents, back from the packed samples (the last may be cut short)."""
    rows = shard_set.read(np.arange(len(shard_set)))
    tokens = np.append(rows[:, :-1].ravel(), rows[-1, -1]).astype(np.int64)
    parts = np.split(tokens, np.flatnonzero(tokens == tokenizer.eod_id) + 1)
    return [tokenizer.decode(part[part != tokenizer.eod_id].tolist()) for part in parts if len(part)]


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


def without_reports(files: dict[str, str]) -> dict[str, str]:
    """All but the reports, which hold times."""
    return {name: content for name, content in files.items() if "report." not in name}


def test_parts_and_workers_change_no_byte(tmp_path: Path, shards: Path) -> None:
    """The same corpus in many parts, on Ray: other tasks, the same documents in the same order."""
    with open_session(ClusterConfig(), 2, on_close=lambda: None):
        lines: list[str] = []
        prepare(small_recipe(tmp_path / "again", part_bytes=50_000), lines.append, RayTasks())
    again, first = without_reports(hashes(tmp_path / "again")), without_reports(hashes(shards))
    # The tokenizer's training text is drawn part by part; all else depends on the tokenizer.
    assert again.keys() == first.keys()
    with open_session(ClusterConfig(), 1, on_close=lambda: None):
        prepare(small_recipe(tmp_path / "once more", part_bytes=50_000), lines.append, RayTasks())
    more = without_reports(hashes(tmp_path / "once more"))
    assert {**more, "mix.yaml": ""} == {**again, "mix.yaml": ""}


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


def test_a_replacement_that_breaks_off_leaves_no_mix_that_names_old_and_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = [CorpusConfig(name, [f"{{stdlib}}/{name}/*.py"], validation_fraction=0.0) for name in ("json", "email")]
    config = small_recipe(tmp_path / "out", corpora=corpora, tokenizer=TokenizerConfig("bpe", 400))
    run(config)

    def fail_at_the_second(built: Path, final: Path) -> None:
        if final.name == "email":
            raise OSError(errno.EIO, "input/output error")
        publish(built, final)

    monkeypatch.setattr("data_pipeline.prepare.pipeline.publish", fail_at_the_second)
    config.overwrite = True
    with pytest.raises(EnvironmentFailure):
        run(config)
    assert not (tmp_path / "out" / "mix.yaml").exists()
    for name in ("json", "email"):
        ShardSet(tmp_path / "out" / name).verify()


def test_prepare_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, shards: Path) -> None:
    """SIGKILL, again and again at other moments, until one run comes through."""
    output = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from data_pipeline.prepare import prepare\n"
        "from tests.data_pipeline.conftest import small_recipe\n"
        "print('imported', flush=True)\n"
        "prepare(small_recipe(Path(sys.argv[1]), part_bytes=100_000), lambda line: print(line, flush=True))"
    )
    prepare(small_recipe(tmp_path / "reference", part_bytes=100_000), lambda line: None)
    draw = random.Random(7)
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(output)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.05, 0.9) if kills < 6 else 200)
        if process.poll() is not None:
            assert process.returncode == 0, process.stdout.read()
            process.stdout.close()
            break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        kills += 1
        if (output / "mix.yaml").exists():
            with pytest.raises(BadConfig, match="holds a prepared mix already"):
                run(small_recipe(output))  # killed when all was in its place: what it left is removed
            break
        for manifest in output.glob("*/manifest.json"):
            ShardSet(manifest.parent).verify()  # what is in its place is whole
    assert kills >= 3
    complete, reference = without_reports(hashes(output)), without_reports(hashes(tmp_path / "reference"))
    assert {**complete, "mix.yaml": ""} == {**reference, "mix.yaml": ""}


def test_two_prepares_do_not_share_an_output(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".prepare.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadConfig, match="another prepare"):
            run(small_recipe(tmp_path / "out"))


@pytest.mark.parametrize(("kilobytes", "reached"), [(50, ""), (800, "training a char tokenizer")])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path, kilobytes: int, reached: str) -> None:
    """The process may write no file larger than that: the write fails half-way as on a full disk.

    50 kB break off the reading. With one token a character, tars are twice the text: 800 kB break off a tar.
    """
    output = tmp_path / "out"
    code = (
        "import resource, signal, sys; from pathlib import Path; from data_pipeline.prepare import prepare\n"
        "from data_pipeline.recipe import TokenizerConfig\n"
        "from tests.data_pipeline.conftest import small_recipe\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes * 1024}, -1))\n"
        "config = small_recipe(Path(sys.argv[1]), tokenizer=TokenizerConfig('char', 600))\n"
        "try: prepare(config, lambda line: print(line, file=sys.stderr))\n"
        "except Exception as error: print(type(error).__name__, error.exit_code, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(output)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"EnvironmentFailure 1 no space left for {output}"), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1 and reached in done.stderr
    assert sorted(path.name for path in output.iterdir()) == [".prepare", ".prepare.lock"]
    lines: list[str] = []
    prepare(small_recipe(output, tokenizer=TokenizerConfig("char", 600)), lines.append)
    assert any("was done before" in line for line in lines) is bool(reached)
    assert sorted(path.name for path in output.iterdir() if path.name.startswith(".")) == [".prepare.lock"]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFailure, match="cannot be prepared") as error:
        run(small_recipe(tmp_path / "file" / "out"))
    assert "\n" not in str(error.value)


def bad_recipes(tmp_path: Path) -> dict[str, tuple[PrepareConfig, type[UserError], str]]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "blank.txt").write_text(" \n\n")
    (source / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "short.txt").write_text("short")
    output = tmp_path / "out"

    def of(*corpora: CorpusConfig, **changes: object) -> PrepareConfig:
        return small_recipe(output, corpora=list(corpora), **changes)

    json_corpus = CorpusConfig("json", ["{stdlib}/json/*.py"], validation_fraction=0.0)
    return {
        "no corpus": (of(), BadConfig, "corpora is empty"),
        "no file": (of(CorpusConfig("c", [f"{tmp_path}/*.none"])), BadCorpus, "corpus c: no file matches"),
        "nothing left": (
            of(CorpusConfig("c", [str(source)])),
            BadCorpus,
            r"corpus c is empty: .*1 clean: empty .*blank\.txt",
        ),
        "too little": (
            of(CorpusConfig("c", [f"{tmp_path}/short.txt"], validation_fraction=0.0), json_corpus),
            BadCorpus,
            "too few for one sample of 33",
        ),
        "nothing held out": (
            of(CorpusConfig("json", ["{stdlib}/json/*.py"]), validation_fraction=1e-9),
            BadCorpus,
            "larger validation_fraction",
        ),
        "twice the name": (of(json_corpus, json_corpus), BadConfig, "two corpora are named json"),
        "path as name": (of(CorpusConfig("../x", ["a"])), BadConfig, "corpus name"),
        "weight": (of(CorpusConfig("c", ["a"], weight=-1)), BadConfig, "weight"),
        "length": (of(json_corpus, sequence_length=0), BadConfig, "sequence_length"),
        "vocabulary": (of(json_corpus, tokenizer=TokenizerConfig(vocab_size=99999)), BadTokenizer, "is too large"),
        "model": (of(json_corpus, tokenizer=TokenizerConfig(model="/none.model")), BadTokenizer, r"/none\.model"),
        "one of the sources": (of(CorpusConfig("c", ["{stdlib}/json/*.py", "/none.txt"])), BadCorpus, "/none.txt"),
        "name of a file": (of(CorpusConfig("report.html", ["a"])), BadConfig, "writes a file of that name"),
        "endless weight": (of(CorpusConfig("c", ["a"], weight=float("inf"))), BadConfig, "weight"),
        "separator": (of(CorpusConfig("c", ["a"], separator="")), BadConfig, "separator is empty"),
        "late extract": (of(CorpusConfig("c", ["a"], stages=["clean", "extract"])), BadConfig, "extract comes first"),
        "stage order": (of(CorpusConfig("c", ["a"], stages=["deduplicate", "clean"])), BadConfig, "in this order"),
        "fuzzy alone": (of(CorpusConfig("c", ["a"], stages=["fuzzy_deduplicate"])), BadConfig, "needs the stage dedup"),
        "uncurated": (of(CorpusConfig("c", ["a"], stages=["quality"])), BadConfig, "quality.curated"),
        "overlap": (of(json_corpus, held_out_overlap=float("nan")), BadConfig, "held_out_overlap"),
        "priority": (of(json_corpus, priority=["jsno"]), BadConfig, 'priority names "jsno"'),
        "no evaluation sets": (of(CorpusConfig("c", ["a"], stages=["decontaminate"])), BadConfig, "evaluation_sets"),
        "evaluation sets without text": (
            of(
                CorpusConfig("json", ["{stdlib}/json/*.py"], stages=["decontaminate"], validation_fraction=0.0),
                decontaminate=DecontaminationConfig(evaluation_sets=[f"{tmp_path}/short.txt"]),
            ),
            BadCorpus,
            "give no n-grams",
        ),
    }


CASES = """no corpus,no file,nothing left,too little,nothing held out,twice the name,path as name,weight,length
vocabulary,model,one of the sources,name of a file,endless weight,separator,late extract,stage order,fuzzy alone
uncurated,overlap,priority,no evaluation sets,evaluation sets without text"""


def test_every_bad_recipe_is_tried(tmp_path: Path) -> None:
    assert re.split("[,\n]", CASES) == list(bad_recipes(tmp_path))


@pytest.mark.parametrize("case", re.split("[,\n]", CASES))
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    config, kind, message = bad_recipes(tmp_path)[case]
    with pytest.raises(kind, match=message) as error:
        run(config)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    left = os.listdir(config.output) if os.path.exists(config.output) else []
    assert set(left) <= {".prepare.lock", ".prepare"}


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


def test_a_run_killed_while_it_replaces_an_older_set_goes_on(tmp_path: Path) -> None:
    json_only = [CorpusConfig("json", ["{stdlib}/json/*.py"], validation_fraction=0.0)]
    config = small_recipe(tmp_path / "out", corpora=json_only, tokenizer=TokenizerConfig("bpe", 400))
    run(config)
    code = (
        "import os, shutil, sys; from pathlib import Path; from data_pipeline.prepare import prepare\n"
        "from data_pipeline.recipe import CorpusConfig, TokenizerConfig\n"
        "from tests.data_pipeline.conftest import small_recipe\n"
        "remove = shutil.rmtree\n"
        "def die(path, *a, **k):\n"
        "    if str(path).endswith('.replaced'): os._exit(9)\n"
        "    remove(path, *a, **k)\n"
        "shutil.rmtree = die\n"
        "corpora = [CorpusConfig('json', ['{stdlib}/json/*.py'], validation_fraction=0.0)]\n"
        "recipe = small_recipe(Path(sys.argv[1]), corpora=corpora, tokenizer=TokenizerConfig('bpe', 400))\n"
        "recipe.overwrite = True; prepare(recipe, print)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], cwd=REPOSITORY, check=False)
    assert done.returncode == 9 and not (tmp_path / "out" / "mix.yaml").exists()
    config.overwrite = True
    run(config)
    ShardSet(tmp_path / "out" / "json").verify()
    assert (tmp_path / "out" / "mix.yaml").exists()


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


def test_a_source_that_changed_is_read_again_even_with_its_old_time(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("old words " * 200)
    corpora = [CorpusConfig("c", [str(source)], validation_fraction=0.0)]
    bad = small_recipe(tmp_path / "out", corpora=corpora, tokenizer=TokenizerConfig("bpe", 90_000))
    with pytest.raises(BadTokenizer):
        run(bad)
    times = source.stat()
    source.write_text("new words " * 200)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    run(small_recipe(tmp_path / "out", corpora=corpora, tokenizer=TokenizerConfig("bpe", 280)))
    (text,) = text_of(ShardSet(tmp_path / "out" / "c"), Tokenizer(tmp_path / "out" / "tokenizer.model"))
    assert text.startswith("new words")


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
