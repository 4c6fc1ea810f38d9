"""`trestle import DIR`: a run that continues a GPT-2 or Llama of transformers."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.arguments import Parser
from launcher.errors import EnvironmentFailure, UserError
from launcher.job import Job, job_of, load_document
from launcher.run_folder import RunFolder
from launcher.sources import find_recipe
from launcher.supervise import check_shards
from training.sections import to_plain

if TYPE_CHECKING:
    import torch

    from training.checkpoint import Piece

FREE = ("model.dropout",)
"""The only keys of a model that its weights do not decide."""


def parser() -> Parser:
    made = Parser(
        "import",
        "Make a run from a folder with a GPT-2 or Llama of transformers (config.json and *.safetensors): a\n"
        "checkpoint of step 0 with its weights and the optimizer at rest, from which `trestle resume` trains on.\n"
        "The model comes from DIR, everything else from --recipe and from overrides; the data must be prepared\n"
        "with the model's tokenizer.",
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
    job = _job(source, arguments.name, arguments.recipe, overrides)
    if arguments.print_config:
        print(job.explained(), end="")
        return 0
    job.check()
    stream = check_shards(job.recipe)
    own = source / "tokenizer.model"
    if own.is_file() and own.read_bytes() != stream.tokenizer_path.read_bytes():
        raise UserError(
            f"data.mix was made with another tokenizer than {own}; prepare it with --prepare.tokenizer.model {own}"
        )
    final = RunFolder(Path(job.recipe.run.directory) / job.recipe.run.name)
    if final.path.exists():
        raise UserError(f"{final.path} exists already; choose another --name")
    draft = RunFolder(final.path.with_name(f".{final.path.name}.partial"))
    try:
        shutil.rmtree(draft.path, ignore_errors=True)
        draft.create(job.to_yaml(), stream.tokenizer_path)
        _write_checkpoint(draft, job, source)
        draft.path.rename(final.path)
    except OSError as error:
        raise EnvironmentFailure(
            f"{final.path} cannot be written: {error.strerror or error}; nothing was kept"
        ) from error
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)
    print(f"{final.path}: step 0 with the weights of {source}\nnext: trestle resume {final.path}")
    return 0


def _job(source: Path, name: str, recipe: str | None, overrides: Sequence[str]) -> Job:
    """The imported model's shape, and all else from the recipe and the overrides. Raises UserError, ModelError."""
    from modeling.gpt.huggingface import from_hf_config

    for override in overrides:
        key = override.removeprefix("--").partition("=")[0]
        if key.partition(".")[0] == "model" and key not in FREE:
            raise UserError(f"--{key} cannot be set: the model is that of {source}; only {', '.join(FREE)} is free")
    try:
        theirs = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{source} is no model of transformers: config.json: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{source / 'config.json'} is not JSON: {error}") from error
    model = to_plain(from_hf_config(theirs))
    document = load_document(None if recipe is None else find_recipe(recipe), overrides)
    dropout = (
        (document.get("model") or {}).get("dropout", model["dropout"]) if _sets_dropout(overrides) else model["dropout"]
    )
    document["model"] = {**model, "dropout": dropout}
    document["run"] = {**(document.get("run") or {}), "name": name}
    return job_of(document)


def _sets_dropout(overrides: Sequence[str]) -> bool:
    return any(o.startswith("--model.dropout=") for o in overrides)


def _write_checkpoint(folder: RunFolder, job: Job, source: Path) -> None:
    """Step 0: the imported weights, moments of zero, no data consumed."""
    from modeling.gpt.huggingface import import_tensors
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
        pieces = _pieces(import_tensors(job.recipe.model, read))
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
