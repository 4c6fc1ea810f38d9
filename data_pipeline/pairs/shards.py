"""An image-text shard set on disk: WebDataset tars of pictures and captions, an index, a manifest.

    flowers/manifest.json   "kind": "image-text", counts, hashes; one line of facts a tar
    flowers/index.npy       int64 [members, 4]: tar number, offset, bytes, CRC-32 of the bytes
    flowers/pairs.npy       uint32 [samples, 4]: offset of the picture in its member, its bytes, the caption's bytes,
                            CRC-32 of the picture followed by the caption
    flowers/00000.tar ...   000000000.jpg, 000000000.txt (and 000000000.json, if there are facts), 000000001.png, ...

The files are those of webdataset, whose stock package reads them. What is called a member here is a run of
`samples_per_member` pairs, from the first picture's data to the end of the last pair, tar headers included: what is
fetched, kept in a node's cache and shuffled as a whole, as the members of text shards are (about 1 MiB, at 50 to 100 KB
a picture). Every member has the same number of pairs but the set's last. Each pair has its own CRC besides, so that
only the pair is read where the tars are in a folder.

The caption begins after the picture's last block and one header block: the offsets of the format say where.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import BadCorpus
from data_pipeline.shards import sync_path, write_synced

KIND = "image-text"
FORMAT_VERSION = 1
SAMPLES_PER_MEMBER = 16
SAMPLES_PER_TAR = 8192
EXTENSIONS = ("jpg", "png", "webp")
BLOCK = tarfile.BLOCKSIZE
MAX_PICTURE_BYTES = 64 << 20
MAX_CAPTION_BYTES = 1 << 16


def caption_offset(picture_offset: int, picture_bytes: int) -> int:
    """Where a caption's bytes begin, from where its picture's do."""
    return picture_offset + picture_bytes + -picture_bytes % BLOCK + BLOCK


class PairWriter:
    """Writes one shard set into an existing, empty folder: `add` pair by pair, then `finish`.

    The caller publishes the folder with `data_pipeline.shards.publish`. Equal pairs give equal bytes: no times, users
    or hosts are stored. tokenizer_sha256: `CaptionTokenizer.sha256` of what captions will be encoded with; its file
    belongs beside the shard sets, as `tokenizer.model`, `merges.txt` or `merges.txt.gz`. samples_per_tar is
    rounded up to whole members.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        tokenizer_sha256: str,
        samples_per_tar: int = SAMPLES_PER_TAR,
        samples_per_member: int = SAMPLES_PER_MEMBER,
    ) -> None:
        if samples_per_tar < 1 or samples_per_member < 1:
            raise ValueError("a tar and a member have at least one sample")
        self._directory = directory
        self._rows = samples_per_member
        self._samples_per_tar = -(-samples_per_tar // samples_per_member) * samples_per_member
        self._header: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "name": name,
            "tokenizer_sha256": tokenizer_sha256,
            "rows_per_member": samples_per_member,
        }
        self._index = array("q")
        self._pairs = array("I")
        self._tars: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._in_tar = 0
        self._first = 0  # offset of the open member
        self._crc = 0
        self._bytes = {"picture_bytes": 0, "caption_bytes": 0}

    @property
    def samples(self) -> int:
        """Pairs so far."""
        return len(self._pairs) // 4

    def add(self, picture: bytes, extension: str, caption: str, facts: dict[str, Any] | None = None) -> None:
        """Appends a pair. extension: jpg, png or webp; facts: JSON-able, stored beside it (original key, URL, size).

        Raises BadCorpus for an empty caption or picture, one above the format's limits, or a caption that UTF-8 cannot
        hold.
        """
        text = _checked(picture, extension, caption, self.samples)
        if self._in_tar == self._samples_per_tar:
            self._close_tar()
        if self._file is None:
            self._file = open(self._directory / f"{len(self._tars):05d}.tar", "xb")  # noqa: SIM115
        number = self.samples
        begins = number % self._rows == 0
        header = self._head(f"{number:09d}.{extension}", len(picture))
        if begins:
            self._close_member()
            self._file.write(header)
            self._first, self._crc = self._file.tell(), 0
        else:
            self._put(header)
        offset = self._file.tell() - self._first
        self._put(picture + b"\0" * (-len(picture) % BLOCK))
        self._member(f"{number:09d}.txt", text)
        if facts is not None:
            self._member(f"{number:09d}.json", json.dumps(facts, sort_keys=True).encode())
        self._pairs.extend((offset, len(picture), len(text), zlib.crc32(text, zlib.crc32(picture))))
        self._in_tar += 1
        self._bytes["picture_bytes"] += len(picture)
        self._bytes["caption_bytes"] += len(text)

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Writes indices and manifest, syncs everything to disk, and returns the manifest, which `facts` go into."""
        self._close_tar()
        manifest = {
            **facts,
            **self._header,
            **self._bytes,
            "samples": self.samples,
            "members": len(self._index) // 4,
            "index_sha256": _write_array(
                self._directory / "index.npy", np.array(self._index, dtype="<i8").reshape(-1, 4)
            ),
            "pairs_sha256": _write_array(
                self._directory / "pairs.npy", np.array(self._pairs, dtype="<u4").reshape(-1, 4)
            ),
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

    def _head(self, name: str, size: int) -> bytes:
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf(tarfile.USTAR_FORMAT)

    def _member(self, name: str, content: bytes) -> None:
        self._put(self._head(name, len(content)) + content + b"\0" * (-len(content) % BLOCK))

    def _put(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)

    def _close_member(self) -> None:
        if self._file is not None and self._in_tar:
            end = self._file.tell()
            self._index.extend((len(self._tars), self._first, end - self._first, self._crc))

    def _close_tar(self) -> None:
        if self._file is None:
            return
        self._close_member()
        self._file.write(b"\0" * (2 * BLOCK))  # the end of an archive
        self._file.flush()
        os.fsync(self._file.fileno())
        number = len(self._tars)
        facts = {"file": f"{number:05d}.tar", "size": self._file.tell()}
        first = sum(tar["members"] for tar in self._tars)
        self._tars.append({**facts, "members": len(self._index) // 4 - first, "samples": self._in_tar})
        self._file.close()
        self._file, self._in_tar = None, 0


def _checked(picture: bytes, extension: str, caption: str, number: int) -> bytes:
    if extension not in EXTENSIONS:
        raise BadCorpus(f"pair {number}: the extension {extension!r} is none of {', '.join(EXTENSIONS)}")
    if not 0 < len(picture) <= MAX_PICTURE_BYTES:
        raise BadCorpus(f"pair {number}: its picture has {len(picture)} bytes, not 1 to {MAX_PICTURE_BYTES}")
    if not caption.strip():
        raise BadCorpus(f"pair {number}: its caption is empty")
    try:
        text = caption.encode()
    except UnicodeEncodeError as error:
        raise BadCorpus(f"pair {number}: its caption has a lone surrogate, which UTF-8 cannot hold") from error
    if len(text) > MAX_CAPTION_BYTES:
        raise BadCorpus(f"pair {number}: its caption has {len(text)} bytes, more than {MAX_CAPTION_BYTES}")
    return text


def _write_array(path: Path, array: NDArray[Any]) -> str:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    write_synced(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()
