"""Reading a checkpoint, whole or in part, on any layout."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import format as fmt
from training.checkpoint.errors import CheckpointMismatch, DamagedCheckpoint, UnknownFormat
from training.checkpoint.index import Box, Index, Stored
from training.checkpoint.pieces import Assembly, Piece, Shape
from training.checkpoint.source import LocalSource, NotAFile, Source


class Checkpoint:
    """A stored checkpoint. Opening it reads and checks the manifest alone; `verify` checks the files.

    It is given as a folder, or as the source that reads its files from elsewhere (`remote.RemoteSource`).

    `manifest` is the parsed manifest, `state` what rank 0 was given to store, `step` and `world_size` say where
    it comes from. Raises DamagedCheckpoint (manifest missing, unreadable, changed) and UnknownFormat.
    """

    def __init__(self, path: Path | Source) -> None:
        self._source: Source = LocalSource(path) if isinstance(path, Path) else path
        self.path = self._source.location
        self.manifest = self._read_manifest()
        self.state: dict[str, Any] = self.manifest["state"]
        self.step: int = self.manifest["step"]
        self.world_size: int = self.manifest["world_size"]
        self._files: dict[str, dict[str, Any]] = self.manifest["files"]
        self._index: Index | None = None
        self._rank_states: dict[int, dict[str, Any] | None] = {}
        self._measured: set[str] = set()

    # ── integrity ──────────────────────────────────────────────────────────────────────────────────────────────────

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Check existence, size and sha256 of this rank's share of the files. Raises DamagedCheckpoint."""
        for damage in self.damages(rank, world_size):
            raise damage

    def damages(self, rank: int = 0, world_size: int = 1) -> Iterator[DamagedCheckpoint]:
        """What `verify` would raise, for every damaged file."""
        for name in self.share(rank, world_size):
            what = self._wrong_size(name)
            if what is None:
                try:
                    found = self._source.sha256(name)
                except OSError as error:
                    what = _trouble(error)
                else:
                    if found != self._files[name]["sha256"]:
                        what = f"checksum {found[:12]}… where the manifest has {self._files[name]['sha256'][:12]}…"
            if what is not None:
                yield DamagedCheckpoint(self.path, name, what)

    def share(self, rank: int, world_size: int) -> list[str]:
        """The files that this rank of a reading layout is responsible for: whole shares of writing ranks, so that each
        has its part of the large ones, and on the layout that wrote them its own.
        """
        return [name for name in sorted(self._files) if fmt.writer_of(name) % world_size == rank]

    def _wrong_size(self, name: str) -> str | None:
        try:
            size = self._source.size(name)
        except OSError as error:
            return _trouble(error)
        wanted = self._files[name]["size"]
        if size < wanted:
            return f"truncated: {size} bytes of {wanted}"
        return f"{size} bytes where {wanted} were written" if size > wanted else None

    def _read_manifest(self) -> dict[str, Any]:
        raw = self._read_small(fmt.MANIFEST)
        if not raw:
            raise DamagedCheckpoint(self.path, fmt.MANIFEST, "empty")
        digest = self._read_digest()
        if digest is not None and digest != fmt.digest_line(raw):
            raise DamagedCheckpoint(self.path, fmt.MANIFEST, f"does not match its checksum in {fmt.MANIFEST_DIGEST}")
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
        if digest is None:
            raise DamagedCheckpoint(self.path, fmt.MANIFEST_DIGEST, "missing")
        self._check_shape(manifest)
        return manifest

    def _read_digest(self) -> bytes | None:
        try:
            return self._source.small(fmt.MANIFEST_DIGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedCheckpoint(self.path, fmt.MANIFEST_DIGEST, _trouble(error)) from error

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
            return self._source.small(name)
        except OSError as error:
            raise DamagedCheckpoint(self.path, name, _trouble(error)) from error

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
                    for part, data in self._elements(source, stored):
                        assembly.fill(part, data)
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
            together = self._read_records()
            for rank in range(self.world_size):
                file = fmt.data_file(rank)
                try:
                    record = self._read_record(rank, together[rank] if together else None)
                    index.add(file, self._files[file]["size"], record["pieces"])
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise DamagedCheckpoint(self.path, fmt.record_file(rank), f"not a record ({error})") from error
            self._index = index
        return self._index

    def _read_records(self) -> list[bytes] | None:
        """What one file holds of all records, not checked yet; None if there is no such file."""
        sizes = [self._files[fmt.record_file(rank)]["size"] for rank in range(self.world_size)]
        try:
            if self._source.size(fmt.RECORDS) != sum(sizes):
                return None
            raw = self._source.small(fmt.RECORDS)
        except OSError:
            return None
        stops = list(itertools.accumulate(sizes))
        return [raw[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]

    def _read_record(self, rank: int, copy: bytes | None = None) -> dict[str, Any]:
        """A rank's record; from `copy` if that is one."""
        name = fmt.record_file(rank)
        if name not in self._files:
            raise CheckpointMismatch(
                f"checkpoint {self.path} was written by {self.world_size} ranks: there is no rank {rank}"
            )
        wanted = self._files[name]["sha256"]
        raw = copy if copy is not None and fmt.sha256(copy) == wanted else self._read_small(name)
        if fmt.sha256(raw) != wanted:
            raise DamagedCheckpoint(self.path, name, "does not match its checksum in the manifest")
        return json.loads(raw)

    def _elements(self, piece: Piece, stored: Stored) -> Iterator[tuple[Piece, torch.Tensor]]:
        """The elements of a part of what is stored, in one or several pieces."""
        dtype, offset = stored.kinds[piece.kind]
        if stored.file not in self._measured:
            what = self._wrong_size(stored.file)  # a mapping of a shorter file would end the process with SIGBUS
            if what is not None:
                raise DamagedCheckpoint(self.path, stored.file, what)
            self._measured.add(stored.file)
        offset += (piece.flat_start - stored.start) * dtype.itemsize
        for first, data in self._source.elements(stored.file, dtype, offset, piece.numel):
            start = piece.flat_start + first
            yield replace(piece, flat_start=start, flat_stop=start + data.numel()), data


def _trouble(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    return str(error) if isinstance(error, NotAFile) else f"unreadable: {error.strerror or error}"


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
