"""`trestle export RUN --to huggingface DIR`: a folder that `transformers`, or another library, loads."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.arguments import Parser
from launcher.errors import EnvironmentFailure, UserError
from launcher.run_folder import RunFolder
from launcher.tables import size
from modeling.registry import family, formats
from training.recipe import load_recipe

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000
"""A model above this is written as several files with an index, as transformers does."""


def parser() -> Parser:
    made = Parser(
        "export",
        "Write a run's model, from its newest verified checkpoint or from that of --step, as a folder that\n"
        "transformers loads: config.json, model.safetensors (several with an index above 5 GB), and the tokenizer:\n"
        "tokenizer.model as it was trained, and tokenizer.json, which AutoTokenizer reads. A CLIP also as open_clip's\n"
        "open_clip_config.json and open_clip_model.safetensors.",
        "  trestle export runs/demo --to huggingface demo-hf\n"
        "  python -c \"from transformers import pipeline; print(pipeline('text-generation', 'demo-hf')('import '))\"",
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo")
    made.add_argument("directory", metavar="DIR", help="the folder to write; it must not exist, or be empty")
    made.add_argument("--to", required=True, choices=formats(), help="the format")
    made.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step, instead of the newest")
    made.add_argument(
        "--dtype", default="fp32", choices=["fp32", "bf16"], help="of the weights (default fp32, as trained)"
    )
    return made


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    import torch

    from launcher.caption_tokenizer_files import write_caption_tokenizer
    from launcher.huggingface_tokenizer import write_tokenizer
    from launcher.one_process import (
        caption_tokenizer_of,
        check_tokenizer,
        model_config,
        tokenizer_of,
        verified_checkpoint,
    )

    folder = RunFolder.existing(arguments.run)
    recipe = load_recipe(folder.path)
    chosen = family(recipe.model.family)
    conversion = chosen.conversion(arguments.to)
    captions = chosen.reads == "pairs"
    tokenizer: Any = caption_tokenizer_of(folder, recipe) if captions else tokenizer_of(folder, recipe)
    config = model_config(recipe, tokenizer)
    theirs = conversion.to_hf_config(config, eod_id=tokenizer.eot_id if captions else tokenizer.eod_id)
    checkpoint = verified_checkpoint(folder, arguments.step)
    check_tokenizer(tokenizer, checkpoint)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    if arguments.to == "huggingface":
        theirs["dtype"] = str(dtype).removeprefix("torch.")
    with new_folder(Path(arguments.directory)) as draft:
        tensors = ((name, tensor.to(dtype)) for name, tensor in conversion.export_tensors(config, checkpoint.tensor))
        written = write_tensors(draft, tensors, SHARD_BYTES, stem=conversion.WEIGHTS)
        files = {conversion.CONFIG_FILE: theirs} | conversion.other_files(config)
        for name, content in files.items():
            (draft / name).write_text(json.dumps(content, indent=2) + "\n")
        for path in draft.glob("*.safetensors"):
            # safetensors lets nobody but the owner read its files
            shutil.copymode(draft / conversion.CONFIG_FILE, path)
        write = write_caption_tokenizer if captions else write_tokenizer
        remark = write(draft, tokenizer, config.sequence_length)
    what = theirs["architectures"][0] if "architectures" in theirs else conversion.MODELS
    print(f"{arguments.directory}: {what} of step {checkpoint.step}, {size(written)} in {arguments.dtype}")
    print(f"tokenizer: {remark}")
    # Most formats hold all of a model, and say nothing of it.
    lost = getattr(conversion, "left_out", lambda config: None)(config)
    if lost is not None:
        print(f"left out: {lost}")
    return 0


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place as a whole at the end. Raises UserError, EnvironmentFailure."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; choose another folder")
    draft = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        if path.is_dir():
            path.rmdir()
        draft.rename(path)
    except OSError as error:
        raise EnvironmentFailure(f"{path} cannot be written: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_tensors(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]], limit: int, *, stem: str = "model") -> int:
    """Write STEM.safetensors, or several of at most `limit` bytes with an index; at most one file is in memory.

    Returns the bytes of all tensors. Raises OSError.
    """
    parts: list[tuple[Path, list[str]]] = []
    group: dict[str, torch.Tensor] = {}
    filled = total = 0
    for name, tensor in tensors:
        if group and filled + tensor.nbytes > limit:
            parts.append(_write_part(folder, len(parts), group))
            group, filled = {}, 0
        group[name] = tensor
        filled += tensor.nbytes
        total += tensor.nbytes
    parts.append(_write_part(folder, len(parts), group))
    if len(parts) == 1:
        parts[0][0].rename(folder / f"{stem}.safetensors")
        return total
    places: dict[str, str] = {}
    for number, (path, names) in enumerate(parts, start=1):
        final = f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        path.rename(folder / final)
        places |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def _write_part(folder: Path, number: int, group: dict[str, torch.Tensor]) -> tuple[Path, list[str]]:
    from safetensors.torch import save_file

    path = folder / f"part-{number}"
    save_file(group, path, metadata={"format": "pt"})
    return path, list(group)
