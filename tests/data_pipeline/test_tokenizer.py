"""The tokenizer loses nothing."""

from __future__ import annotations

import glob
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import BadTokenizer
from data_pipeline.recipe import TokenizerConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_training import train


def python_sources(pattern: str) -> list[str]:
    paths = sorted(glob.glob(f"{sysconfig.get_path('stdlib')}/{pattern}"))
    return [Path(path).read_text(encoding="utf-8") for path in paths]


@pytest.fixture(scope="module", params=["unigram", "bpe", "char"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(python_sources("json/*.py"), TokenizerConfig(type=request.param, vocab_size=500)))
    return Tokenizer(path)


def assert_lossless(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.eod_id not in ids


@settings(max_examples=300, deadline=None)
@given(text=st.text())
@example(text="▁")
@example(text=" ▁ ▁▁  x▁y")
@example(text="\0a\0 \0")
@example(text="\t\t\r\n\n  \n\x0b\x0c\x1f\x7f\x85\u2028\ufeff")
@example(text="\ue000\ue001\ue002▅⁇ <unk> <s> </s> <0x0A> <|endofdocument|> <|unused1|>")
@example(text="   leading and trailing   ")
@example(text="e\u0301 ﬁ ① 한 😀 \U0010ffff \ufffe \ufffd")
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert_lossless(tokenizer, text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=" ▁\t\n\0ab▅\ue000"))
def test_any_whitespace_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert_lossless(tokenizer, text)


def test_real_sources_come_back(tokenizer: Tokenizer) -> None:
    for text in python_sources("email/*.py"):
        assert_lossless(tokenizer, text)


def test_text_longer_than_a_segment_comes_back_from_any_number_of_threads(shards: Path) -> None:
    tokenizer = Tokenizer(shards / "tokenizer.model")
    texts = ["".join(python_sources("*.py"))[:900_000], "x" * 600_000, "", "▁" * 10, "a\nb"]
    encoded = tokenizer.encode_batch(texts, threads=1)
    for one, many in zip(encoded, tokenizer.encode_batch(texts, threads=3), strict=True):
        assert np.array_equal(one, many)
    assert [tokenizer.decode(ids.tolist()) for ids in encoded] == texts


def test_indentation_is_one_token(shards: Path) -> None:
    tokenizer = Tokenizer(shards / "tokenizer.model")
    ids = tokenizer.encode("x\n        return")
    assert tokenizer.token_bytes[ids].max() >= 8  # the line end with its spaces


def test_training_twice_gives_the_same_bytes() -> None:
    texts = python_sources("json/*.py")
    config = TokenizerConfig(vocab_size=500)
    assert train(texts, config) == train(texts, config)


def test_vocabulary_larger_than_the_text_allows_is_refused_with_what_fits() -> None:
    with pytest.raises(BadTokenizer, match=r"vocab_size 20000 is too large for this text: at most \d+"):
        train(["just a few words"], TokenizerConfig(vocab_size=20000))


def test_vocabulary_too_small_for_the_byte_tokens_is_refused() -> None:
    with pytest.raises(BadTokenizer, match="tokenizer") as error:
        train(python_sources("json/*.py"), TokenizerConfig(vocab_size=100))
    assert "\n" not in str(error.value)


def test_a_lone_surrogate_is_refused(shards: Path) -> None:
    with pytest.raises(BadTokenizer, match="surrogate"):
        Tokenizer(shards / "tokenizer.model").encode("a\ud800b")


def test_a_model_that_changes_text_is_refused(tmp_path: Path) -> None:
    import sentencepiece

    text = tmp_path / "text"
    text.write_text("".join(python_sources("json/*.py")))
    for prefix, options in {"plain": {}, "bytes": {"byte_fallback": True}}.items():
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(tmp_path / prefix), vocab_size=450, minloglevel=2, **options
        )
    with pytest.raises(BadTokenizer, match="no byte fallback"):
        Tokenizer(tmp_path / "plain.model")
    with pytest.raises(BadTokenizer, match="changes text"):
        Tokenizer(tmp_path / "bytes.model")
    with pytest.raises(BadTokenizer, match="no SentencePiece model"):
        Tokenizer(text)
    with pytest.raises(BadTokenizer, match="cannot be read"):
        Tokenizer(tmp_path / "absent.model")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_a_text_without_spaces_leaves_a_tokenizer_that_has_one(tmp_path: Path, kind: str) -> None:
    texts = [f"{number:x}漢字仮名" * 50 for number in range(200)]
    (tmp_path / "tokenizer.model").write_bytes(train(texts, TokenizerConfig(type=kind, vocab_size=330)))  # type: ignore[arg-type]
    tokenizer = Tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.decode(tokenizer.encode(" two  words \u2581")) == " two  words \u2581"
