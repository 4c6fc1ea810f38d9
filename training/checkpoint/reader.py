"""Reading a checkpoint, whole or in part, on any fmt."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import format as fmt
from training.checkpoint.errors import CheckpointMismatch, DamagedCheckpoint, UnknownFormat
from training.checkpoint.index import Box, Index, Stored
from training.checkpoint.pieces import Assembly, Piece, Shape

# A link would lead out of the checkpoint, a pipe keep its reader waiting, a device never end.
_NO_FILE = "not a file but a link, a pipe or a device: a checkpoint holds its files themselves"

_MAX_OPEN_FILES = (
    64  # a mapping holds a file descriptor; a thousand-rank checkpoint must fit under the usual limit of 1024
)

# Linux's value, which Python's mmap does not name: a file larger than the machine's memory may then be mapped.
_MAP_NORESERVE = 0x4000


class Checkpoint:
    """A checkpoint on disk. Opening it reads and checks the manifest alone; `verify` checks the files.

    `manifest` is the parsed manifest, `state` what rank 0 was given to store, `step` and `world_size` say where
    it comes from. Raises DamagedCheckpoint (manifest missing, unreadable, changed) and UnknownFormat.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = self._read_manifest()
        self.state: dict[str, Any] = self.manifest["state"]
        self.step: int = self.manifest["step"]
        self.world_size: int = self.manifest["world_size"]
        self._files: dict[str, dict[str, Any]] = self.manifest["files"]
        self._index: Index | None = None
        self._rank_states: dict[int, dict[str, Any] | None] = {}
        self._open: OrderedDict[str, memoryview] = OrderedDict()

    # ── integrity ──────────────────────────────────────────────────────────────────────────────────────────────────

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Check existence, size and sha256 of the files i ≡ rank (mod world_size). Raises DamagedCheckpoint."""
        for damage in self.damages(rank, world_size):
            raise damage

    def damages(self, rank: int = 0, world_size: int = 1) -> Iterator[DamagedCheckpoint]:
        """What `verify` would raise, for every damaged file."""
        for name in sorted(self._files)[rank::world_size]:
            what = self._wrong_size(name)
            if what is None:
                try:
                    found = fmt.sha256_of(self.path / name)
                except OSError as error:
                    what = f"unreadable: {error.strerror}"
                else:
                    if found != self._files[name]["sha256"]:
                        what = f"checksum {found[:12]}… where the manifest has {self._files[name]['sha256'][:12]}…"
            if what is not None:
                yield DamagedCheckpoint(self.path, name, what)

    def _wrong_size(self, name: str) -> str | None:
        try:
            status = (self.path / name).lstat()
        except OSError as error:
            return "missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error.strerror}"
        if not stat.S_ISREG(status.st_mode):
            return _NO_FILE
        size = status.st_size
        wanted = self._files[name]["size"]
        if size < wanted:
            return f"truncated: {size} bytes of {wanted}"
        return f"{size} bytes where {wanted} were written" if size > wanted else None

    def _read_manifest(self) -> dict[str, Any]:
        raw = self._read_small(fmt.MANIFEST)
        if not raw:
            raise DamagedCheckpoint(self.path, fmt.MANIFEST, "empty")
        digest = self.path / fmt.MANIFEST_DIGEST
        if digest.exists() and self._read_small(digest.name) != fmt.digest_line(raw):
            raise DamagedCheckpoint(self.path, fmt.MANIFEST, f"does not match its checksum in {digest.name}")
        try:
            manifest = json.loads(raw)
            version = manifest["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedCheckpoint(self.path, fmt.MANIFEST, f"not a manifest ({error})") from error
        if version != fmt.FORMAT_VERSION:
            raise UnknownFormat(
                f"checkpoint {self.path} has format version {version}, this Trestle reads version "
                f"{fmt.FORMAT_VERSION}: use the Trestle that wrote it, or a newer one"
            )
        if not digest.exists():
            raise DamagedCheckpoint(self.path, fmt.MANIFEST_DIGEST, "missing")
        self._check_shape(manifest)
        return manifest

    def _check_shape(self, manifest: dict[str, Any]) -> None:
        """A well-signed manifest may still be malicious or a stranger's: refuse what the rest would stumble over."""
        wanted = {"step": int, "world_size": int, "files": dict, "state": dict}
        for key, kind in wanted.items():
            if not isinstance(manifest.get(key), kind):
                raise DamagedCheckpoint(self.path, fmt.MANIFEST, f"has no {key}")
        for name, about in manifest["files"].items():
            if not fmt.is_file_name(name):
                raise DamagedCheckpoint(self.path, fmt.MANIFEST, f"names a file that no checkpoint has: {name!r}")
            if (
                not isinstance(about, dict)
                or type(about.get("size")) is not int
                or not isinstance(about.get("sha256"), str)
            ):
                raise DamagedCheckpoint(self.path, fmt.MANIFEST, f"gives no size and sha256 of {name}")
        for rank in range(manifest["world_size"]):
            for name in (fmt.data_file(rank), fmt.record_file(rank)):
                if name not in manifest["files"]:
                    raise DamagedCheckpoint(self.path, fmt.MANIFEST, f"does not list {name}")

    def _read_small(self, name: str) -> bytes:
        try:
            if not stat.S_ISREG((self.path / name).lstat().st_mode):
                raise DamagedCheckpoint(self.path, name, _NO_FILE)
            return (self.path / name).read_bytes()
        except OSError as error:
            what = "missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error.strerror}"
            raise DamagedCheckpoint(self.path, name, what) from error

    # ── contents ───────────────────────────────────────────────────────────────────────────────────────────────────

    def names(self) -> list[str]:
        """The global names of all tensors, sorted."""
        return self._pieces().names()

    def kinds(self, name: str) -> list[str]:
        """What is stored of a tensor: "weight", "exp_avg", "exp_avg_sq"."""
        return self._pieces().kinds(name)

    def shape(self, name: str, kind: str = "weight") -> Shape:
        """The global shape of a tensor. Raises CheckpointMismatch if there is none."""
        return self._find(name, kind)[0].piece.global_shape

    def nbytes(self, name: str) -> int:
        """Bytes on disk of all kinds of a tensor, copies included."""
        stored = (stored for box in self._pieces().boxes(name) for stored in box.stored)
        return sum((one.stop - one.start) * dtype.itemsize for one in stored for dtype, _ in one.kinds.values())

    def rank_state(self, rank: int) -> dict[str, Any] | None:
        """What this rank of the writing layout stored for itself, None if nothing."""
        if rank not in self._rank_states:
            self._rank_states[rank] = self._read_record(rank)["state"]
        return self._rank_states[rank]

    def read(self, piece: Piece) -> torch.Tensor:
        """The elements of a piece, fp32 [piece.numel], put together from whatever was stored; only they are read.

        Raises CheckpointMismatch if the tensor is not there, has another shape, or elements of it are missing, and
        DamagedCheckpoint if a file is.
        """
        boxes = self._find(piece.name, piece.kind)
        for box in boxes:
            if box.piece.global_shape != piece.global_shape:
                raise CheckpointMismatch(
                    f"checkpoint {self.path} holds {piece.kind} of {piece.name} with shape "
                    f"{list(box.piece.global_shape)}, the model has {list(piece.global_shape)}: "
                    "resume with the model it was trained with"
                )
        assembly = Assembly(piece)
        for wanted, _ in piece.rectangles():
            for box in boxes:
                for source, stored in box.touching(wanted, piece.kind):
                    if not assembly.missing:
                        return assembly.buffer
                    assembly.fill(source, self._elements(source, stored))
        if assembly.missing:
            gap = assembly.missing[0]
            raise CheckpointMismatch(
                f"checkpoint {self.path} lacks elements of {piece.kind} of {piece.name}: none of its files covers "
                f"{list(gap.offset)} … {[n - 1 for n in gap.stop]}"
            )
        return assembly.buffer

    def tensor(self, name: str, kind: str = "weight") -> torch.Tensor:
        """A whole tensor in fp32, in its global shape. Raises as `read`."""
        shape = self.shape(name, kind)
        whole = Piece.whole(name, kind, shape)
        stored = sum(one.stop - one.start for box in self._find(name, kind) for one in box.stored if kind in one.kinds)
        if stored < whole.numel:  # before there is memory for a shape that may be absurd
            raise CheckpointMismatch(
                f"checkpoint {self.path} lacks elements of {kind} of {name}: it holds {stored:,} of {whole.numel:,}"
            )
        return self.read(whole).view(shape)

    def _find(self, name: str, kind: str) -> list[Box]:
        if kind not in self._pieces().kinds(name):
            raise CheckpointMismatch(
                f"checkpoint {self.path} holds no {kind} of {name}: resume with the model it was trained with"
            )
        return self._pieces().boxes(name)

    def _pieces(self) -> Index:
        """The index of all stored pieces, built on first use."""
        if self._index is None:
            index = Index()
            for rank in range(self.world_size):
                file = fmt.data_file(rank)
                try:
                    index.add(file, self._files[file]["size"], self._read_record(rank)["pieces"])
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise DamagedCheckpoint(self.path, fmt.record_file(rank), f"not a record ({error})") from error
            self._index = index
        return self._index

    def _read_record(self, rank: int) -> dict[str, Any]:
        name = fmt.record_file(rank)
        if name not in self._files:
            raise CheckpointMismatch(
                f"checkpoint {self.path} was written by {self.world_size} ranks: there is no rank {rank}"
            )
        raw = self._read_small(name)
        if fmt.sha256(raw) != self._files[name]["sha256"]:
            raise DamagedCheckpoint(self.path, name, "does not match its checksum in the manifest")
        return json.loads(raw)

    def _elements(self, piece: Piece, stored: Stored) -> torch.Tensor:
        """The stored elements as a view of the mapped file: the pages that a copy touches are read, no others."""
        dtype, offset = stored.kinds[piece.kind]
        return torch.frombuffer(self._map(stored.file), dtype=dtype, count=piece.numel, offset=offset)

    def _map(self, name: str) -> memoryview:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        what = self._wrong_size(name)  # a mapping of a shorter file would end the process with SIGBUS
        if what is not None:
            raise DamagedCheckpoint(self.path, name, what)
        with (self.path / name).open("rb") as file:
            # A private copy-on-write mapping: torch wants writable memory, the file stays untouched.
            mapped = mmap.mmap(
                file.fileno(), 0, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        self._open[name] = memoryview(mapped)
        if len(self._open) > _MAX_OPEN_FILES:
            self._open.popitem(last=False)  # unmapped as soon as the last view of it is gone
        return self._open[name]


def newest(
    directory: Path,
    verify: Callable[[Checkpoint], None] = Checkpoint.verify,
    on_damage: Callable[[DamagedCheckpoint], None] | None = None,
) -> Checkpoint | None:
    """The newest checkpoint that `verify` accepts, None if there is none; damaged ones are set aside and reported.

    `verify` raises DamagedCheckpoint; with several ranks it is where they agree (each checks its share). Raises
    UnknownFormat: an unreadable format is no reason to fall back in silence.
    """
    for path in fmt.candidates(directory):
        try:
            checkpoint = Checkpoint(path)
            verify(checkpoint)
        except DamagedCheckpoint as damage:
            set_aside(path, str(damage))
            if on_damage is not None:
                on_damage(damage)
        else:
            return checkpoint
    return None


def set_aside(path: Path, reason: str, label: str = "damaged") -> Path | None:
    """Rename a checkpoint to `step-….damaged` (`.damaged-2`, …), with the reason in it as `damaged.txt`; the new path.

    None if it is gone: another rank was faster. Nothing is deleted. Raises OSError for any other failure. With another
    `label` it also retires good ones, as when a run goes back and what followed must not be resumed from.
    """
    for attempt in itertools.count(1):
        aside = path.with_name(f"{path.name}.{label}" + (f"-{attempt}" if attempt > 1 else ""))
        if aside.exists():
            continue
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None
        except OSError:
            if aside.exists():  # two ranks, two checkpoints, one name
                continue
            raise
        fmt.fsync_directory(aside.parent)
        with contextlib.suppress(OSError):  # a full disk must not stop a resume: the caller's event has the reason too
            (aside / f"{label}.txt").write_text(reason + "\n")
        return aside
    raise AssertionError("unreachable")
