"""What the commands do with data: plan a mix, look at shards wherever they are, change them on a resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.stream import Stream
from launcher import inspect, resume
from launcher.arguments import split
from launcher.changes import Change, changes
from launcher.cli import main
from launcher.digits import write_strips
from launcher.job import load_job
from launcher.one_process import tokenizer_of
from launcher.run_folder import RunFolder
from launcher.supervise import check_shards
from tests.data_pipeline.pair_sets import write_merges, write_pairs
from tests.data_pipeline.range_server import Server, serving
from tests.data_pipeline.shard_sets import flip_a_bit, write_set
from tests.launcher.conftest import trestle_in
from training.checkpoint import CheckpointWriter
from training.metrics.events import read_events
from training.recipe import anchor_shards, to_document

# -- inspect ----------------------------------------------------------------------------------------------------------


def test_gpt3_mix_comes_to_the_papers_epochs_without_any_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brown et al. 2020, table 2.2, for the 300 billion tokens that the models were trained on."""
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "gpt3-mix", "--tokens", "300B"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["corpus", "weight", "tokens", "samples", "tokens", "read", "epochs"]
    assert {row[0]: row[2] for row in rows[1:]} == {
        "commoncrawl": "410,000,000,000",
        "webtext2": "19,000,000,000",
        "books1": "12,000,000,000",
        "books2": "55,000,000,000",
        "wikipedia": "3,000,000,000",
    }
    assert all(row[3] == "declared" for row in rows[1:])
    epochs = [float(row[-1]) for row in rows[1:]]
    assert epochs == pytest.approx([0.435, 3.44, 1.98, 0.43, 2.97], abs=0.006)
    assert sum(int(row[4].replace(",", "")) for row in rows[1:]) == 300_000_000_000 // 2048 * 2048


