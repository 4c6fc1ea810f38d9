"""The command from outside: help, overrides, and one line with the right exit code for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.cli import COMMANDS, main
from launcher.errors import EnvironmentFailure
from tests.launcher.conftest import trestle_in


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_shows_it_without_loading_torch(command: str) -> None:
    program = (
        "import sys; from launcher.cli import main; code = main([sys.argv[1], '--help']); "
        "heavy = {'torch', 'megatron', 'deepspeed', 'ray'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    usage, _, example = done.stdout.partition("example:\n")
    assert f"usage: trestle {command}" in usage
    assert f"  trestle {command} " in example


def test_help_lists_every_command_and_every_shipped_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)
    assert "gpt3-175b" in shown and "demo" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_example_in_the_help_is_accepted(command: str) -> None:
    """Each line of the example goes through the command's own parser."""
    import importlib
    import shlex

    from launcher.arguments import split

    parser = importlib.import_module(COMMANDS[command][0]).parser()
    lines = [line.split("|")[-1].strip() for line in parser.epilog.splitlines()]
    mine = [shlex.split(line)[2:] for line in lines if line.startswith(f"trestle {command} ")]
    assert mine
    for words in mine:
        own, overrides = split(words)
        assert parser.parse_known_args(own)[1] == []
        assert not overrides or parser.takes_overrides


