"""The `trestle` command: finds the sub-command, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from launcher.arguments import Parser, split
from launcher.errors import UserError
from launcher.sources import shipped_names


class Command(Protocol):
    """What a command's module offers."""

    def parser(self) -> Parser:
        """Its arguments and help."""

    run: Callable[..., int]
    """run(arguments, overrides) does the work and returns the exit code."""


COMMANDS: dict[str, tuple[str, str]] = {
    "prepare": ("launcher.prepare", "raw text, or pictures with captions -> tokenizer and shards"),
    "plan": ("launcher.plan.command", "memory, time and cost of a recipe on a cluster, before anybody pays"),
    "train": ("launcher.train", "start a run from a recipe"),
    "resume": ("launcher.resume", "continue a run, on another layout if need be"),
    "generate": ("launcher.generate", "continue a text with a run's model"),
    "evaluate": ("launcher.evaluate", "held-out loss beside a baseline; of a CLIP retrieval, zero-shot, probes"),
    "export": ("launcher.export", "a run's model as a folder that transformers loads"),
    "import": ("launcher.import_model", "a run that continues a Hugging Face model"),
    "doctor": ("launcher.doctor", "whether this machine can train, and what to mend"),
    "profile": ("launcher.profile", "where the time of a run's steps goes: traces, top kernels, idle share"),
    "inspect": ("launcher.inspect", "what is in a run, a checkpoint, a shard set or a mix"),
    "submit": ("launcher.submit", "train or resume on a cluster, with the code of this checkout"),
    "jobs": ("launcher.jobs", "what has been submitted to a cluster, and how far it is"),
    "logs": ("launcher.logs", "what a submitted job prints"),
    "stop": ("launcher.stop", "end a submitted job, saved"),
}
"""Name -> (module, imported when the command is called; what it does)."""


def main(words: Sequence[str] | None = None) -> int:
    """Run `trestle WORDS`; its exit code: 2 after a user's mistake, 1 after the machine's, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if words is None else words)
    return in_one_line(lambda: _run(words))


def in_one_line(work: Callable[[], int]) -> int:
    """The exit code of `work`; what it raises on purpose becomes one line on stderr and the exception's exit code."""
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `trestle inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        print(f"trestle: {' '.join(str(error).split())}", file=sys.stderr)
        return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; there is {', '.join(COMMANDS)}")
    command: Command = importlib.import_module(COMMANDS[name][0])  # type: ignore[assignment]
    parser = command.parser()
    own, overrides = split(rest)
    try:
        arguments, unknown = parser.parse_known_args(own)
    except SystemExit as after_help:
        return int(after_help.code or 0)
    if unknown:
        _refuse(unknown[0], parser)
    if overrides and not parser.takes_overrides:
        raise UserError(f"{parser.prog} takes no overrides, but was given {overrides[0]}")
    return command.run(arguments, overrides)


def _refuse(word: str, parser: Parser) -> None:
    """Say which key an option that does not exist may have meant."""
    if word.startswith("--") and parser.takes_overrides:
        from launcher.job import known_keys_of_a_recipe
        from training.sections import unknown_key

        raise unknown_key(word.removeprefix("--").partition("=")[0], known_keys_of_a_recipe())
    if word.startswith("-"):
        raise UserError(f"{parser.prog} has no option {word}; see `{parser.prog} --help`")
    raise UserError(f"{word!r} is one argument too many; see `{parser.prog} --help`")


def overview() -> str:
    """`trestle --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: trestle COMMAND …\n\n"
        "Trains large models on clusters, from raw text to a checkpoint that somebody else can load.\n\n"
        f"{commands}\n\n"
        f"recipes that ship: {', '.join(shipped_names())}\n"
        "each command has --help with an example: trestle train --help"
    )