def test_a_mix_is_no_recipe_and_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "prepare"):
        assert main([command, "gpt3-mix"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("trestle: gpt3-mix is a mix, no recipe: ")
        assert "`trestle inspect gpt3-mix --tokens 300B`" in said


def test_inspect_shows_the_curriculum_and_counts_its_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "web", 100)
    (tmp_path / "mix.yaml").write_text(
        "mix: [{shards: web, weight: 1}, {shards: later/books, weight: 1, tokens: 4k}]\n"
        "curriculum: [{from: 400 tokens, weights: {books: 1}}, {from: 801 tokens, weights: {web: 3, books: 1}}]\n"
    )
    assert main(["inspect", "mix.yaml", "--tokens", "1600"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # 50 samples of 8 tokens by halves, 51 of books, 99 by three quarters
    assert rows[1][3] == "100" and float(rows[1][-1]) == pytest.approx((25 + 74) / 100, abs=0.02)
    assert rows[2][3] == "declared" and float(rows[2][-1]) == pytest.approx((25 + 51 + 25) * 8 / 4000, abs=0.005)
    assert rows[4:] == [
        ["curriculum:", "from", "token", "web", "books"],
        ["0", "0.5", "0.5"],
        ["400", "0", "1"],
        ["808", "0.75", "0.25"],
    ]


def test_inspect_counts_the_pairs_of_a_mix_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sha256 = write_merges(tmp_path / "merges.txt")
    for name, samples in (("web", 30), ("art", 10)):
        write_pairs(tmp_path / name, samples, sha256=sha256)
    (tmp_path / "mix.yaml").write_text("mix: [{shards: web, tokens: 9B}, {shards: art, weight: 3}]\n")
    assert main(["inspect", "mix.yaml"]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert rows[1][:4] == ["web", "0.25", "30", "0.75"] and rows[2][:4] == ["art", "0.75", "10", "0.25"]
    assert said.endswith("how often each is read in a run: --pairs 12.8B\n")
    for words in (["--pairs", "0.4k"], ["--pairs", "400 pairs"]):
        assert main(["inspect", "mix.yaml", *words]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert rows[0][-5:] == ["of", "pairs", "pairs", "read", "epochs"]
        assert [row[4] for row in rows[1:]] == ["100", "300"]
        assert [float(row[5]) for row in rows[1:]] == pytest.approx([100 / 30, 30], rel=0.01)
    (tmp_path / "recipe.yaml").write_text(
        "model: {family: clip, context_length: 20}\n"
        "data: {mix: [{shards: web}, {shards: art}], curriculum: [{from: 400 tokens, weights: {art: 1}}]}\n"
    )
    assert main(["inspect", "recipe.yaml", "--pairs", "100"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[4] for row in rows[1:3]] == ["10", "90"] and rows[-1] == ["20", "0", "1"]


@pytest.mark.parametrize(
    ("mix", "words", "said"),
    [
        ("mix: [{shards: web}]", ["--tokens", "3B"], "is a mix of pairs, which are counted as such: --pairs 12.8B"),
        ("mix: [{shards: web}]", ["--pairs", "many"], '--pairs is "many"; write pairs, such as 12.8B'),
        ("mix: [{shards: web}]", ["--pairs", "3 steps"], '--pairs is "3 steps"; write pairs, such as 12.8B'),
        ("mix: [{shards: nowhere, tokens: 3B}]", ["--pairs", "3B"], "is no mix of image-text shards that are there"),
        ("mix: [{shards: web}, {shards: nowhere, tokens: 3B}]", [], "nowhere is no shard set (manifest.json: No such"),
        ("mix: [{shards: web}, {shards: text}]", [], "text is a shard set of text, but image-text is wanted here"),
        ("mix: [{shards: old, tokens: 3B}]", [], "old/manifest.json is no shard manifest"),
    ],
)
def test_a_mix_of_pairs_that_cannot_be_counted_is_one_line(
    mix: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "web", 3, sha256=write_merges(tmp_path / "merges.txt"))
    write_set(tmp_path / "text", 10)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("{}")
    (tmp_path / "mix.yaml").write_text(mix)
    assert main(["inspect", "mix.yaml", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("mix", "words", "said"),
    [
        ("mix: [{shards: nowhere}]", [], "nowhere is no shard set (manifest.json: No such file or directory)"),
        ("mix: [{shards: nowhere, tokens: much}]", [], 'data.mix.0.tokens is "much"; write tokens, such as 300B'),
        ("mix: [{shards: nowhere, tokens: 3B}]", ["--tokens", "3 steps"], '--tokens is "3 steps"; write tokens'),
        ("mix: []", [], "data.mix is empty"),
        ("mox: []", [], "has no `mix:`; name a mix.yaml"),
        (
            "mix: [{shards: a, tokens: 3B}]\ncurriculum: [{from: 8 tokens, weights: {b: 1}}]",
            [],
            "data.curriculum.0.weights names b, which is no corpus of data.mix (a)",
        ),
    ],
)
def test_a_mix_that_cannot_be_counted_is_one_line(
    mix: str,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mix.yaml").write_text(mix)
    assert main(["inspect", "mix.yaml", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_set(tmp_path / "served" / "web", 158, rows=8)
    with serving(tmp_path / "served") as running:
        yield running


def test_inspect_verifies_shards_here_and_behind_a_url(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect, "PROGRESS_SECONDS", 0.0)
    shown = []
    for place in (str(server.root / "web"), f"{server.url}/web"):
        assert main(["inspect", place]) == 0
        told = capsys.readouterr()
        assert told.out.endswith("health: verified\n")
        assert told.err.splitlines()[-1] == "verified 20 of 20 members"
        shown.append(told.out)
    assert shown[0] == shown[1]
    flip_a_bit(server.root / "web", 7)
    assert main(["inspect", str(server.root / "web")]) == 1
    assert "00002.tar is damaged: member 000000007.npy fails its CRC" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: None)
        assert main(["inspect", f"{server.url}/web"]) == 1
    assert f"member 000000007.npy of {server.url}/web/00002.tar cannot be read" in capsys.readouterr().out


# -- a shipped recipe's raw data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["prepare", "demo-clip", "--prepare.workers", "1"], ["train", "demo-clip"]])
def test_demo_of_pictures_says_how_its_pictures_are_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.endswith("; `python -m launcher.digits digits` writes what this recipe reads\n")
    assert said.count("\n") == 1
    write_strips(tmp_path / "digits", training=1, held_out=1)
    assert main(["train", "demo-clip"]) == 2
    assert capsys.readouterr().err.endswith("are not there: make them with `trestle prepare demo-clip`\n")


# -- remote shards ----------------------------------------------------------------------------------------------------


def test_urls_pass_the_checks_before_a_run_and_stay_what_they_are(here: Path, tmp_path: Path) -> None:
    with serving(here) as served:
        words = [
            f"--data.mix=[{{shards: {served.url}/shards/network}}]",
            f"--data.validation=[{{shards: {served.url}/shards/network-validation}}]",
            "--data.cache.directory=cache",
        ]
        job = load_job(here / "recipe.yaml", words)
        stream = check_shards(job.recipe)
        assert stream.tokenizer_path.read_bytes() == (here / "shards" / "tokenizer.model").read_bytes()
        anchor_shards(job.recipe)
        assert job.recipe.data.mix[0].shards == f"{served.url}/shards/network"
        assert job.recipe.data.cache.directory == str(here / "cache")
        run = RunFolder(here / "runs" / "remote")
        run.create(job.to_yaml(), stream.tokenizer_path)
        run.tokenizer.unlink()
        assert tokenizer_of(run, job.recipe).sha256 == stream.tokenizer_sha256
        stream.close()


# -- changes on a resume ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "own", "value"),
    [
        (["runs/x", "--data.allow-change"], ["runs/x"], "true"),
        (["--data.allow-change", "runs/x"], ["runs/x"], "true"),
        (["--data.allow_change", "--print_config", "runs/x"], ["--print_config", "runs/x"], "true"),
        (["--data.allow_change=false", "runs/x"], ["runs/x"], "false"),
        (["--data.allow-change", "true", "runs/x"], ["runs/x"], "true"),
        (["--data.allow-change", "False", "runs/x"], ["runs/x"], "False"),
    ],
)
def test_the_permission_may_stand_alone_and_have_a_hyphen(words: list[str], own: list[str], value: str) -> None:
    assert split(words) == (own, [f"--data.allow_change={value}"])


@pytest.fixture
def run(here: Path) -> RunFolder:
    """A run whose newest checkpoint, of step 2, has read 16 samples."""
    job = load_job(here / "recipe.yaml")
    anchor_shards(job.recipe)
    folder = RunFolder(here / "runs" / "small")
    folder.create(job.to_yaml(), here / "shards" / "tokenizer.model")
    check_shards(job.recipe)
    stream = Stream(job.recipe.data, job.recipe.run.seed)
    state = {"data": json.loads(json.dumps(stream.state(16))), "recipe": to_document(job.recipe), "tokens": 16 * 64}
    CheckpointWriter(folder.checkpoints, rank=0, world_size=1, asynchronous=False).save(2, [], state)
    return folder


def test_other_data_are_refused_before_anything_starts_with_the_way_out(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run.recipe.read_bytes()
    for words, said in [
        (["--data.mix.0.weight=9"], "the weight of network was 0.7 and is 0.967742 (normalised)"),
        (["--data.shuffle", "windowed"], "the shuffle was full and is windowed (window 64) (keep it: set data.shuffle"),
        (["--data.mix", "[{shards: shards/tools}]"], "the mix was network, tools and is tools"),
        (
            ["--data.curriculum", "[{from: 64 tokens, weights: {tools: 1}}]"],
            "the curriculum was none and is from sample 1",
        ),
    ]:
        assert main(["resume", str(run.path), *words]) == 2
        told = capsys.readouterr().err
        assert said in told and "--data.allow-change" in told and told.count("\n") == 1
    assert run.recipe.read_bytes() == before and not run.events.exists()


def test_the_permission_holds_for_one_resume_and_for_its_ranks(run: RunFolder) -> None:
    words = ["--data.mix.0.weight=9", "--data.allow_change=true"]
    reset = "--data.allow_change=false"  # what `trestle resume` begins with
    job = load_job(run.path, [reset, *words])
    found = changes(load_job(run.path).document(), job.document())
    check_shards(job.recipe)
    resume.check_newest(run, job)
    resume.note(run, job, found)
    assert load_job(run.path).recipe.data.allow_change, "a rank that is restarted needs it"
    events = read_events(run.events)
    assert [(e["event"], list(e["keys"])) for e in events] == [("changed", ["data.mix"])]

    later = load_job(run.path, [reset])
    found = changes(load_job(run.path).document(), later.document())
    assert found == [Change("data.allow_change", True, False)]
    resume.note(run, later, found)
    assert not load_job(run.path).recipe.data.allow_change
    assert read_events(run.events) == events, "a permission that ends is no event"


def test_resume_with_other_weights_trains_on_and_a_later_change_is_refused_again(
    run: RunFolder, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.checkpoints)  # a run of its own, which has trained
    trestle = trestle_in(tmp_path)
    done = trestle(
        "resume",
        "runs/small",
        "--training.stop_after",
        "2",
        "--data.validation",
        "[]",
        "--training.validate_every",
        "0",
    )
    assert done.returncode == 0, done.stderr
    done = trestle(
        "resume", "runs/small", "--training.stop_after", "null", "--data.mix.0.weight", "9", "--data.allow-change"
    )
    assert done.returncode == 0, done.stderr
    assert "from here on other data are read: the weight of network was 0.7 and is 0.967742" in done.stdout
    told = [e for e in read_events(run.events) if e["event"] == "data_changed"]
    assert [e["step"] for e in told] == [2]
    assert main(["resume", str(run.path), "--data.mix.0.weight", "1", "--training.steps", "9"]) == 2
    assert "the weight of network was 0.967742 and is 0.769231" in capsys.readouterr().err