MISTAKES = [
    (["trian"], "there is no command 'trian'; there is prepare, plan, train"),
    (["train"], "the following arguments are required: RECIPE; see `trestle train --help`"),
    (["train", "gpt3-13"], "there is no recipe gpt3-13: neither a file nor a shipped name; did you mean gpt3-13b?"),
    (
        ["train", "none.yaml"],
        "there is no recipe none.yaml: neither a file nor a shipped name; these ship: clip-rn50, clip-vit-b-16",
    ),
    (["train", "demo", "again"], "'again' is one argument too many"),
    (["train", "demo", "--optimizer.lrr", "1"], "optimizer.lrr does not exist; did you mean optimizer.lr?"),
    (["train", "demo", "--lr", "1"], "lr does not exist; did you mean optimizer.lr?"),
    (["train", "demo", "--cluster.nodse", "1"], "cluster.nodse does not exist; did you mean cluster.nodes?"),
    (["train", "demo", "--optimizer.lr"], "--optimizer.lr has no value"),
    (["train", "demo", "--optimizer.lr", "--run.seed", "1"], "--optimizer.lr has no value"),
    (["train", "demo", "--optimizer.lr", "much"], "optimizer.lr is much; it must be a number"),
    (["train", "demo", "--cluster.nodes", "two"], "cluster.nodes is two; it must be a whole number"),
    (
        ["train", "demo", "--parallel.tensor", "3"],
        "cluster.ranks_per_node 2 is no multiple of the tensor-parallel size 3",
    ),
    (["train", "demo", "--parallel.pipeline", "3"], "use a multiple of 3 ranks"),
    (["train", "demo", "--batch.global_batch_size", "12"], "12 is not divisible by 2 data-parallel ranks"),
    (["train", "demo", "--run.name", "../up"], "run.name is '../up'; it must be the name of a folder"),
    (["train", "gpt3-125m"], "the shards shards/commoncrawl are not there: prepare your corpora"),
    (["train", "demo"], "the shards shards/stdlib are not there: make them with `trestle prepare demo`"),
    (["train", "demo", "--data", "{mix: []}"], "data.mix is empty: name shards"),
    (["prepare", "gpt3-125m"], "says nothing about what to prepare"),
    (
        ["prepare", "demo", "--optimizer.lr", "1"],
        "takes --prepare.KEY VALUE and --cluster.address HOST:PORT, not --optimizer.lr",
    ),
    (["prepare", "demo", "--prepare.outptu", "x"], "prepare.outptu does not exist; did you mean prepare.output?"),
    (["prepare", "demo", "--prepare.corpora.7.name", "x"], "7 is no element of a list of 2"),
    (["resume", "runs/none"], "runs/none is no run's folder: it does not exist"),
    (["generate", "."], "the following arguments are required: --prompt"),
    (["generate", ".", "--prompt", "x"], ". is no run's folder: it has no recipe.yaml"),
    (["generate", ".", "--prompt", "x", "--run.seed", "1"], "trestle generate takes no overrides"),
    (["generate", ".", "--prompt", "x", "--temprature", "1"], "trestle generate has no option --temprature"),
    (["generate", ".", "--prompt", "x", "--top_k", "many"], "argument --top_k: invalid int value: 'many'"),
    (["export", ".", "out"], "the following arguments are required: --to"),
    (["export", ".", "out", "--to", "onnx"], "argument --to: invalid choice: 'onnx'"),
    (["import", "nowhere", "--name", "x"], "nowhere is no model that can be imported (GPT-2 and Llama of transformers"),
    (["inspect", "nowhere"], "nowhere does not exist"),
    (["submit", "demo", "--parallel.tensor", "3"], "cluster.ranks_per_node 2 is no multiple of the tensor-parallel"),
    (["submit", "demo", "--cluster.address", "head:6379"], "cluster.address is for `trestle train`"),
    (["submit", "demo", "--data.mix.0.shards", "s3://me:word@bucket/x"], "the recipe holds a password in a URL"),
    (["jobs", "--address", "head:6379"], "--address is 'head:6379'; it must look like http://127.0.0.1:8265"),
    (["stop"], "the following arguments are required: NAME"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistake_is_one_line_and_exit_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("trestle: ") and shown.err.count("\n") == 1
    assert said in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


@pytest.mark.parametrize("words", [MISTAKES[0][0], ["train", "demo", "--optimizer.lrr", "1"], ["inspect", "nowhere"]])
def test_mistake_in_a_real_process_shows_no_traceback(words: list[str], tmp_path: Path) -> None:
    done = trestle_in(tmp_path)(*words)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("trestle: ") and done.stderr.count("\n") == 1


def failing(error: BaseException) -> object:
    """A command's module whose work ends with `error`."""
    import types

    from launcher import inspect

    def run(*_: object) -> int:
        raise error

    return types.SimpleNamespace(parser=inspect.parser, run=run)


def test_exit_code_is_the_exceptions_own_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    def end_with(error: BaseException) -> int:
        monkeypatch.setattr(importlib, "import_module", lambda name: failing(error))
        return main(["inspect", "x"])

    assert end_with(EnvironmentFailure("the disk\nis full")) == 1
    assert capsys.readouterr().err == "trestle: the disk is full\n"
    assert end_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        end_with(ZeroDivisionError())


def test_print_config_is_a_recipe_that_prints_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["--optimizer.lr", "3e-4", "--cluster.nodes=3", "--model.preset", "llama-160m"]
    assert main(["train", "gpt3-125m", *overrides, "--print_config"]) == 0
    first = capsys.readouterr().out
    assert "  lr: 0.0003  # Peak learning rate." in first, "each key is explained"
    printed = yaml.safe_load(first)
    bare = [line for line in first.splitlines() if line.startswith("  ") and ":" in line and " # " not in line]
    assert all(line.lstrip().startswith("- ") for line in bare), f"keys without a word: {bare}"
    assert (printed["optimizer"]["lr"], printed["cluster"]["nodes"], printed["model"]["positions"]) == (
        3e-4,
        3,
        "rotary",
    )
    Path("printed.yaml").write_text(first)
    assert main(["train", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == first
    assert main(["prepare", "demo", "--prepare.tokenizer.vocab_size", "512", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["prepare"]["tokenizer"]["vocab_size"] == 512


def test_options_and_overrides_may_stand_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--optimizer.lr", "3e-4", "--print_config", "demo", "--run.seed=5"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["optimizer"]["lr"], printed["run"]["seed"], printed["run"]["name"]) == (3e-4, 5, "demo")
