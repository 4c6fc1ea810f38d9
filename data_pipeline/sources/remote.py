"""Files behind URLs, by fsspec. Its stores take their settings (keys, end points, proxies) from the environment.

A transient error (a server that is away or too busy, a connection that breaks) is tried again a few times; reading goes
on at the byte where it was. What remains is one line that names the URL.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any, TypeVar

from data_pipeline.errors import BadConfig, BadCorpus, EnvironmentFailure, UserError

#: Scheme -> the package that fsspec needs for it ("" if none).
SCHEMES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "memory": ""}
#: Seconds to wait before each further attempt.
RETRY_SECONDS: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
#: Seconds without a byte after which an http connection is given up.
TIMEOUT_SECONDS = 60.0
_BLOCK = 4 << 20
_BUSY = (408, 425, 429)
#: Packages whose errors are about the network, although some are no OSError.
_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "gcsfs")

Result = TypeVar("Result")


def filesystem(url: str) -> Any:
    """fsspec's file system for a URL. Raises BadConfig for an unknown scheme and for a missing package."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise BadConfig(f"{url}: {scheme}:// is not known; {', '.join(f'{name}://' for name in SCHEMES)} are")
    import fsspec

    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS)
            # The file's own bytes: a .gz that a server sends with `Content-Encoding: gzip` must stay a .gz.
            headers = {"Accept-Encoding": "identity"}
            client = {"timeout": timeout, "headers": headers, "auto_decompress": False, "trust_env": True}
            options = {"client_kwargs": client}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise BadConfig(f"{url}: {scheme}:// needs a package: pip install '{SCHEMES[scheme]}'") from error


def patiently(url: str, action: Callable[[], Result]) -> Result:
    """What the action returns, tried again after transient errors.

    Raises BadCorpus if there is nothing at the URL or nothing for us, EnvironmentFailure if it cannot be reached.
    """
    for wait in (*RETRY_SECONDS, None):
        try:
            return action()
        except (UserError, EnvironmentFailure):
            raise
        except Exception as error:
            if wait is None or not _is_transient(error):
                raise _fault(url, error) from error
        time.sleep(wait)  # the pause is the point: the server is to recover, and nothing tells when it has
    raise AssertionError("the last attempt returns or raises")


class RemoteFile(io.RawIOBase):
    """A file behind a URL. Seeks freely where the server answers range requests, else by reading from the start."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._open: Any = None
        self.url = url
        self._fs = filesystem(url)
        self._block = _BLOCK
        self._position = 0
        patiently(url, self._opened)

    def readinto(self, buffer: Any) -> int:
        data: bytes = patiently(self.url, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            size = patiently(self.url, self._opened).size
            if size is None:
                raise BadCorpus(f"{self.url} cannot be read out of order, as its server does not say its size")
            offset += size
        self._position = max(0, offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._forget()
        super().close()

    def _read(self, length: int) -> bytes:
        try:
            file = self._opened()
            data: bytes = file.read(length)
            if length and not data and file.size is not None and self._position < file.size:
                raise ConnectionError(f"ended at byte {self._position} of {file.size}")
        except ValueError:
            # How fsspec says that an http server knows no ranges: read it as one stream then.
            if not self._block:
                raise
            self._block = 0
            self._forget()
            return self._read(length)
        except BaseException:
            self._forget()
            raise
        return data

    def _opened(self) -> Any:
        """fsspec's file, at this one's position."""
        if self._open is not None and self._open.tell() != self._position:
            try:
                self._open.seek(self._position)
            except ValueError:  # a stream
                self._forget()
        if self._open is None:
            self._open = self._fs.open(self.url, "rb", block_size=self._block, cache_type="readahead")
            try:
                self._open.seek(self._position)
            except ValueError:
                self._skip(self._position)
        return self._open

    def _skip(self, length: int) -> None:
        while length:
            data = self._open.read(min(length, 1 << 20))
            if not data:
                raise ConnectionError(f"ended {length} bytes before byte {self._position}")
            length -= len(data)

    def _forget(self) -> None:
        file, self._open = self._open, None
        if file is not None:
            file.close()


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and its causes: fsspec hides what an http server answered behind a FileNotFoundError."""
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__
    return causes


def _status(error: Exception) -> int | None:
    """The http status that an error is about."""
    for cause in _chain(error):
        # aiohttp's own `code` says 400 of any answer that it could not parse or that broke off.
        name = "code" if type(cause).__module__.startswith("gcsfs") else "status"
        status = getattr(cause, name, None)
        if isinstance(status, int):
            return status
    return None


def _is_transient(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _BUSY
    if isinstance(error, FileNotFoundError) and error.__cause__ is None:
        return False
    if isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError)):
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS


def _fault(url: str, error: Exception) -> Exception:
    status = _status(error)
    first = _chain(error)[-1]
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and first is error):
        return BadCorpus(f"{url} does not exist{f' ({status})' if status else ''}")
    if status in (401, 403) or isinstance(error, PermissionError):
        return BadCorpus(f"{url} may not be read{f' ({status})' if status else ''}: check its access keys")
    told = " ".join(str(first).split()) or "no answer in time"
    return EnvironmentFailure(
        f"{url} cannot be read: {type(first).__name__}: {told[:200]}; check the network, then run it again"
    )
