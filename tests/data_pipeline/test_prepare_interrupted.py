"""prepare killed, on a full disk, beside another one: nothing half-written is in place, and the next call goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import BadConfig, BadTokenizer, EnvironmentFailure
from data_pipeline.prepare import prepare
from data_pipeline.recipe import CorpusConfig, TokenizerConfig
from data_pipeline.shard_reader import ShardSet
from data_pipeline.shards import publish
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.conftest import small_recipe
from tests.data_pipeline.outputs import hashes, run, text_of, without_reports

REPOSITORY = Path(__file__).parents[2]


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
