"""Captions as tokens: CLIP's byte pairs as Hugging Face's, SentencePiece, and any text at all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.errors import BadTokenizer
from data_pipeline.pairs.tokenizers import (
    CLIP_MERGES,
    BytePairCaptions,
    CaptionTokenizer,
    cleaned,
    open_caption_tokenizer,
)
from data_pipeline.recipe import TokenizerConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_training import train
from tests.data_pipeline.pair_sets import learnt_merges, write_merges

TEXT = (
    "a photograph of the temple beside a lake with a red flower and an older woman's hat they're looking at the photo "
    "of three dogs that don't bark i'll see you at 10 o'clock in zürich überall naïve café 漢字 かな emoji привет мир "
) * 3
CAPTIONS = [
    "A photograph of the Temple!",
    "they're   LOOKING\tat\nthe dogs' 3 hats -- 1234567 of 'em; I'LL don't can't we've you'd I'm",
    "Zürich, ÜBERALL: naïve café… 漢字かな交じり文 Привет, мир ½ ² Ⅷ ٣",
    "emoji 🙂👩‍👩‍👧 and \u0301 combining e\u0301, ﬁ ligatures, \u00a0 no-break\u3000space",
    "$9.99 (50% off)!!! #tag @name http://example.org/a_b-c?d=e&f=g",
    "'S 'T 're",
    "",
    "   ",
    "İstanbul ẞ ß ǅ K",
]


def learnt(folder: Path) -> Path:
    path = folder / "merges.txt"
    plain = "".join(c if c.isascii() else " " for c in TEXT)
    write_merges(path, learnt_merges(plain, 200))
    return path


def test_byte_pairs_are_those_of_hugging_face(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    path = learnt(tmp_path)
    ours = BytePairCaptions(path)
    theirs = CLIPTokenizer(str(vocabulary(path, ours)), str(path))
    for caption in CAPTIONS:
        expected = theirs(caption, padding="max_length", truncation=True, max_length=40)["input_ids"]
        mask = theirs(caption, padding="max_length", truncation=True, max_length=40)["attention_mask"]
        found = ours.encode([caption], 40)[0]
        length = sum(mask)
        assert found[:length].tolist() == expected[:length], caption
        assert not found[length:].any()


def vocabulary(path: Path, ours: BytePairCaptions) -> Path:
    """vocab.json as CLIP's: bytes, bytes at a word's end, merges, the two marks."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    merges = path.read_text().splitlines()[1:]
    names = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    assert len(names) == ours.vocab_size
    target = path.with_name("vocab.json")
    target.write_text(json.dumps({name: number for number, name in enumerate(names)}))
    return target


def test_entities_are_unescaped_and_white_space_is_one_space() -> None:
    assert cleaned("  Cats &amp;amp; &lt;b&gt;DOGS\u2003\n") == "cats & <b>dogs"


def test_a_compressed_file_with_more_merges_than_clip_uses_is_the_same_tokenizer(tmp_path: Path) -> None:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pairs = [f"{a} {b}" for a in letters for b in letters]
    lines = [*pairs, *(f"{p.replace(' ', '')} {q.replace(' ', '')}" for p in pairs for q in pairs)]
    assert len(lines) > CLIP_MERGES
    clip, export = tmp_path / "bpe_simple_vocab_16e6.txt.gz", tmp_path / "merges.txt"
    clip.write_bytes(gzip.compress(('"bpe_simple_vocab_16e6.txt#version: 0.2\n' + "\n".join(lines) + "\n").encode()))
    export.write_text("#version: 0.2\n" + "\n".join(lines[:CLIP_MERGES]) + "\n")
    first, second = open_caption_tokenizer(clip), open_caption_tokenizer(export)
    assert first.sha256 == second.sha256
    assert (first.sot_id, first.eot_id, first.vocab_size) == (49406, 49407, 49408)
    assert np.array_equal(first.encode(["abc"], 5), second.encode(["abc"], 5))


@pytest.mark.parametrize(
    "content", [b"", b"#version: 0.2\n", b"a b c\n", b"abc de\n", b"\xff\xfe\n", b"\x1f\x8bnot gzip"]
)
def test_a_file_that_is_no_merges_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "merges.txt").write_bytes(content)
    with pytest.raises(BadTokenizer, match=r"merges\.txt"):
        open_caption_tokenizer(tmp_path / "merges.txt")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTokenizer, match="cannot be read"):
        open_caption_tokenizer(tmp_path / "tokenizer.model")


@pytest.fixture(scope="module", params=["byte pairs", "SentencePiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CaptionTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte pairs":
        return open_caption_tokenizer(learnt(folder))
    path = folder / "tokenizer.model"
    path.write_bytes(train([*TEXT.split(), TEXT], TokenizerConfig(vocab_size=330)))
    return open_caption_tokenizer(path)


@given(texts=st.lists(st.text(max_size=60), max_size=4), context_length=st.integers(2, 20))
@example(["\ud800 lone", "<|startoftext|><|endoftext|> \u2581", "a" * 5000, "\0"], 7)
def test_any_text_has_tokens_with_one_start_and_one_end(
    tokenizer: CaptionTokenizer, texts: list[str], context_length: int
) -> None:
    rows = tokenizer.encode(texts, context_length)
    assert rows.shape == (len(texts), context_length) and rows.dtype == np.int64
    assert tokenizer.vocab_size == tokenizer.eot_id + 1 == tokenizer.sot_id + 2
    for row in rows:
        end = int(row.argmax())
        assert row[0] == tokenizer.sot_id and row[end] == tokenizer.eot_id
        assert (row[1:end] < tokenizer.sot_id).all() and not row[end + 1 :].any()


@given(text=st.text(max_size=80))
def test_a_caption_that_is_cut_keeps_its_beginning(tokenizer: CaptionTokenizer, text: str) -> None:
    whole, cut = tokenizer.encode([text], 400)[0], tokenizer.encode([text], 6)[0]
    end = int(cut.argmax())
    assert np.array_equal(cut[:end], whole[:end]) and cut[end] == tokenizer.eot_id


def test_sentencepiece_captions_are_lossless(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train([*TEXT.split(), TEXT], TokenizerConfig(vocab_size=330)))
    text = "A red flower, Zürich"
    row = open_caption_tokenizer(path).encode([text], 60)[0]
    assert Tokenizer(path).decode(row[1 : int(row.argmax())].tolist()) == text
