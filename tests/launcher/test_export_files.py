"""What export writes and import reads: sharded weights, whole folders, tokenizers of every type, text as it streams."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from data_pipeline.recipe import TokenizerConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_training import train
from launcher.errors import EnvironmentFailure, UserError
from launcher.export import new_folder, write_tensors
from launcher.generate import stream_text
from launcher.huggingface_tokenizer import PROBES, tokenizer_json
from launcher.import_model import open_tensors

SOURCES = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def text_of(paths: list[Path]) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


@pytest.fixture(scope="module", params=[("unigram", 800), ("bpe", 800), ("char", 300)], ids=lambda p: p[0])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    kind, size = request.param
    path = tmp_path_factory.mktemp("tokenizer") / f"{kind}.model"
    path.write_bytes(train(text_of(SOURCES[:30]), TokenizerConfig(type=kind, vocab_size=size)))
    return Tokenizer(path)


def test_tokenizer_json_encodes_as_the_sentencepiece_model_does(tokenizer: Tokenizer) -> None:
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    held_out = text_of(SOURCES[30:50])
    for text in [*PROBES, *held_out]:
        ids = theirs.encode(text).ids
        assert theirs.decode(ids, skip_special_tokens=False) == text
        ours = tokenizer.encode(text)
        if ids != ours:
            # Two ways to cut a word that score the same: as many tokens, and hardly ever.
            assert "unigram" in tokenizer.path.name and len(ids) == len(ours)
            assert sum(a != b for a, b in zip(ids, ours, strict=True)) <= 1e-3 * len(ours)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(deadline=None)
def test_streamed_text_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(stream_text(tokenizer, ids)) == text
    # Bytes that are no text at all must come out as decoding the whole would have it.
    broken = ids[1::2]
    assert "".join(stream_text(tokenizer, broken)) == tokenizer.decode(broken)


def test_large_model_is_written_in_parts_with_an_index(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.arange(10, dtype=torch.float32) + i for i in range(5)}
    assert write_tensors(tmp_path, iter(tensors.items()), limit=80) == 200
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert sorted({*index["weight_map"].values()}) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == sorted({*index["weight_map"].values()})
    with open_tensors(tmp_path) as read:
        assert all(torch.equal(read(name), tensor) for name, tensor in tensors.items())
        with pytest.raises(KeyError):
            read("t9")


def test_small_model_is_one_file_without_an_index(tmp_path: Path) -> None:
    write_tensors(tmp_path, iter([("a", torch.zeros(3)), ("b", torch.zeros(3))]), limit=24)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(draft: Path) -> None:
        (draft / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvironmentFailure, match="nothing was kept"), new_folder(tmp_path / "out") as draft:
        half(draft)
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as draft:
        (draft / "whole").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "whole"]
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "out"):
        raise AssertionError("an existing folder was taken")


def test_pickled_and_damaged_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickled weights, which can run code"), open_tensors(tmp_path):
        raise AssertionError("a pickle was opened")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"), open_tensors(tmp_path):
        raise AssertionError("a damaged file was opened")
