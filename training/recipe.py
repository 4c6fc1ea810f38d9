"""The recipe of a run: typed sections from YAML and dotted overrides, back to YAML, and what makes one impossible.

The `model:` section has the type of its family, found by `model.family` or `model.preset`; a preset's values are
defaults beneath the keys that are written. `cluster:` and `prepare:` may stand in the same file; they belong to others
and are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from data_pipeline.batching import BatchConfig, BatchSchedule, Duration
from data_pipeline.config import DataConfig
from data_pipeline.errors import BadConfig
from data_pipeline.locations import anchored
from modeling.errors import ModelError
from modeling.registry import FAMILIES, Family, family, family_of_preset
from training.config import CheckpointConfig, OptimizerConfig, ParallelConfig, RunConfig, TrainingConfig
from training.errors import RecipeError
from training.evaluation.config import EvaluationConfig
from training.overrides import apply_overrides, read_yaml, split_overrides
from training.schedule import Schedule
from training.sections import Document, known_keys, parse_section, short, to_plain, unknown_key

RECIPE_FILE = "recipe.yaml"
"""Name of the resolved recipe in a run's folder."""

FOREIGN_SECTIONS = ("cluster", "prepare")
"""Sections that other rooms read."""


@dataclass
class Recipe:
    """Everything that decides what a run computes."""

    run: RunConfig
    model: Any
    """The config class of its family, such as `modeling.gpt.config.GPTConfig`."""
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def looks(self) -> bool:
        """Whether there is anything to look at between steps."""
        return bool(self.data.validation or self.evaluation.zero_shot or self.evaluation.probe)


