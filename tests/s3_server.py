"""An S3 server of the tests' own, found as a user's store is found: by variables of the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import fsspec
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def s3_bucket(name: str) -> Iterator[fsspec.AbstractFileSystem]:
    """An empty bucket on loopback, for this process and those that it starts; listings are not cached."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # moto keeps its buckets for the whole process, also those of a server that has ended.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST"), timeout=30).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        try:
            files = fsspec.filesystem("s3", use_listings_cache=False)
            files.mkdir(name)
            yield files
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            server.stop()
