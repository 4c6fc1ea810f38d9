"""Tars that an attacker has made, as shards and as sources: nothing in them is run, and nothing is written elsewhere.

Pairs' tars with hostile names and links, and manifests that name files elsewhere, are in tests/data_pipeline.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import BadShards, DamagedShard
from data_pipeline.shard_reader import ShardSet
from launcher import cli
from tests.faults.malice import Canary, contents, untouched

RECIPE = """
prepare:
  output: shards
  sequence_length: 16
  tokenizer: {type: char, vocab_size: 300}
  validation_fraction: 0
  corpora: [{name: web, sources: ["tars/*.tar"]}]
"""


def hostile_tar(path: Path, outside: Path) -> None:
    """Honest texts among names that climb out, links and devices, and pickles under every name that runs them."""
    canary = pickle.dumps(Canary(outside / "canary"))
    with tarfile.open(path, "w") as archive:
        for name, content in {
            "0001.txt": b"an honest text, long enough to be kept. " * 20,
            "../../outside/canary.txt": b"a text whose name climbs out. " * 20,
            f"{outside}/canary": b"a text with an absolute name. " * 20,
            **{f"0002.{ending}": canary for ending in ("pkl", "pyd", "pth", "pt", "pickle", "npy", "npz", "joblib")},
            "0003.json": b'{"text": {"__reduce__": "os.system"}}',
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind, name, target in (
            (tarfile.SYMTYPE, "0004.txt", str(outside / "secret.txt")),
            (tarfile.LNKTYPE, "0005.txt", str(outside / "secret.txt")),
            (tarfile.SYMTYPE, "up", "../.."),
            (tarfile.CHRTYPE, "0006.txt", ""),
            (tarfile.FIFOTYPE, "0007.txt", ""),
            (tarfile.DIRTYPE, "../../outside/made", ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    (folder / "tars").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.timeout(900)
def test_hostile_tar_as_a_source_gives_its_texts_and_nothing_else(work: Path, tmp_path: Path) -> None:
    with untouched(tmp_path / "outside"):
        hostile_tar(work / "tars" / "a.tar", tmp_path / "outside")
        before = {path.name for path in work.iterdir()}
        assert cli.main(["prepare", "recipe.yaml"]) == 0
        assert {path.name for path in work.iterdir()} == before | {"shards"}
    manifest = json.loads((work / "shards" / "web" / "manifest.json").read_text())
    assert 1 <= manifest["documents"] <= 3
    assert b"jewels" not in b"".join(path.read_bytes() for path in (work / "shards").rglob("*") if path.is_file())
    hostile = forged_sets(work / "shards" / "web", tmp_path / "outside", work)
    for name, forge in hostile.items():
        with untouched(tmp_path / "outside"):
            folder = work / name
            forge(folder)
            before_reading = contents(folder)
            with pytest.raises((BadShards, DamagedShard)):
                read_all(folder)
            assert contents(folder) == before_reading


def read_all(folder: Path) -> None:
    shards = ShardSet(str(folder))
    shards.verify()
    shards.read(np.arange(len(shards)))


def forged_sets(honest: Path, outside: Path, work: Path) -> dict[str, Callable[[Path], None]]:
    """By name: makes a folder with a forged copy of an honest shard set."""

    def copied(forge: Callable[[Path], None]) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            shutil.copytree(honest, folder)
            forge(folder)

        return make

    def pickled_index(folder: Path) -> None:
        np.save(folder / "index.npy", np.array([Canary(outside / "canary")], dtype=object), allow_pickle=True)
        resign(folder, "index.npy")

    def raw_pickle_as_index(folder: Path) -> None:
        (folder / "index.npy").write_bytes(pickle.dumps(Canary(outside / "canary")))
        resign(folder, "index.npy")

    def hostile_members(folder: Path) -> None:
        hostile_tar(folder / "00000.tar", outside)

    def tar_that_is_a_pickle(folder: Path) -> None:
        (folder / "00000.tar").write_bytes(pickle.dumps(Canary(outside / "canary")))

    return {
        one.__name__: copied(one) for one in (pickled_index, raw_pickle_as_index, hostile_members, tar_that_is_a_pickle)
    }


def resign(folder: Path, name: str) -> None:
    """Put the file's new checksum wherever the manifest has the old one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / name).read_bytes()

    def mend(value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if "sha256" in key and "index" in key:
                    value[key] = hashlib.sha256(content).hexdigest()
                mend(inner)

    mend(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
