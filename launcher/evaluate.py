"""`trestle evaluate RUN`: how good a checkpoint is on held-out text, beside what token frequencies alone would give."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launcher.arguments import Parser
from launcher.errors import UserError
from launcher.run_folder import RunFolder
from training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    import torch

    from training.checkpoint import Checkpoint
    from training.validation import Validation


def parser() -> Parser:
    made = Parser(
        "evaluate",
        "Validation loss, perplexity and bits per byte of a run's newest verified checkpoint, or of that of --step,\n"
        "on the held-out shards of its recipe; beside them what a model that knows only token frequencies scores.\n"
        "Of a model of pictures and texts: held-out loss, and what the recipe's evaluation section asks for\n"
        "(retrieval, zero-shot classification, probes), with pictures in RUN/evaluation. Any key of that section can\n"
        "be set: --evaluation.KEY VALUE.",
        "  trestle evaluate runs/demo\n  trestle evaluate runs/demo --step 200 --samples 64\n"
        "  trestle evaluate runs/demo-clip --evaluation.samples 1000",
        takes_overrides=True,
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo")
    made.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step, instead of the newest")
    made.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="held-out samples of each set (default: all, which the baseline counts as well)",
    )
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from data_pipeline.baseline import bits_per_byte, unigram_cross_entropy
    from launcher.one_process import verified_checkpoint
    from modeling.registry import family

    folder = RunFolder.existing(arguments.run)
    foreign = next((o for o in overrides if not o.startswith("--evaluation.")), None)
    if foreign is not None:
        raise UserError(f"trestle evaluate takes --evaluation.KEY VALUE, not {foreign.partition('=')[0]}")
    recipe = load_recipe(folder.path, overrides)
    if family(recipe.model.family).reads == "pairs":
        from launcher.evaluate_pairs import evaluate_pairs

        return evaluate_pairs(folder, recipe, arguments.step, arguments.samples)
    if overrides:
        raise UserError(f"evaluation: is for models of pictures and texts, and {folder.path} is one of text")
    held_out = recipe.data.validation
    if not held_out:
        raise UserError(f"{folder.path} has no held-out shards: name some in data.validation of its recipe.yaml")
    checkpoint = verified_checkpoint(folder, arguments.step)
    samples = arguments.samples or 0
    found = _validate(folder, recipe, checkpoint, samples)
    unigram = unigram_cross_entropy(recipe.data.mix, held_out, recipe.data.cache)
    print(f"{folder.path}, step {checkpoint.step}, {found.samples} held-out samples")
    print(_table(found, unigram, bits_per_byte(unigram, held_out, recipe.data.cache), recipe.model.vocabulary))
    for name, loss in found.loss_of.items():
        print(f"  {name}: {loss:.4f} nats per token")
    reported = checkpoint.state.get("validation_loss")
    if reported is not None:
        looked = recipe.training.validation_samples
        which = f"the first {looked} samples of each set" if looked else "all samples"
        print(f"the run reported {reported:.4f} nats per token at this step, over {which}")
    return 0


def _validate(folder: RunFolder, recipe: Recipe, checkpoint: Checkpoint, samples: int) -> Validation:
    """In this process, in the run's precision."""
    import torch

    from launcher.one_process import check_tokenizer, load_model, model_config, one_process, tokenizer_of
    from modeling import groups
    from modeling.registry import family
    from training.validation import Validator

    tokenizer = tokenizer_of(folder, recipe)
    check_tokenizer(tokenizer, checkpoint)
    model_config(recipe, tokenizer)
    forward_step = family(recipe.model.family).implementation.forward_step
    with one_process():
        model = load_model(recipe, checkpoint)

        def evaluate(micro_batches: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
            figures = []
            with torch.no_grad():
                for batch in micro_batches:
                    output, loss = forward_step(batch, model)
                    figures.append(loss(output)[1])
            return figures

        return Validator(
            evaluate,
            groups.device(),
            recipe.data.validation,
            tokenizer.token_bytes,
            micro_batch_size=recipe.batch.micro_batch_size,
            samples=samples,
            eod_id=tokenizer.eod_id if recipe.data.document_masks else None,
            cache=recipe.data.cache,
        ).run()


def _table(found: Validation, unigram: float, unigram_bits: float, vocabulary: int) -> str:
    """The figures beside their baselines."""
    uniform = math.log(vocabulary)
    rows = [
        ("", "this model", "token frequencies", "uniform"),
        ("nats per token", f"{found.loss:.4f}", f"{unigram:.4f}", f"{uniform:.4f}"),
        ("perplexity", f"{found.perplexity:.1f}", f"{math.exp(unigram):.1f}", f"{vocabulary}"),
        ("bits per byte", f"{found.bits_per_byte:.4f}", f"{unigram_bits:.4f}", "8.0000"),
        ("of the frequencies' nats", f"{found.loss / unigram:.3f}", "1.000", f"{uniform / unigram:.3f}"),
    ]
    return "\n".join(f"  {name:26}{a:>12}{b:>20}{c:>12}" for name, a, b, c in rows)
