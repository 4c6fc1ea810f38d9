"""`trestle import DIR`: a run that continues a model of another library."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.arguments import Parser
from launcher.errors import EnvironmentFailure, UserError
from launcher.job import Job, job_of, load_document
from launcher.run_folder import TOKENIZERS, RunFolder
from launcher.sources import find_recipe
from launcher.supervise import check_shards
from modeling.registry import FAMILIES, Conversion, Family, family_of_preset
from training.sections import parse_section, to_plain

if TYPE_CHECKING:
    import torch

    from data_pipeline.mixed_stream import MixedStream
    from training.checkpoint import Piece


def parser() -> Parser:
    made = Parser(
        "import",
        "Make a run from a folder with a GPT-2, Llama or CLIP of transformers (config.json and *.safetensors) or a\n"
        "CLIP of open_clip (open_clip_config.json and *.safetensors): a checkpoint of step 0 with its weights and the\n"
        "optimizer at rest, from which `trestle resume` trains on.\n"
        "The model comes from DIR, everything else from --recipe and from overrides: also what weights do not decide,\n"
        "such as model.dropout, model.lock_image, model.loss. The data must be prepared with the model's tokenizer.",
        "  trestle import gpt2/ --name tuned --recipe gpt3-125m --data shards/mix.yaml --optimizer.lr 1e-4\n"
        "  trestle resume runs/tuned",
        takes_overrides=True,
    )
    made.add_argument("directory", metavar="DIR", help="the folder of the model to import")
    made.add_argument("--name", required=True, help="of the run; its folder is made in run.directory")
    made.add_argument("--recipe", metavar="RECIPE", help="a YAML file or shipped name with all sections but the model")
    made.add_argument("--print_config", action="store_true", help="print the resolved recipe, each key explained")
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    source = Path(arguments.directory)
    conversion, theirs = find_model(source)
    job = _job(source, conversion, theirs, arguments.name, arguments.recipe, overrides)
    if arguments.print_config:
        print(job.explained(), end="")
        return 0
    job.check()
    stream = check_shards(job.recipe)
    _check_tokenizer(source, job, stream)
    final = RunFolder(Path(job.recipe.run.directory) / job.recipe.run.name)
    if final.path.exists():
        raise UserError(f"{final.path} exists already; choose another --name")
    draft = RunFolder(final.path.with_name(f".{final.path.name}.partial"))
    try:
        shutil.rmtree(draft.path, ignore_errors=True)
        draft.create(job.to_yaml(), stream.tokenizer_path)
        _write_checkpoint(draft, job, source, conversion)
        draft.path.rename(final.path)
    except OSError as error:
        raise EnvironmentFailure(
            f"{final.path} cannot be written: {error.strerror or error}; nothing was kept"
        ) from error
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)
    print(f"{final.path}: step 0 with the weights of {source}\nnext: trestle resume {final.path}")
    return 0


def find_model(source: Path) -> tuple[Conversion, dict[str, Any]]:
    """Who converts the model in a folder, and its config with what lies beside it. Raises UserError."""
    conversions = [family.conversion(name) for family in FAMILIES.values() for name in family.conversions]
    configs = {file: _json(source / file) for file in dict.fromkeys(c.CONFIG_FILE for c in conversions)}
    for conversion in conversions:
        theirs = configs[conversion.CONFIG_FILE]
        if theirs is not None and conversion.recognises(theirs):
            beside = {name: content for name in conversion.BESIDE if (content := _json(source / name)) is not None}
            return conversion, theirs | beside
    models = ", ".join(dict.fromkeys(c.MODELS for c in conversions))
    found = {file: theirs for file, theirs in configs.items() if theirs is not None}
    if not found:
        raise UserError(f"{source} is no model that can be imported ({models}): it has no {' or '.join(configs)}")
    kinds = ", ".join(f"{file} with model_type {theirs.get('model_type')!r}" for file, theirs in found.items())
    raise UserError(f"{source} has {kinds}, which cannot be imported; there are {models}")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object with keys")
    return content


def _job(
    source: Path,
    conversion: Conversion,
    theirs: Mapping[str, Any],
    name: str,
    recipe: str | None,
    overrides: Sequence[str],
) -> Job:
    """The imported model's shape, and all else from the recipe and the overrides, which win.

    What the recipe says of another shape is named on stderr. Raises UserError, ModelError, RecipeError.
    """
    free = [f"model.{key}" for key in conversion.FREE]
    given = [override.removeprefix("--").partition("=")[0] for override in overrides]
    for key in given:
        if key.partition(".")[0] == "model" and key not in free:
            raise UserError(f"--{key} cannot be set: the model is that of {source}; only {', '.join(free)} is free")
    model = to_plain(conversion.from_hf_config(theirs))
    # Keys to be set are looked up in the family's section.
    overrides = [f"--model.family={model['family']}", *overrides]
    path = None if recipe is None else find_recipe(recipe)
    if path is not None:
        _check_family(source, model["family"], str(recipe), load_document(path).get("model") or {})
    document = load_document(path, overrides)
    asked = document.get("model") or {}
    document["model"] = model | {key: asked[key] for key in conversion.FREE if key in asked}
    if path is not None:
        aside = _left_aside(source, model, asked, conversion.FREE)
        if aside:
            # stdout may be the recipe
            print(f"the model is that of {source}; left aside: {recipe}'s {', '.join(aside)}", file=sys.stderr)
    document["run"] = {**(document.get("run") or {}), "name": name}
    return job_of(document)


def _check_family(source: Path, imported: str, recipe: str, section: Mapping[str, Any]) -> None:
    """Refuse a recipe for models of another family than the imported one's. Raises UserError, ModelError."""
    wanted = section.get("family") or imported
    if section.get("preset"):
        wanted = family_of_preset(str(section["preset"])).name
    if wanted != imported:
        raise UserError(
            f"{recipe} is a recipe for a model of family {wanted}, but that of {source} is of {imported}; name another "
            "--recipe, or one without a `model:` section"
        )


