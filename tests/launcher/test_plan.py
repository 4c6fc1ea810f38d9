"""`trestle plan` says what a training takes, and starts, writes and imports nothing heavy for it."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from launcher import cli
from launcher.dry_run import check_anywhere
from launcher.job import load_job
from launcher.plan.terms import digits
from launcher.sources import SHIPPED, find_recipe, shipped_names
from tests.data_pipeline.shard_sets import write_set


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["plan", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["plan", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("trestle: ") and said.err.count("\n") == 1
    return said.err


def without_torch(words: list[str], folder: Path) -> str:
    """What a process of its own prints, which has imported neither torch nor Ray."""
    script = (
        f"import sys; from launcher.cli import main; code = main({words!r}); "
        "sys.exit(code or ('torch' in sys.modules or 'ray' in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_175b_on_1024_gpus_without_torch_ray_or_a_file(tmp_path: Path) -> None:
    words = ["plan", "gpt3-175b", "--nodes", "128", "--gpus-per-node", "8", "--gpu", "h100"]
    said = without_torch(words, tmp_path)
    lines = said.splitlines()
    assert lines[0] == "gpt3-175b: 174,604,259,328 parameters on 1,024 h100 (128 nodes x 8)"
    assert lines[1].startswith("TP 8 x PP 16 x DP 8, sequence parallel, ZeRO 1, bf16")
    assert "stages 1 - 14" in said and "fits: " in said
    assert "6 N 3.3 EFLOP + attention" in said and "petaflop/s-days" in said
    assert len(lines) < 45 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_recipe_is_planned_within_120_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, name, "--model.vocab_size", "50257")
    assert "time of a step" in said and "memory a rank" in said
    assert max(map(len, said.splitlines())) <= 120


def test_json_is_all_of_it_in_si_units(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(planned(capsys, "gpt3-13b", "--json"))["plan"]
    step, stages = document["step"], document["stages"]
    parts = [value for key, value in step.items() if key != "total_seconds" and "overlapped" not in key]
    assert sum(parts) == pytest.approx(step["total_seconds"])
    assert [stage["stage"] for stage in stages] == list(range(document["parallel"]["pipeline"]))
    for stage in stages:  # bf16 weights, fp32 gradients, and 12 bytes of state that the replicas divide
        memory, numel = stage["memory"], stage["parameters"]
        assert memory["weights"] == pytest.approx(2 * numel, rel=1e-3)
        assert memory["optimizer"] == pytest.approx(12 * numel / document["replicas"], rel=1e-3)
        assert 0 < memory["gradients"] < 4.4 * numel
        assert memory["peak"] > memory["weights"] + memory["optimizer"] + memory["activations"]
    assert document["accelerator"]["usable_bytes"] == 0.95 * document["accelerator"]["memory_bytes"]
    assert document["training"]["cost"] is None and document["checkpoint"]["write_seconds"] is None


def test_nodes_and_gpus_come_from_the_recipe_unless_given(capsys: pytest.CaptureFixture[str]) -> None:
    own = json.loads(planned(capsys, "gpt3-175b", "--json"))["plan"]
    assert (own["nodes"], own["gpus_per_node"], own["replicas"]) == (128, 8, 8)
    half = json.loads(planned(capsys, "gpt3-175b", "--nodes", "64", "--json"))["plan"]
    assert (half["nodes"], half["gpus_per_node"], half["replicas"]) == (64, 8, 4)


def test_prices_are_the_users_and_nothing_is_invented_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown: give --price-per-gpu-hour" in planned(capsys, "gpt3-1.3b")
    words = ("gpt3-1.3b", "--price-per-gpu-hour", "2.5", "--price-per-kwh", "0.1", "--pue", "1.2", "--json")
    training = json.loads(planned(capsys, *words))["plan"]["training"]
    assert training["cost"] == pytest.approx(2.5 * training["gpu_hours"] + 0.1 * training["energy_kwh"])
    assert training["energy_kwh"] == pytest.approx(0.7 * 1.2 * training["gpu_hours"])


def test_epochs_are_those_of_the_mix_with_sizes_that_are_declared(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(planned(capsys, "gpt3-175b", "--data", str(SHIPPED / "gpt3-mix.yaml"), "--json"))["plan"]
    found = {name: round(count, 2) for name, count in document["epochs"].items()}
    assert found == {"commoncrawl": 0.43, "webtext2": 3.44, "books1": 1.98, "books2": 0.43, "wikipedia": 2.97}


def test_shards_that_are_there_decide_the_vocabulary_and_the_epochs(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"any")
    for name in ("few", "held-out"):
        write_set(tmp_path / name, 50, length=256, tokenizer_sha256=sha256(b"any").hexdigest())
    data = ["--data.mix", "[{shards: few}]", "--data.validation", "[{shards: held-out}]"]
    said = without_torch(["plan", "demo", *data, "--training.steps", "25", "--optimizer.warmup", "5"], tmp_path)
    assert "epochs: few 4.00" in said and "shards: " not in said


def test_slower_network_costs_what_crosses_it(capsys: pytest.CaptureFixture[str]) -> None:
    fast = json.loads(planned(capsys, "gpt3-6.7b", "--json"))["plan"]["step"]
    slow = json.loads(planned(capsys, "gpt3-6.7b", "--network-bandwidth", "5", "--json"))["plan"]["step"]
    assert slow["data_seconds"] > 5 * fast["data_seconds"] and slow["compute_seconds"] == fast["compute_seconds"]


def test_predictions_stand_beside_published_runs(capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, "--published")
    assert "OPT-175B" in said and "BLOOM-176B" in said
    rows = json.loads(planned(capsys, "--published", "--json"))["published"]
    for row in rows:
        assert row["error"] == pytest.approx(row["predicted_seconds"] / row["run"]["seconds"] - 1)
        assert row["run"]["name"] in said


REFUSED: list[tuple[list[str], str]] = [
    (["gpt3-175b", "--parallel.tensor", "16"], "a tensor-parallel group would cross nodes"),
    (["gpt3-175b", "--parallel.zero_stage", "3"], "which a pipeline schedule keeps in flight"),
    (["gpt3-125m", "--nodes", "3", "--gpus-per-node", "7"], "is not divisible by 21 data-parallel ranks"),
    (["clip-vit-b-32", "--parallel.pipeline", "2"], "two towers are not divided into stages"),
    (["gpt3-125m", "--gpu", "h1000"], "--gpu h1000 is not known; there are "),
    (["gpt3-125m", "--gpu", "v100"], "v100-32gb has no units for bf16: plan with --training.precision fp32"),
    (["gpt3-126m"], "did you mean gpt3-125m?"),
    (["gpt3-125m", "--nodes", "0"], "--nodes: 0 is no whole number from 1 to 1,000,000"),
    (["gpt3-125m", "--pue", "-1"], "--pue: -1 is not 1 or more"),
    (["gpt3-125m", "--pue", "0.5"], "a site takes what its computers take, at least"),
    (["gpt3-125m", "--nodes", "1.5"], "--nodes: 1.5 is no whole number from 1 to 1,000,000"),
    (["gpt3-125m", "--price-per-kwh", "cheap"], "--price-per-kwh: cheap is no number"),
    (["gpt3-125m", "--price-per-gpu-hour", "1e308"], "1e308 is not between 0.000001 and 1,000,000,000"),
    (["gpt3-125m", "--network-bandwidth", "nan"], "nan is not between"),
    (["gpt3-125m", "--search", "--html", "nowhere/plan.html"], "there is no folder nowhere; make it first"),
    (["--published", "--html", "plan.html"], "leave out RECIPE and all options but --json"),
    (["gpt3-125m", "--published"], "--published is no plan: leave out RECIPE and all options but --json"),
    (["gpt3-125m", "--parallel.tensors", "2"], "parallel.tensor"),
    ([], "the following arguments are required: RECIPE"),
    (["demo"], "say --model.vocab_size"),
]


@pytest.mark.parametrize(
    ("words", "sentence"), REFUSED, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(capsys, *words)


def test_impossible_layouts_are_refused_in_the_words_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gpt3-175b", "--parallel.pipeline", "10"]
    said = refused(capsys, *words)
    assert cli.main(["train", *words, "--dry-run"]) == 2
    assert capsys.readouterr().err == said


def test_layout_that_does_not_fit_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    words = "gpt3-13b --nodes 1 --gpu a100-40gb --parallel.pipeline 1 --parallel.tensor 8 --training.recompute none"
    large = [*words.split(), "--batch.micro_batch_size", "16"]
    said = planned(capsys, *large)
    assert "DOES NOT FIT: " in said and "would fit:" in said
    lines = said.splitlines()
    mend = lines[lines.index("would fit:") + 1].split("  (")[0].split()
    assert "fits: " in planned(capsys, *large, *mend)


def test_a_runs_folder_is_planned_as_its_recipe_stands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["plan", "gpt3-1.3b", "--print_config"]) == 0
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(capsys.readouterr().out)
    assert planned(capsys, str(run)) == planned(capsys, "gpt3-1.3b")


def test_command_that_is_printed_is_one_that_can_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["gpt3-1.3b", "--cluster.nodes", "4", "--cluster.min_nodes", "2"]
    document = json.loads(planned(capsys, *words, "--nodes", "1", "--search", "--json"))["search"]
    command = document["command"].split()
    assert command[:3] == ["trestle", "train", "gpt3-1.3b"]
    assert command[-4:] == ["--cluster.nodes", "1", "--cluster.min_nodes", "1"]
    for one in document["proposals"]:
        check_anywhere(load_job(find_recipe(command[2]), [*command[3:], *one["overrides"].split()]))
    # A run that has checkpoints cannot be started again, but goes on.
    run = tmp_path / "runs" / "first"
    (run / "checkpoints").mkdir(parents=True)
    assert cli.main(["plan", "gpt3-125m", "--print_config"]) == 0
    (run / "recipe.yaml").write_text(capsys.readouterr().out)
    for made, verb in ((False, "train"), (True, "resume")):
        if made:
            (run / "checkpoints" / "step-00000010").mkdir()
        said = json.loads(planned(capsys, "runs/first", "--nodes", "2", "--search", "--json"))["search"]["command"]
        assert said == f"trestle {verb} runs/first --cluster.nodes 2"


@pytest.mark.parametrize(
    "words",
    [
        ["gpt3-175b", "--nodes", "256", "--network-bandwidth", "1e-6", "--storage-bandwidth", "1e-6"],
        ["gpt3-175b", "--watts-per-gpu", "1e9", "--price-per-gpu-hour", "1e9", "--storage-bandwidth", "1"],
        ["demo", "--model.vocab_size", "300", "--training.steps", "25", "--optimizer.warmup", "5"],
    ],
)
def test_numbers_are_written_out_however_large_or_small(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, *words, "--html", "plan.html")
    page = re.sub("<[^>]*>", " ", Path("plan.html").read_text())
    for text in (said, page):
        assert not re.search(r"\d[eE][+-]\d", text)


def test_digits_are_significant_ones() -> None:
    values = {0.0: "0", 0.25: "0.25", 6.502e-9: "0.0000000065", 12.345: "12.3", 999.6: "1,000", 36384.2: "36,384"}
    assert {value: digits(value) for value in values} == values
    assert (digits(3638.2, 4), digits(234.11, 4), digits(1e15)) == ("3,638", "234.1", "1,000,000,000,000,000")


def test_pairs_are_the_pace_of_a_search_as_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, "clip-vit-b-32", "--search", "--html", "plan.html")
    head, first = next((a, b) for a, b in itertools.pairwise(said.splitlines()) if a.endswith("a step"))
    assert "pairs/s" in head and "tokens/s" not in said
    document = json.loads(planned(capsys, "clip-vit-b-32", "--search", "--json"))["search"]["proposals"][0]["plan"]
    a_second = document["global_batch_size"] / document["step"]["total_seconds"]
    assert int(first.split()[-3].replace(",", "")) == pytest.approx(a_second, rel=1e-3)
    assert "pairs/s" in Path("plan.html").read_text()


def test_what_lies_on_the_host_is_shown_everywhere_and_is_a_way_to_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gpt3-2.7b", "--nodes", "1", "--gpus-per-node", "1", "--gpu", "a100-40gb", "--batch.ramp", "null"]
    words += ["--parallel.tensor", "1", "--parallel.sequence", "false"]
    said = planned(capsys, *words, "--batch.micro_batch_size", "1")
    (offloaded,) = [line for line in said.splitlines() if line.startswith("  --parallel.offload_optimizer true  (")]
    assert " GB on the host, " in offloaded
    away = planned(capsys, *words, "--parallel.offload_optimizer", "true", "--html", "plan.html")
    assert "on the host" in away and "on the host" in Path("plan.html").read_text()


def test_page_stands_alone_and_names_what_it_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = planned(capsys, "gpt3-13b", "--run.name", "<b>mine", "--html", "plan.html")
    assert said.endswith("the page: plan.html\n")
    page = (tmp_path / "plan.html").read_text()
    assert (
        "default-src &#x27;none&#x27;" in page
        and "<script" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert "<b>mine" not in page and "&lt;b&gt;mine" in page
    assert "url(" not in page and "prefers-color-scheme:dark" in page
    for said in ("Memory of a rank of each pipeline stage", "Time line of one step", "DP traffic", "gradients"):
        assert said in page
    assert refused(capsys, "gpt3-13b", "--html", str(tmp_path)).endswith("plan.html\n")
