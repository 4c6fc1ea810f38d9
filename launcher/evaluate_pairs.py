"""`trestle evaluate` of a model of pictures and texts."""

from __future__ import annotations

import shutil
from typing import Any

import cv2
import torch

from launcher.errors import EnvironmentFailure, UserError
from launcher.one_process import caption_tokenizer_of, check_tokenizer, load_model, one_process, verified_checkpoint
from launcher.run_folder import RunFolder
from launcher.tables import table
from modeling.registry import family
from training.inputs.pairs import PairInputs
from training.pair_validation import PairValidation
from training.recipe import Recipe

_SHOWN = {
    "image_to_text_r1": "picture → text, right first",
    "image_to_text_r5": "picture → text, among 5",
    "image_to_text_r10": "picture → text, among 10",
    "image_to_text_median_rank": "picture → text, median rank",
    "image_to_text_mean_rank": "picture → text, mean rank",
    "text_to_image_r1": "text → picture, right first",
    "text_to_image_r5": "text → picture, among 5",
    "text_to_image_r10": "text → picture, among 10",
    "text_to_image_median_rank": "text → picture, median rank",
    "text_to_image_mean_rank": "text → picture, mean rank",
    "top1": "right class first",
    "top5": "right class among 5",
    "mean_per_class": "mean over classes",
}


def evaluate_pairs(folder: RunFolder, recipe: Recipe, step: int | None, samples: int | None) -> int:
    """Figures to the console, pictures to RUN/evaluation/step-N. Raises UserError, RecipeError, EnvironmentFailure."""
    asked = recipe.evaluation
    if not recipe.looks:
        raise UserError(
            f"{folder.path} has nothing to be evaluated on: name shards in data.validation of its recipe.yaml, or with "
            "--evaluation.zero_shot"
        )
    if samples is not None:
        asked.samples = samples
    asked.check()
    checkpoint = verified_checkpoint(folder, step)
    tokenizer = caption_tokenizer_of(folder, recipe)
    check_tokenizer(tokenizer, checkpoint)
    if recipe.model.vocab_size is None:
        recipe.model.vocab_size = tokenizer.vocab_size
    with one_process():
        model = load_model(recipe, checkpoint)
        names = [shard.name for shard in family(recipe.model.family).implementation.describe(model).values()]
        scalars = [n for n in family(recipe.model.family).implementation.shared_parameters if n in names]

        def embed(images: torch.Tensor | None, tokens: torch.Tensor | None) -> Any:
            with torch.no_grad():
                return model(images, tokens)[:2]

        shared = [checkpoint.tensor(name).reshape(()) for name in scalars]
        found = PairInputs(recipe).validator(tokenizer).run(embed, shared, draw=True)
    print(f"{folder.path}, step {checkpoint.step}")
    print(_table(found))
    _write_pictures(folder, checkpoint.step, found)
    return 0


def _table(found: PairValidation) -> str:
    rows = []
    for name, value in found.figures.items():
        kind, _, rest = name.partition("/")
        data, _, what = rest.rpartition("/")
        label = {"validation_loss": "held-out loss (nats)", "neighbours": "nearest neighbours, right class"}.get(kind)
        if kind == "probe":
            label = "linear probe, C" if what == "c" else "linear probe, right class"
        rows.append((data or rest or "all", label or _SHOWN.get(what, what), value))
    return table(("held-out set", "", ""), rows)


def _write_pictures(folder: RunFolder, step: int, found: PairValidation) -> None:
    """In place of all those that were there of the step, which another evaluation section may have asked for."""
    if not found.pictures:
        return
    place = folder.path / "evaluation" / f"step-{step:08d}"
    draft = place.with_name(f".{place.name}.partial")
    names = [f"{tag.replace('/', '-')}.png" for tag, _ in found.pictures]
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, (_, picture) in zip(names, found.pictures, strict=True):
            written, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            assert written
            (draft / name).write_bytes(data.tobytes())
        if place.is_dir():
            shutil.rmtree(place)
        draft.rename(place)
    except OSError as error:
        raise EnvironmentFailure(f"{place} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for name in names:
        print(f"picture: {place / name}")
