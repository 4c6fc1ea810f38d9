"""prepare of pairs killed, on a full disk, replacing an older output: nothing half-written, the next call goes on."""

from __future__ import annotations

import contextlib
import errno
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import BadConfig, BadTokenizer, EnvironmentFailure
from data_pipeline.pairs.prepare import prepare_pairs
from data_pipeline.pairs.recipe import CaptionTokenizerConfig, PairCorpusConfig, PairPrepareConfig
from data_pipeline.shards import publish
from tests.data_pipeline.outputs import hashes, without_reports
from tests.data_pipeline.pair_recipes import captions_of, pair_recipe, pairs_of, run
from tests.data_pipeline.pictures import scene, tar_members, write_folder, write_tar

REPOSITORY = Path(__file__).parents[2]


def recipe(sources: Path, output: Path) -> PairPrepareConfig:
    corpora = [
        PairCorpusConfig("photos", [str(sources / "photos")]),
        PairCorpusConfig("tars", [str(sources / "tars")]),
        PairCorpusConfig("list", [str(sources / "list.csv")]),
    ]
    return pair_recipe(output, *corpora, validation_fraction=0.2, part_bytes=20_000, part_rows=7)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    write_folder(root / "photos", range(40))
    write_tar(root / "tars" / "0.tar", tar_members(range(40, 70)))
    write_tar(root / "tars" / "1.tar", tar_members(range(70, 80)))
    write_folder(root / "others", range(80, 110))
    rows = [f'others/{seed:03d}.jpg,"{scene(seed)[1]}"' for seed in range(80, 110)]
    (root / "list.csv").write_text("\n".join(["url,caption", *rows, "others/none.jpg,a picture that is not there"]))
    return root


CODE = (
    "import sys; from pathlib import Path; from data_pipeline.pairs.prepare import prepare_pairs\n"
    "from tests.data_pipeline.test_pairs_prepare_interrupted import recipe\n"
    "print('imported', flush=True)\n"
    "prepare_pairs(recipe(Path(sys.argv[1]), Path(sys.argv[2])), lambda line: print(line, flush=True))"
)


def test_prepare_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, sources: Path) -> None:
    """SIGKILL, again and again at other moments, until one run comes through."""
    output = tmp_path / "out"
    run(recipe(sources, tmp_path / "reference"))
    draw = random.Random(11)
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(sources), str(output)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.05, 0.7) if kills < 6 else 200)
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
                run(recipe(sources, output))  # killed when all was in its place: what it left is removed
            break
        for manifest in output.glob("*/manifest.json"):
            assert pairs_of(manifest.parent)  # what is in its place is whole
    assert kills >= 3
    complete, reference = (without_reports(hashes(folder)) for folder in (output, tmp_path / "reference"))
    assert {**complete, "mix.yaml": ""} == {**reference, "mix.yaml": ""}


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path: Path, sources: Path) -> None:
    """The process may write no file larger than 60 kB: the write of a tar fails half-way as on a full disk."""
    output = tmp_path / "out"
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, -1))\n"
    )
    *imports, call = CODE.split("\n")
    told = f"try: {call}\nexcept Exception as error: print(type(error).__name__, error.exit_code, error)"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, limit, told]), str(sources), str(output)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"EnvironmentFailure 1 no space left for {output}"), done.stdout + done.stderr
    assert sorted(path.name for path in output.iterdir()) == [".prepare", ".prepare.lock"]
    lines: list[str] = []
    prepare_pairs(recipe(sources, output), lines.append)
    assert any("was done before" in line for line in lines)
    assert sorted(path.name for path in output.iterdir() if path.name.startswith(".")) == [".prepare.lock"]


def test_a_replacement_that_breaks_off_leaves_no_mix_that_names_old_and_new(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(sources, tmp_path / "out")
    run(config)

    def fail_at_the_second(built: Path, final: Path) -> None:
        if final.name == "tars":
            raise OSError(errno.EIO, "input/output error")
        publish(built, final)

    monkeypatch.setattr("data_pipeline.pairs.prepare.pipeline.publish", fail_at_the_second)
    config.overwrite = True
    with pytest.raises(EnvironmentFailure):
        run(config)
    assert not (tmp_path / "out" / "mix.yaml").exists()
    for name in ("photos", "tars"):
        assert pairs_of(tmp_path / "out" / name)


def test_a_caption_that_changed_is_read_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", range(3))
    corpus = PairCorpusConfig("c", [str(folder)])
    bad = pair_recipe(tmp_path / "out", corpus, tokenizer=CaptionTokenizerConfig("bpe", 260))
    with pytest.raises(BadTokenizer):
        run(bad)
    assert (tmp_path / "out" / ".prepare").exists()
    (folder / "001.txt").write_text("quite another caption")
    run(pair_recipe(tmp_path / "out", corpus))
    assert captions_of(tmp_path / "out" / "c") == [scene(0)[1], "quite another caption", scene(2)[1]]
