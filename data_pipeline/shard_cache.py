"""A node's local copies of remote shards, shared by its ranks, within a limit, whatever is killed at whatever moment.

    DIRECTORY/entries/ab/ab12…   whole entries; the name is a hash, the time of change is that of the last use
    DIRECTORY/drafts/…           entries being written; a writer holds a lock on its draft as long as it lives
    DIRECTORY/kept/…             tokenizers, which need a path and are never evicted
    DIRECTORY/locks/…            who fetches: one process an entry, the others wait for it
    DIRECTORY/size, lock         bytes of all entries and drafts, and the lock under which it changes

Room is booked before it is written, so that the sum never exceeds the limit; a killed writer's booking is dropped when
room is next made. Locks are the kernel's (flock): a killed process holds none. An entry that is evicted while somebody
reads it stays readable: readers have it open. What is in an entry is for its reader to check, by CRC or hash.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.config import CacheConfig
from data_pipeline.errors import BadConfig, EnvironmentFailure

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(k|M|G|T)?(i)?B\s*")
_POWERS = {None: 0, "k": 1, "M": 2, "G": 3, "T": 4}
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_DRAFT_SECONDS = 3600.0  # where there are no locks, an older draft is nobody's
_KEEP_AFTER_EVICTION = 0.9  # of the limit: so that the folder is not listed for every entry


def parse_size(text: str) -> int:
    """Bytes of "20 GB" or "20 GiB". Raises BadConfig."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise BadConfig(f'data.cache.size is "{text}"; write it as 20 GB')
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix])


def open_cache(config: CacheConfig) -> ShardCache:
    """The cache of a recipe. Raises BadConfig, EnvironmentFailure."""
    limit = parse_size(config.size)
    if config.directory is not None:
        return ShardCache(Path(config.directory), limit)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        return ShardCache(Path(home) / "trestle" / "shards", limit)
    except EnvironmentFailure:
        return ShardCache(Path(tempfile.gettempdir()) / f"trestle-shards-{os.getuid()}", limit)


class ShardCache:
    """Entries of up to `limit` bytes in all. Safe to use from several processes and threads.

    Raises EnvironmentFailure where the folder cannot be used.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory.absolute(), limit
        self._entries, self._drafts = self.directory / "entries", self.directory / "drafts"
        self._locks, self._kept = self.directory / "locks", self.directory / "kept"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.directory.stat().st_uid != os.getuid():
                raise EnvironmentFailure(f"{self.directory} is another user's; name a folder in data.cache.directory")
            for folder in (self._entries, self._drafts, self._locks, self._kept):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise EnvironmentFailure(
                f"the cache {self.directory} cannot be made: {error.strerror}; name a folder in data.cache.directory"
            ) from error

    def open(self, key: str, fetch: Callable[[], bytes]) -> int:
        """A descriptor of the entry `key` (hexadecimal), for the caller to close; `fetch` gives what is not there yet.

        Raises what `fetch` raises, BadConfig for an entry above the limit, EnvironmentFailure for a full disk.
        """
        descriptor = self._hit(key)
        if descriptor is not None:
            return descriptor
        with locked(self._locks / key[:3]):
            descriptor = self._hit(key)  # while this one waited, another may have fetched it
            return self._add(key, fetch()) if descriptor is None else descriptor

    def has(self, key: str) -> bool:
        """Whether the entry is there; it counts as used."""
        try:
            os.utime(self._path(key))
        except OSError:
            return False
        return True

    def discard(self, key: str) -> None:
        """Removes an entry that is damaged."""
        with suppress(FileNotFoundError):
            self._path(key).unlink()

    def keep(self, content: bytes, name: str) -> Path:
        """A file with this content that stays."""
        path = self._kept / f"{hashlib.sha256(content).hexdigest()}-{name}"
        draft = self._kept / f".{uuid.uuid4().hex}"
        try:
            if not path.is_file() or path.read_bytes() != content:
                draft.write_bytes(content)
                draft.replace(path)
        except OSError as error:
            raise self._full(error) from error
        return path

    def _path(self, key: str) -> Path:
        return self._entries / key[:2] / key

    def _hit(self, key: str) -> int | None:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        os.utime(descriptor)
        return descriptor

    def _add(self, key: str, content: bytes) -> int:
        draft = self._drafts / uuid.uuid4().hex
        descriptor = -1
        try:
            with locked(self.directory / "lock"):
                self._book(len(content))
                descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                _try_lock(descriptor)
                os.ftruncate(descriptor, len(content))  # it counts in full from now on
            left = memoryview(content)
            while left:
                left = left[os.pwrite(descriptor, left, len(content) - len(left)) :]
            path = self._path(key)
            path.parent.mkdir(exist_ok=True)
            draft.rename(path)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
                draft.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._full(error) from error
            raise
        return descriptor

    def _book(self, size: int) -> None:
        """Under the lock: makes room for `size` bytes and counts them."""
        if size > self.limit:
            raise BadConfig(f"data.cache.size is {self.limit} bytes, but a single entry has {size}; set it higher")
        counter = self.directory / "size"
        try:
            used = int(counter.read_bytes())
        except (FileNotFoundError, ValueError):
            used = self.limit  # not known: look
        if used + size > self.limit:
            used = self._evict(min(self.limit - size, int(self.limit * _KEEP_AFTER_EVICTION)))
        counter.write_bytes(b"%020d" % (used + size))

    def _evict(self, target: int) -> int:
        """Removes what was not used for the longest time until no more than `target` bytes are left; their number."""
        total = sum(self._draft_sizes())
        found = []
        for folder in os.scandir(self._entries):
            for entry in os.scandir(folder.path):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_mtime_ns, entry.path, status.st_size))
                    total += status.st_size
        for _, path, size in sorted(found):
            if total <= target:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    def _draft_sizes(self) -> Iterator[int]:
        """Of drafts whose writer lives; the others are removed. A draft is locked before the lock here is given up."""
        for draft in os.scandir(self._drafts):
            with suppress(FileNotFoundError):
                descriptor = os.open(draft.path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    status = os.fstat(descriptor)
                    if _try_lock(descriptor, time.time() - status.st_mtime > _DRAFT_SECONDS):
                        os.unlink(draft.path)
                    else:
                        yield status.st_size
                finally:
                    os.close(descriptor)

    def _full(self, error: OSError) -> EnvironmentFailure:
        return EnvironmentFailure(
            f"the cache {self.directory} cannot be written: {error.strerror}; set data.cache.size to what the disk has "
            "room for, or data.cache.directory to a larger one"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file. Where the file system has none, work is done twice, and the limit is not exact."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, without_locks: bool = True) -> bool:
    """Whether the lock could be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return without_locks
    return True
