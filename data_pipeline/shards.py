"""A shard set on disk: WebDataset tars of token rows, an index, a manifest. Written whole or not at all.

    stdlib/manifest.json   format, counts, hashes; one line of facts a tar
    stdlib/index.npy       int64 [members, 4]: tar number, offset of the array's data, rows, CRC-32 of the data
    stdlib/counts.npy      int64 [vocab_size]: how often each token occurs
    stdlib/00000.tar ...   members 000000000.npy ..., each an array [rows, sequence_length + 1] of about 1 MiB

Every member has the same number of rows but the set's last, so that a sample's member is a division. The index is a
file of its own, mapped and not parsed: 32 bytes a MiB of tokens.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
MEMBER_BYTES = 1 << 20
MEMBERS_PER_TAR = 512
_TAR_BLOCK = tarfile.BLOCKSIZE


def rows_per_member(sequence_length: int, dtype: np.dtype[Any]) -> int:
    """Samples in a member of about 1 MiB."""
    return max(1, MEMBER_BYTES // ((sequence_length + 1) * dtype.itemsize))


class ShardWriter:
    """Writes one shard set into an existing, empty folder. Call `add` with blocks of rows, then `finish`.

    The caller publishes the folder with `publish`. Equal blocks give equal bytes: no times, users or hosts are stored.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        sequence_length: int,
        dtype: np.dtype[Any],
        vocab_size: int,
        eod_id: int,
        tokenizer_sha256: str,
        members_per_tar: int = MEMBERS_PER_TAR,
    ) -> None:
        self.rows = rows_per_member(sequence_length, dtype)
        self._directory, self._members_per_tar, self._dtype = directory, members_per_tar, dtype
        self._header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "sequence_length": sequence_length,
            "dtype": dtype.name,
            "vocab_size": vocab_size,
            "eod_id": eod_id,
            "tokenizer_sha256": tokenizer_sha256,
            "rows_per_member": self.rows,
        }
        self._index: list[tuple[int, int, int, int]] = []
        self._tars: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._samples = 0

    def add(self, rows: NDArray[np.unsignedinteger]) -> None:
        """Appends one member: [rows, sequence_length + 1]. Only the set's last may have fewer rows than `self.rows`."""
        if len(self._index) % self._members_per_tar == 0:
            self._close_tar()
            self._file = open(self._directory / f"{len(self._tars):05d}.tar", "xb")  # noqa: SIM115
        assert self._file is not None
        array = io.BytesIO()
        np.lib.format.write_array(array, np.ascontiguousarray(rows, dtype=self._dtype), allow_pickle=False)
        content = array.getbuffer()
        data_offset = len(content) - rows.size * self._dtype.itemsize
        member = tarfile.TarInfo(f"{len(self._index):09d}.npy")
        member.size = len(content)
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT))
        self._index.append(
            (len(self._tars), self._file.tell() + data_offset, len(rows), zlib.crc32(content[data_offset:]))
        )
        self._file.write(content)
        self._file.write(b"\0" * (-len(content) % _TAR_BLOCK))
        self._samples += len(rows)

    def finish(self, *, tokens: int, documents: int, bytes: int, counts: NDArray[np.int64]) -> dict[str, Any]:
        """Writes index, counts and manifest, syncs everything to disk, and returns the manifest.

        tokens: with the dropped tail; bytes: UTF-8 bytes of the text; counts: int64 [vocab_size].
        """
        self._close_tar()
        index = np.array(self._index, dtype="<i8").reshape(-1, 4)
        manifest = {
            **self._header,
            "documents": documents,
            "bytes": bytes,
            "tokens": tokens,
            "samples": self._samples,
            "members": len(index),
            "index_sha256": _write_array(self._directory / "index.npy", index),
            "counts_sha256": _write_array(self._directory / "counts.npy", counts.astype("<i8")),
            "tars": self._tars,
        }
        write_synced(self._directory / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
        sync_path(self._directory)
        return manifest

    def abandon(self) -> None:
        """Closes the open tar of a set that will not be finished."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _close_tar(self) -> None:
        if self._file is None:
            return
        self._file.write(b"\0" * (2 * _TAR_BLOCK))  # the end of an archive
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        number = len(self._tars)
        first = number * self._members_per_tar
        samples = sum(rows for _, _, rows, _ in self._index[first:])
        self._tars.append(
            {"file": f"{number:05d}.tar", "size": size, "members": len(self._index) - first, "samples": samples}
        )
        self._file = None


def publish(built: Path, final: Path) -> None:
    """Renames a finished folder to its place, whole or not at all; an older shard set there is removed."""
    older = built.with_name(built.name + ".replaced")
    if final.exists():
        if older.exists():  # of a run that was killed while it removed it
            shutil.rmtree(older)
        os.rename(final, older)
    os.rename(built, final)
    sync_path(final.parent)
    if older.exists():
        shutil.rmtree(older)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and syncs it to disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Syncs a file, or the entries of a folder, to disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def build_shards(writer: ShardWriter, blocks: Iterable[NDArray[np.unsignedinteger]]) -> None:
    """Adds every block; closes the open file if one fails."""
    try:
        for block in blocks:
            writer.add(block)
    except BaseException:
        writer.abandon()
        raise


def _write_array(path: Path, array: NDArray[np.int64]) -> str:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    write_synced(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