def load_recipe(source: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file or in a run's folder, with overrides such as `["--optimizer.lr", "3e-4"]`.

    Raises RecipeError with the key, its value and what would fit. Whether the recipe can run is for `check` to say.
    """
    return parse_recipe(load_document(source, overrides))


def load_document(
    source: Path | None, overrides: Sequence[str] = (), foreign: Mapping[str, type] | None = None
) -> Document:
    """A recipe's plain values with the overrides set; types are not looked at yet. Without a source it begins empty.

    `foreign` gives the types of sections that are not ours; overrides of those it lacks are passed over.
    Raises RecipeError.
    """
    foreign = foreign or {}
    document = {} if source is None else _read_named_files(read_yaml(_recipe_file(Path(source))))
    pairs = split_overrides(overrides)
    ours = {key: text for key, text in pairs if _section(key) in foreign or _section(key) not in FOREIGN_SECTIONS}
    named = {key.removeprefix("model."): text for key, text in ours.items() if key in ("model.family", "model.preset")}
    sections = _sections(_family({**_mapping(document.get("model")), **named})) | dict(foreign)
    for name in document:
        if name not in sections and name not in FOREIGN_SECTIONS:
            raise unknown_key(str(name), known_keys(sections))
    return apply_overrides(document, [f"--{key}={text}" for key, text in ours.items()], sections)


def parse_recipe(document: Document) -> Recipe:
    """The typed recipe of a document. Raises RecipeError."""
    model = _mapping(document.get("model"))
    chosen = _family(model)
    known = known_keys(_sections(chosen))
    written = {name: value for name, value in model.items() if name != "preset"}
    preset = chosen.presets[model["preset"]] if model.get("preset") is not None else {}
    values = {**document, "model": {"family": chosen.name, **preset, **written}}
    types = get_type_hints(Recipe) | {"model": chosen.config}
    recipe = Recipe(**{name: parse_section(cls, values.get(name), name, known) for name, cls in types.items()})
    _read_durations(recipe)
    return recipe


def known_recipe_keys(foreign: Mapping[str, type]) -> list[str]:
    """Every dotted key that a recipe of any family may have, with those of sections that are not ours."""
    keys = [key for one in FAMILIES.values() for key in known_keys(_sections(one))]
    return list(dict.fromkeys([*keys, *known_keys(foreign)]))


def anchor_shards(recipe: Recipe) -> None:
    """Make the folders of data absolute, so that the run can be resumed and evaluated from anywhere."""
    for source in [*recipe.data.mix, *recipe.data.validation]:
        source.shards = anchored(source.shards)
    recipe.evaluation.anchor()
    if recipe.data.cache.directory is not None:
        recipe.data.cache.directory = str(Path(recipe.data.cache.directory).absolute())


def to_document(recipe: Recipe) -> Document:
    """The plain values of a recipe, every default written out; `parse_recipe` is the inverse."""
    document: Document = to_plain(recipe)
    return document


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out; loading it gives an equal recipe."""
    return dump_yaml(to_document(recipe))


def dump_yaml(document: Document, comments: Mapping[str, str] | None = None) -> str:
    """A document of sections as YAML: a key a line, in order, and what is below it on that line.

    `comments` are said of keys, such as "run.seed".
    """
    blocks = []
    for name, section in document.items():
        lines = []
        for key, value in section.items() if isinstance(section, dict) else ():
            text, comment = _flow(value), (comments or {}).get(f"{name}.{key}")
            said = f"  # {comment}" if comment else ""
            lines.append(f"  {key}:{said}{text}\n" if text.startswith("\n") else f"  {key}:{text}{said}\n")
        blocks.append(f"{name}:\n{''.join(lines)}" if lines else f"{name}:{_flow(section)}\n")
    return "\n".join(blocks)


def _flow(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(element, dict) for element in value):
        return "".join(f"\n    -{_flow(element)}" for element in value)
    # What cannot be printed is escaped: PyYAML would fold a line end, and read a NEL back as a space.
    awkward = "\\" in repr(value)
    text: str = yaml.safe_dump(
        value,
        sort_keys=False,
        allow_unicode=not awkward,
        width=10**9,
        default_flow_style=True,
        default_style='"' if awkward and isinstance(value, str) else None,
    )
    return " " + text.removesuffix("...\n").strip("\n")


def check(recipe: Recipe, world_size: int) -> None:
    """Refuse what cannot run, or would train wrongly in silence, on `world_size` ranks: before any rank starts.

    Raises RecipeError, ModelError or BadConfig with a sentence that names the keys which disagree and what would fit.
    """
    model = recipe.model
    recipe.run.check()
    recipe.optimizer.check()
    recipe.training.check()
    recipe.checkpoint.check()
    model.check()
    recipe.parallel.check()
    check_layout(recipe, world_size)
    _check_kind(recipe)
    schedule_of(recipe)
    if recipe.training.validate_every and not recipe.looks:
        raise RecipeError(
            f"training.validate_every is {recipe.training.validate_every}, but data.validation names no held-out "
            "shards; name some, or set validate_every to 0"
        )


def check_layout(recipe: Recipe, world_size: int, sizes: Sequence[int] | None = None) -> None:
    """The part of `check` that the layout, the batch sizes and recomputation decide; raises as that does.

    sizes: the global batch sizes that occur, for who asks of many layouts; None: those of the recipe.
    """
    parallel, model = recipe.parallel, recipe.model
    parallel.check_engine(recipe.training.precision)
    data_parallel = parallel.data_parallel(world_size)
    # A vocabulary that only the shards know counts as divisible until they are read and `check_layout` is asked again.
    vocabulary = {"vocab_size": 128 * parallel.tensor} if getattr(model, "vocab_size", 0) is None else {}
    (replace(model, **vocabulary) if vocabulary else model).check_layout(parallel)
    if recipe.training.sample_prompt is not None and (parallel.pipeline > 1 or parallel.zero_stage == 3):
        raise RecipeError(
            "training.sample_prompt samples with the weights that a rank holds, but parallel.pipeline "
            f"{parallel.pipeline} and parallel.zero_stage {parallel.zero_stage} divide the model; set it to null, and "
            "use trestle generate on a checkpoint"
        )
    if recipe.training.compile and recipe.training.recompute == "selective":
        raise RecipeError(
            "training.compile makes one graph of a layer, which training.recompute selective would cut; "
            "use full or none with it"
        )
    if recipe.training.check_replicas_every and parallel.zero_stage == 3:
        raise RecipeError(
            f"training.check_replicas_every is {recipe.training.check_replicas_every}, but parallel.zero_stage 3 keeps "
            "each weight on one rank: there are no replicas; set it to null, and use check_recompute_every"
        )
    for size in BatchSchedule(recipe.batch, model.sequence_length).sizes() if sizes is None else sizes:
        if family(model.family).couples_batch:
            _check_coupled_batch(recipe, size, data_parallel)
        else:
            _check_batch(recipe, size, data_parallel)


def _check_kind(recipe: Recipe) -> None:
    """Refuse what belongs to models that read another kind of data."""
    name = recipe.model.family
    if family(name).reads == "pairs":
        if recipe.training.sample_prompt is not None:
            raise RecipeError(
                f"training.sample_prompt continues a text, which model.family {name} cannot; set it to null"
            )
        if recipe.data.document_masks:
            raise RecipeError(
                f"data.document_masks is for packed text, but model.family {name} reads pairs; set it false"
            )
        recipe.evaluation.check()
    elif recipe.evaluation.zero_shot or recipe.evaluation.probe:
        raise RecipeError(
            f"evaluation.zero_shot and .probe are for pictures, but model.family {name} reads text; leave them out"
        )


def _check_coupled_batch(recipe: Recipe, size: int, data_parallel: int) -> None:
    """The loss is over the whole batch, however unevenly it lies; but collectives in backward want equal numbers."""
    micro, stage = recipe.batch.micro_batch_size, recipe.parallel.zero_stage
    key = "batch.global_batch_size" if size == recipe.batch.global_batch_size else "batch.ramp's size"
    if size < 2:
        raise RecipeError(f"{key} is {size}: a pair is told from the others of its batch, so that it takes at least 2")
    if size < data_parallel:
        raise RecipeError(f"{key} {size} leaves some of the {data_parallel} data-parallel ranks without a sample")
    shares = {size * (i + 1) // data_parallel - size * i // data_parallel for i in range(data_parallel)}
    counts = {-(-share // micro) for share in shares}
    if len(counts) > 1 and stage >= 2:
        raise RecipeError(
            f"parallel.zero_stage {stage} wants as many micro-batches on each rank, but {key} {size} over "
            f"{data_parallel} ranks in micro-batches of {micro} gives {min(counts)} and {max(counts)}; use zero_stage "
            f"1, or a multiple of {data_parallel * micro}"
        )
    recipe.model.check_micro_batches(max(counts))


def _check_batch(recipe: Recipe, size: int, data_parallel: int) -> None:
    """Every rank must get whole micro-batches, and an interleaved schedule whole rounds of them."""
    micro, pipeline = recipe.batch.micro_batch_size, recipe.parallel.pipeline
    key = "batch.global_batch_size" if size == recipe.batch.global_batch_size else "batch.ramp's size"
    interleaved = recipe.parallel.virtual_pipeline > 1
    unit = data_parallel * micro * (pipeline if interleaved else 1)
    if size % unit == 0:
        return
    factors = f"{data_parallel} data-parallel ranks x batch.micro_batch_size {micro}"
    if interleaved:
        factors += f" x parallel.pipeline {pipeline} (whole rounds of the interleaved schedule)"
    below, above = size // unit * unit, -(-size // unit) * unit
    fits = f"{below} or {above}" if below else str(above)
    raise RecipeError(f"{key} {size} is not divisible by {factors} = {unit}; {fits} would fit")


def schedule_of(recipe: Recipe) -> Schedule:
    """The course of the learning rate. Raises RecipeError for one that ends before its warm-up does."""
    optimizer = recipe.optimizer
    batches = BatchSchedule(recipe.batch, recipe.model.sequence_length)
    return Schedule(
        optimizer.schedule,
        optimizer.lr,
        warmup=Duration.parse(optimizer.warmup),
        decay=None if optimizer.decay is None else Duration.parse(optimizer.decay),
        total=Duration.parse(recipe.training.steps),
        min_lr_ratio=optimizer.min_lr_ratio,
        tokens_at=lambda step: batches.start(step) * recipe.model.sequence_length,
    )


def _read_durations(recipe: Recipe) -> None:
    """Refuse what is no duration, and write each in its shortest form (`300 steps` becomes 300)."""
    places = [
        (recipe.training, "training", "steps"),
        (recipe.optimizer, "optimizer", "warmup"),
        (recipe.optimizer, "optimizer", "decay"),
    ]
    if recipe.batch.ramp is not None:
        places.append((recipe.batch.ramp, "batch.ramp", "over"))
    for owner, section, name in places:
        value = getattr(owner, name)
        if value is None:
            continue
        try:
            duration = Duration.parse(value)
        except BadConfig as error:
            raise RecipeError(f"{section}.{name}: {error}") from error
        setattr(owner, name, str(duration) if duration.steps is None or name == "over" else duration.steps)


def _family(model: Document) -> Family:
    """The family that a model section names, by itself or by a preset. Raises RecipeError."""
    name, preset = model.get("family"), model.get("preset")
    try:
        chosen = (
            family(str(name))
            if preset is None and name is not None
            else family_of_preset(str(preset))
            if preset
            else family("gpt")
        )
    except ModelError as error:
        raise RecipeError(str(error)) from error
    if name is not None and name != chosen.name:
        raise RecipeError(
            f"model.preset {preset} is of the family {chosen.name}, but model.family is {name}; leave one of them out"
        )
    return chosen


def _sections(chosen: Family) -> dict[str, type]:
    """The sections as they may be written: a model's may name a preset."""
    written = make_dataclass("Model", [("preset", str | None, None)], bases=(chosen.config,))
    return get_type_hints(Recipe) | {"model": written}


def _recipe_file(path: Path) -> Path:
    if path.is_dir() and not (path / RECIPE_FILE).is_file():
        raise RecipeError(f"{path} is no run's folder: it has no {RECIPE_FILE}")
    return path / RECIPE_FILE if path.is_dir() else path


def _mapping(section: object) -> Document:
    if section is not None and not isinstance(section, dict):
        raise RecipeError(f"model is {short(section)}; it must be a mapping, such as {{preset: gpt3-125m}}")
    return section or {}


def _read_named_files(document: Document) -> Document:
    """A section may be the path of a YAML file, as in `data: shards/mix.yaml`."""
    return {name: read_yaml(Path(value)) if isinstance(value, str) else value for name, value in document.items()}


def _section(key: str) -> str:
    return key.partition(".")[0]
