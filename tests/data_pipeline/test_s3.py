"""Sources and shards in an object store: a local S3 server, the real client."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipeline.config import CacheConfig, DataConfig, ShardSource
from data_pipeline.documents import Tally
from data_pipeline.errors import BadCorpus
from data_pipeline.prepare import prepare
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from data_pipeline.sources import find_files, read_documents
from data_pipeline.stream import Stream
from tests.s3_server import s3_bucket


@pytest.fixture(scope="module")
def store() -> Iterator[fsspec.AbstractFileSystem]:
    """An empty bucket named `lab` on a server of this test's own."""
    with s3_bucket("lab") as files:
        yield files


def test_sources_in_a_bucket_are_found_by_glob_and_read(store: fsspec.AbstractFileSystem) -> None:
    lines = "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(1000)).encode()
    store.pipe("lab/web/a.jsonl.gz", gzip.compress(lines))
    store.pipe("lab/web/b.txt", b"a text")
    files = find_files(["s3://lab/web/*"], [], "web")
    assert [file.path for file in files] == ["s3://lab/web/a.jsonl.gz", "s3://lab/web/b.txt"]
    assert all(file.version and file.size for file in files)
    texts = [document.text for document in read_documents(files, Tally())]
    assert texts == [*(f"line {n}" for n in range(1000)), "a text"]
    with pytest.raises(BadCorpus, match="s3://lab/none"):
        find_files(["s3://lab/none/*.txt"], [], "web")


def test_shards_in_a_bucket_stream_as_the_local_ones_do(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    recipe = PrepareConfig(
        output=str(output),
        corpora=[CorpusConfig("code", ["{stdlib}/email/*.py"])],
        sequence_length=32,
        tokenizer=TokenizerConfig("bpe", 400),
        validation_fraction=0.0,
    )
    prepare(recipe, lambda line: None)
    store.put(str(output), "lab/shards", recursive=True)
    cache = CacheConfig(directory=str(tmp_path / "cache"))
    local = Stream(DataConfig(mix=[ShardSource(str(output / "code"))], shuffle="windowed"), seed=3)
    remote = Stream(DataConfig(mix=[ShardSource("s3://lab/shards/code")], cache=cache), seed=3)
    for start in (0, 500, 100_000):
        assert np.array_equal(remote.batch(start, 16).tokens, local.batch(start, 16).tokens)
    assert remote.tokenizer().sha256 == local.tokenizer().sha256
    assert remote.fingerprint() == local.fingerprint()
    local.close()
    remote.close()