def _left_aside(source: Path, model: Mapping[str, Any], asked: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    """What a recipe's `model:` section says in vain, since the weights decide it otherwise. Raises RecipeError."""
    chosen = FAMILIES[model["family"]]
    written = {key: value for key, value in asked.items() if key != "preset"}
    typed = to_plain(parse_section(chosen.config, written, "model"))
    preset = chosen.presets[asked["preset"]] if asked.get("preset") else {}
    said = [
        f"model.{key} {typed[key]} ({model[key]} in {source})"
        for key in written
        if key not in free and typed[key] is not None and typed[key] != model[key]
    ]
    if any(model[key] != value for key, value in preset.items() if key not in written):
        said.append(f"model.preset {asked['preset']}")
    return said


def _check_tokenizer(source: Path, job: Job, stream: MixedStream) -> None:
    """Refuse data of another tokenizer than the one beside the model, if there is one."""
    from training.inputs import inputs_of

    inputs = inputs_of(job.recipe)
    theirs = inputs.tokenizer_sha256(stream.tokenizer_path)
    # A merges.txt beside a GPT is no tokenizer of ours.
    names = TOKENIZERS if _family(job).reads == "pairs" else TOKENIZERS[:1]
    for own in (source / name for name in names):
        if own.is_file() and inputs.tokenizer_sha256(own) != theirs:
            raise UserError(
                f"data.mix was made with another tokenizer than {own}; prepare it with --prepare.tokenizer.model {own}"
            )


def _family(job: Job) -> Family:
    return FAMILIES[job.recipe.model.family]


def _write_checkpoint(folder: RunFolder, job: Job, source: Path, conversion: Conversion) -> None:
    """Step 0: the imported weights, moments of zero, no data consumed."""
    from training.checkpoint import CheckpointWriter
    from training.position import Position
    from training.recipe import to_document

    state = {
        "position": Position().to_json(),
        "tokens": 0,
        "validation_loss": None,
        "data": None,
        "weights": "fp32 masters",
        "recipe": to_document(job.recipe),
        "imported_from": str(source),
    }
    with open_tensors(source) as read:
        pieces = _pieces(conversion.import_tensors(job.recipe.model, read))
        CheckpointWriter(folder.checkpoints, rank=0, world_size=1, asynchronous=False).save(0, pieces, state)


def _pieces(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[Piece, torch.Tensor]]:
    import torch

    from training.checkpoint import Piece

    nothing = torch.zeros(1)
    for name, tensor in tensors:
        shape = tuple(tensor.shape)
        yield Piece.whole(name, "weight", shape), tensor.float().reshape(-1)
        for moment in ("exp_avg", "exp_avg_sq"):
            yield Piece.whole(name, moment, shape), nothing.expand(tensor.numel())


@contextmanager
def open_tensors(folder: Path) -> Iterator[Callable[[str], Any]]:
    """A function from a tensor's name to the tensor, over all *.safetensors of a folder; KeyError for an unknown name.

    Raises UserError: no safetensors are there, or they are damaged. Pickled weights are not read: a pickle runs code.
    """
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        pickled = (
            ", but pickled weights, which can run code: save them as safetensors" if any(folder.glob("*.bin")) else ""
        )
        raise UserError(f"{folder} has no *.safetensors{pickled}")
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        for path in paths:
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
            places |= dict.fromkeys(opened.keys(), opened)
        yield lambda name: places[name].get_tensor(name)
