"""The few operations that every store has: ranged reads, streamed writes, listings, removal. Through fsspec."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.errors import DamagedShard
from data_pipeline.locations import PACKAGES
from data_pipeline.retrying import REMOTE, reason
from training.checkpoint.source import NotAFile, check_is_file
from training.errors import RecipeError, TrainingError

T = TypeVar("T")

PART_BYTES = 64 << 20
"""Of a multipart upload: S3 takes 10,000 parts, hence files of up to 640 GB; one part is held in memory."""
CHUNK_BYTES = 16 << 20
"""Of a read back."""
TIMEOUT_SECONDS = 60.0
"""Of one attempt to read."""

WRITABLE = ("s3", "gs")


class StorageUnreachable(TrainingError):
    """A store does not answer, or refuses. What it holds is not known."""


class RemoteStore:
    """A place in a store: `s3://bucket/prefix`, `gs://bucket/prefix`, or a folder's path, made in one that is there.

    Keys and endpoint come from the places where the user keeps them (AWS_* variables, ~/.aws, fsspec's configuration).
    Reading methods raise FileNotFoundError for what is not there and StorageUnreachable after several attempts; writing
    ones make a single attempt and raise OSError, whatever it is that went wrong. Raises RecipeError for a URL that
    cannot be written to.
    """

    def __init__(self, location: str, part_bytes: int = PART_BYTES) -> None:
        check_location(location)
        self.location = location.rstrip("/")
        self.part_bytes = part_bytes
        scheme, _, rest = self.location.partition("://")
        self._is_folder = not rest
        self._root = os.path.abspath(self.location) if self._is_folder else rest
        self._home = os.path.dirname(self._root)
        self._fs = _filesystem("file" if self._is_folder else scheme)

    def path(self, *names: str) -> str:
        """A file's name for messages."""
        return "/".join((self.location, *names))

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """A file, or bytes [start, stop) of it."""
        place = self._place(name)
        return self._patiently(name, lambda: self._cat(place, start, stop))

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        except NotAFile:
            return True  # for its reader to name
        return True

    def size(self, name: str) -> int:
        place = self._place(name)
        return int(self._patiently(name, lambda: self._info(place))["size"])

    def names(self, folder: str = "") -> list[str]:
        """What lies directly in a folder, sorted; [] if there is no such folder, which stores cannot tell apart."""
        place = self._place(folder) if folder else self._root

        def listed() -> list[str] | None:
            self._fs.invalidate_cache()
            try:
                return sorted({str(found).rstrip("/").rpartition("/")[2] for found in self._fs.ls(place, detail=False)})
            except FileNotFoundError:
                return None

        found = self._patiently(folder, listed)
        if found is None:
            self._check_bucket()
        return [name for name in found or [] if name]

    def sha256(self, name: str, size: int) -> str:
        """The checksum in hex of a file of `size` bytes, read back in chunks."""
        checksum = hashlib.sha256()
        for start in range(0, size, CHUNK_BYTES):
            checksum.update(self.read(name, start, min(start + CHUNK_BYTES, size)))
        return checksum.hexdigest()

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, name: str, content: bytes) -> None:
        """Put a small file there, whole or not at all (in a folder of this machine: as long as it does not crash)."""
        place = self._place(name)
        self._once(lambda: self._fs.pipe_file(self._made(place), content))

    def upload(self, path: Path, name: str) -> None:
        """Copy a file there, in parts if it is large. Raises OSError; what has come of it is then not in place."""
        place = self._place(name)

        def copy() -> None:
            with path.open("rb") as file:
                out = self._writer(place)
                try:
                    while chunk := file.read(self.part_bytes):
                        out.write(chunk)
                    if self._is_folder:
                        out.flush()
                        os.fsync(out.fileno())
                    out.close()
                except BaseException:
                    self._give_up(out)
                    raise

        self._once(copy)

    def remove(self, name: str) -> None:
        """Remove a file; none is as good."""
        place = self._place(name)

        def away() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(place)

        self._once(away)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and all that is in it; none is as good."""
        place = self._place(name)

        def away() -> None:
            self._fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(place, recursive=True)

        self._once(away)

    # ── below ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, name: str) -> str:
        """The file's full name. Only this program and checked manifests give names; look again all the same."""
        if not name or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{name!r} leads out of {self.location}")
        return f"{self._root}/{name}"

    def _made(self, place: str) -> str:
        if self._is_folder:
            if not os.path.isdir(self._home):
                raise OSError(self._homeless())
            os.makedirs(os.path.dirname(place), exist_ok=True)
        return place

    def _writer(self, place: str) -> Any:
        if self._is_folder:
            return self._fs.open(self._made(place), "wb")
        return self._fs.open(place, "wb", block_size=self.part_bytes)

    def _give_up(self, out: Any) -> None:
        """Neither complete what has been begun (as closing does) nor leave parts that would be paid for, for ever."""
        with contextlib.suppress(Exception):
            out.close() if self._is_folder else out.discard()
        if not self._is_folder:
            out.closed = True

    def _cat(self, place: str, start: int | None, stop: int | None) -> bytes:
        if self._is_folder:
            check_is_file(Path(place))
        if not self._fs.async_impl:
            return bytes(self._fs.cat_file(place, start, stop))
        return bytes(self._bounded(self._fs._cat_file(place, start=start, end=stop)))

    def _info(self, place: str) -> dict[str, Any]:
        if self._is_folder:
            check_is_file(Path(place))
        self._fs.invalidate_cache()
        found: dict[str, Any] = self._bounded(self._fs._info(place)) if self._fs.async_impl else self._fs.info(place)
        return found

    def _bounded(self, work: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, TIMEOUT_SECONDS), self._fs.loop).result()
        except TimeoutError:
            raise TimeoutError(f"no answer within {TIMEOUT_SECONDS:.0f} s") from None

    def _check_bucket(self) -> None:
        """An empty prefix and a bucket that is not there look the same in a listing, and so do a new folder and one
        whose mount is away. Raises RecipeError, StorageUnreachable.
        """
        if self._is_folder and not os.path.isdir(self._home):
            raise StorageUnreachable(self._homeless())
        bucket = self._root.partition("/")[0]
        if not self._is_folder and not self._patiently("", lambda: self._fs.exists(bucket)):
            raise RecipeError(f"checkpoint.remote is {self.location}, but there is no such bucket: make it first")

    def _homeless(self) -> str:
        return f"checkpoint.remote is {self._home}, but there is no such folder: mount it, or make it first"

    def _patiently(self, name: str, work: Callable[[], T]) -> T:
        def attempt() -> T | NotAFile:
            try:
                return work()
            except NotAFile as error:  # another attempt does not mend it
                return error

        try:
            found = REMOTE.attempt(self.path(name) if name else self.location, attempt)
        except DamagedShard as error:
            raise StorageUnreachable(str(error)) from error
        except PermissionError as error:
            raise StorageUnreachable(f"{self.path(name)} is refused: {reason(error)}") from error
        if isinstance(found, NotAFile):
            raise found
        return found

    def _once(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError:
            raise
        except Exception as error:  # each client library has its own
            raise OSError(f"{self.location}: {reason(error)}") from error


def check_location(location: str) -> None:
    """Raise RecipeError for a place that checkpoints cannot be written to."""
    scheme, colon, _ = location.partition(":")
    if not location or (colon and "/" not in scheme and (scheme not in WRITABLE or not _is_plain(location, scheme))):
        raise RecipeError(
            f"checkpoint.remote is {location!r}; it must be s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or the path of a "
            "folder"
        )


def _is_plain(location: str, scheme: str) -> bool:
    """Whether it is a URL with a bucket and without fsspec's chains, a query, or steps upwards."""
    rest = location.removeprefix(f"{scheme}://")
    if rest == location or "::" in rest or "?" in rest or "#" in rest:
        return False
    return bool(rest.strip("/")) and not any(part in (".", "..") for part in rest.split("/"))


def _filesystem(scheme: str) -> Any:
    try:
        import fsspec

        options: dict[str, Any] = {} if scheme == "file" else {"use_listings_cache": False}
        # Not shared with the data's readers: a rank's uploads must not wait behind them, nor they behind uploads.
        return fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise RecipeError(f"checkpoint.remote needs the Python package {package}: pip install {package}") from error
