"""Format 1 on disk: one safetensors file and one JSON record per rank, under a manifest that checks them all.

    step-00000200/
      rank-00000.safetensors    the pieces of rank 0; any safetensors library reads it
      rank-00000.json           what they are: name, kind, shapes, flat range, dtype, byte offset in the file
      …
      records.json              from 16 ranks on: the records one after the other, for those who need many of them
      manifest.json             format version, step, world size, size and sha256 of every file, the caller's state
      manifest.json.sha256      protects the manifest itself; `sha256sum -c` understands it

The records stand beside the manifest, not in it, so that it stays small with a thousand ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.checkpoint.pieces import Piece

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.json.sha256"
RECORDS = "records.json"
"""A convenience that no manifest lists: a reader checks each record in it against the manifest, or reads the record."""

#: torch dtype → its name in safetensors. Wider ones first: that order keeps every tensor aligned without padding.
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}

_STEP_DIRECTORY = re.compile(r"step-(\d{8,})")
_FILE_NAME = re.compile(r"rank-\d{5,}\.(safetensors|json)")
_CHUNK = 8 << 20  # bytes between two updates of the checksum: large enough that Python's share of the time vanishes

if sys.byteorder != "little":
    raise ImportError("checkpoints are little-endian and written without conversion: this machine is big-endian")


def step_directory(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's directory name, None for any other name."""
    match = _STEP_DIRECTORY.fullmatch(name)
    return int(match[1]) if match else None


def data_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def record_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def is_file_name(name: object) -> bool:
    """Whether a manifest may name this file: nothing that leads out of the checkpoint's directory."""
    return isinstance(name, str) and _FILE_NAME.fullmatch(name) is not None


def writer_of(name: str) -> int:
    """The rank that wrote a file for which `is_file_name` holds."""
    return int(name.removeprefix("rank-").partition(".")[0])


@dataclass(frozen=True)
class Entry:
    """A piece as it lies in a file: its dtype and the offset of its first byte from the start of the file."""

    piece: Piece
    dtype: torch.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return self.piece.numel * self.dtype.itemsize


def plan_file(pieces: list[tuple[Piece, torch.dtype]]) -> tuple[bytes, list[Entry]]:
    """The safetensors header of a file with these pieces, and where each of them lies; entries in the order given.

    The pieces' bytes follow the header without gaps in the order of their offsets. Raises ValueError for a dtype that
    the format does not know and for a piece given twice.
    """
    for piece, dtype in pieces:
        if dtype not in DTYPES:
            raise ValueError(f"{piece.kind} of {piece.name} is {dtype}: checkpoints hold float32 and bfloat16")
    ranks = list(DTYPES)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts = [0] * len(pieces)
    position = 0
    for index in sorted(range(len(pieces)), key=lambda i: ranks.index(pieces[i][1])):
        piece, dtype = pieces[index]
        key = _key(piece)
        if key in header:
            raise ValueError(f"piece given twice: {key}")
        starts[index] = position
        position += piece.numel * dtype.itemsize
        shape = piece.box_shape if piece.is_whole_box else (piece.numel,)
        header[key] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [starts[index], position]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # the data then begins on a cache line, as the format's own writer has it
    head = len(text).to_bytes(8, "little") + text
    entries = [Entry(piece, dtype, len(head) + start) for (piece, dtype), start in zip(pieces, starts, strict=True)]
    return head, entries


def _key(piece: Piece) -> str:
    """The piece's name in the safetensors file: kind/name alone when it is the entire tensor."""
    key = f"{piece.kind}/{piece.name}"
    if piece.box_shape != piece.global_shape:
        box = ",".join(f"{a}:{a + n}" for a, n in zip(piece.box_offset, piece.box_shape, strict=True))
        key += f"[{box}]"
    if not piece.is_whole_box:
        key += f"[flat {piece.flat_start}:{piece.flat_stop}]"
    return key


def record(entries: list[Entry], rank_state: dict[str, Any] | None) -> bytes:
    """A rank's record: what its file holds, a line for each flat range of a box with all kinds stored of it."""
    ranges: dict[tuple[Any, ...], dict[str, list[Any]]] = {}
    for entry in entries:
        piece = entry.piece
        key = (piece.name, piece.global_shape, piece.box_offset, piece.box_shape, (piece.flat_start, piece.flat_stop))
        ranges.setdefault(key, {})[piece.kind] = [DTYPES[entry.dtype], entry.offset]
    names = ("name", "global_shape", "box_offset", "box_shape", "flat", "kinds")
    lines = (dict(zip(names, (*key, kinds), strict=True)) for key, kinds in ranges.items())
    text = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    return f'{{"state": {json.dumps(rank_state)},\n"pieces": [\n{text}\n]}}\n'.encode()


def write_hashed(path: Path, *buffers: bytes | memoryview) -> dict[str, Any]:
    """Write the buffers one after the other, flushed to the disk: {"size": bytes, "sha256": hex}.

    The checksum is taken on the way and no second copy of the data is made. Raises OSError.
    """
    checksum = hashlib.sha256()
    size = 0
    with path.open("wb") as file:
        for buffer in buffers:
            with memoryview(buffer) as view:
                for start in range(0, len(view), _CHUNK):
                    chunk = view[start : start + _CHUNK]
                    checksum.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": checksum.hexdigest()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_line(manifest: bytes) -> bytes:
    """What stands in manifest.json.sha256, in the form that `sha256sum -c` reads."""
    return f"{sha256(manifest)}  {MANIFEST}\n".encode()


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex, read in chunks. Raises OSError."""
    checksum = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum.update(buffer[:count])
    return checksum.hexdigest()


def fsync_directory(path: Path) -> None:
    """Make the names in a directory as durable as its files. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def candidates(directory: Path) -> list[Path]:
    """The checkpoints in a run's `checkpoints` directory, newest first; [] where there is none. Nothing is verified."""
    return sorted(_steps(directory), key=lambda path: step_of(path.name) or 0, reverse=True)


def _steps(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        for path in directory.iterdir():
            if step_of(path.name) is not None and path.is_dir():
                yield path
