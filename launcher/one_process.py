"""A run's model in this one process: for sampling from it and for handing it on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import UserError
from launcher.run_folder import RunFolder
from training.recipe import Recipe

if TYPE_CHECKING:
    from data_pipeline.pairs.tokenizers import CaptionTokenizer
    from data_pipeline.tokenizer import Tokenizer
    from training.checkpoint import Checkpoint


def verified_checkpoint(folder: RunFolder, step: int | None) -> Checkpoint:
    """The checkpoint of a step, or the newest whose files are what their checksums say.

    Damaged ones are named and passed over, not set aside: that is for the run itself. Raises UserError and
    DamagedCheckpoint.
    """
    from training.checkpoint import Checkpoint, DamagedCheckpoint, candidates

    found = candidates(folder.checkpoints)
    if step is not None:
        path = folder.checkpoints / f"step-{step:08d}"
        if path not in found:
            steps = ", ".join(str(int(p.name.removeprefix("step-"))) for p in reversed(found)) or "none"
            raise UserError(f"{folder.path} has no checkpoint of step {step}; there are {steps}")
        checkpoint = Checkpoint(path)
        checkpoint.verify()
        return checkpoint
    for path in found:
        try:
            checkpoint = Checkpoint(path)
            checkpoint.verify()
        except DamagedCheckpoint as damage:
            print(f"trestle: {damage}; trying the one before", file=sys.stderr)
        else:
            return checkpoint
    raise UserError(
        f"{folder.path} has no checkpoint that can be read; train it first with `trestle resume {folder.path}`"
    )


def tokenizer_of(folder: RunFolder, recipe: Recipe) -> Tokenizer:
    """The tokenizer that the run was trained with: its own copy, else the one beside its shards. Raises UserError."""
    from data_pipeline.locations import is_remote
    from data_pipeline.shard_store import open_store
    from data_pipeline.tokenizer import Tokenizer

    local = [source.shards for source in recipe.data.mix if not is_remote(source.shards)]
    for place in [folder.tokenizer, *(Path(shards).parent / "tokenizer.model" for shards in local)]:
        if place.is_file():
            return Tokenizer(place)
    for source in recipe.data.mix:
        if is_remote(source.shards):
            return Tokenizer(open_store(source.shards, recipe.data.cache).tokenizer())
    raise UserError(f"the tokenizer of {folder.path} is gone: put its tokenizer.model at {folder.tokenizer}")


def caption_tokenizer_of(folder: RunFolder, recipe: Recipe) -> CaptionTokenizer:
    """The captions' tokenizer that the run was trained with: its own copy, else the one beside its shards."""
    from data_pipeline.pairs.reader import PairSet
    from data_pipeline.pairs.tokenizers import open_caption_tokenizer

    if folder.tokenizer.is_file():
        return open_caption_tokenizer(folder.tokenizer)
    if not recipe.data.mix:
        raise UserError(f"the tokenizer of {folder.path} is gone: put it at {folder.tokenizer}")
    return PairSet(recipe.data.mix[0].shards, recipe.data.cache).caption_tokenizer()


def check_tokenizer(tokenizer: Tokenizer | CaptionTokenizer, checkpoint: Checkpoint) -> None:
    """Raises UserError unless a checkpoint was trained with this tokenizer, by its checksum."""
    data = checkpoint.state.get("data") or {}  # an imported model has read none yet
    wanted = data.get("fingerprint", {}).get("tokenizer_sha256")
    if wanted not in (None, tokenizer.sha256):
        raise UserError(
            f"the tokenizer of the run is not the one that {checkpoint.path} was trained with, by its checksum; put "
            "that one back"
        )


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """The model's shape; a vocabulary that the recipe leaves open is the tokenizer's."""
    if recipe.model.vocab_size is None:
        recipe.model.vocab_size = tokenizer.vocab_size
    return recipe.model


@contextmanager
def one_process() -> Iterator[None]:
    """Process groups of a single rank, which the model's layers ask for."""
    import torch.distributed as dist

    from modeling import groups
    from modeling.layout import Layout
    from training.process import RankEnvironment, start_process_group

    start_process_group(RankEnvironment(), timeout_seconds=60)
    try:
        groups.start_groups(Layout())
        try:
            yield
        finally:
            groups.stop_groups()
    finally:
        dist.destroy_process_group()


def load_model(recipe: Recipe, checkpoint: Checkpoint) -> Any:
    """The whole model with a checkpoint's weights, within `one_process`; in the run's precision.

    Raises CheckpointMismatch when the checkpoint is of another model.
    """
    import torch

    from modeling.execution import Execution
    from modeling.registry import family

    implementation = family(recipe.model.family).implementation
    (model,) = implementation.build(recipe.model, Execution(precision=recipe.training.precision, seed=recipe.run.seed))
    shards = implementation.describe(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weights = checkpoint.tensor(shards[name].name).reshape(-1)
            # Beyond them lie the padding rows of the vocabulary, which stay 0.
            parameter.view(-1)[: weights.numel()].copy_(weights)
    return model.eval()
