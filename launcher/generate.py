"""`trestle generate RUN --prompt TEXT`: continue a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from launcher.arguments import Parser
from launcher.errors import UserError
from launcher.run_folder import RunFolder
from training.recipe import load_recipe

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer

_NEW_TOKENS = 200


def parser() -> Parser:
    made = Parser(
        "generate",
        "Continue a text with a run's model, from its newest verified checkpoint or from that of --step.",
        '  trestle generate runs/demo --prompt "def main(" --temperature 0.8 --top_p 0.95\n'
        "  cat prompt.txt | trestle generate runs/demo --prompt - --temperature 0",
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo")
    made.add_argument("--prompt", required=True, help="the text to continue; - reads it from standard input")
    made.add_argument(
        "--max_new_tokens", type=int, metavar="N", help=f"how many at most (default {_NEW_TOKENS}, if they fit)"
    )
    made.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0 takes the most likely token (default 1)"
    )
    made.add_argument("--top_k", type=int, metavar="K", help="draw from the K most likely tokens only")
    made.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="draw from the likeliest that reach P together"
    )
    made.add_argument("--seed", type=int, default=0, help="of the draws: the same seed, the same text (default 0)")
    made.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step, instead of the newest")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from launcher.one_process import (
        check_tokenizer,
        load_model,
        model_config,
        one_process,
        tokenizer_of,
        verified_checkpoint,
    )
    from modeling.registry import family

    folder = RunFolder.existing(arguments.run)
    recipe = load_recipe(folder.path)
    if family(recipe.model.family).reads != "text":
        raise UserError(f"{folder.path} is a model of family {recipe.model.family}, which continues no text")
    checkpoint = verified_checkpoint(folder, arguments.step)
    tokenizer = tokenizer_of(folder, recipe)
    check_tokenizer(tokenizer, checkpoint)
    config = model_config(recipe, tokenizer)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    from modeling.gpt.generation import generate
    from training.samples import prompt_tokens

    tokens = prompt_tokens(tokenizer, prompt, recipe.data.document_masks)
    room = config.sequence_length - len(tokens)
    if room < 1:
        before = 0 if recipe.data.document_masks else 1  # the end of the text before
        raise UserError(
            f"the prompt has {len(tokens) - before} tokens, but the model was trained on {config.sequence_length} at a "
            f"time; shorten it to {config.sequence_length - 1 - before} at most"
        )
    with one_process():
        drawn = generate(
            load_model(recipe, checkpoint),
            tokens,
            max_new_tokens=min(_NEW_TOKENS, room) if arguments.max_new_tokens is None else arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            eod_id=tokenizer.eod_id,
        )
        print(prompt, end="", flush=True)
        for text in stream_text(tokenizer, drawn):
            print(text, end="", flush=True)
    print()
    return 0


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as they come; a character that is spread over several tokens appears with the last of them."""
    drawn: list[int] = []
    shown = 0
    text = ""
    for token in tokens:
        drawn.append(token)
        text = tokenizer.decode(drawn)
        # A replacement character at the end may be the beginning of a character; all before it stays as it is.
        settled = len(text) - text.endswith("\ufffd")
        if settled > shown:
            yield text[shown:settled]
            shown = settled
    if text[shown:]:
        yield text[shown:]
