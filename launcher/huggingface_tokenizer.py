"""A run's SentencePiece tokenizer as a tokenizer.json, which `transformers` loads.

Ours marks a space with U+2581 and cuts a U+2581 of the text out beforehand. Here the pieces hold real spaces instead,
so that nothing is replaced, and a U+2581 of the text, which no piece has, becomes its three byte tokens of itself. BPE
and character models encode as ours; unigram ones but where two ways to cut a word score the same to the last bit of a
float (5 places in 560,000 tokens of Python's standard library), since theirs adds scores in double precision.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from data_pipeline.tokenizer import SPACE_MARK, Tokenizer

PROBES = [
    "Hello world, this is a test.\n",
    "def main(argument: int) -> None:\n    return  argument ** 2\t# naïve café\r\n",
    " leading, and   several    spaces \n\n\n",
    "▁ the space mark ▁▁x▁ itself, and \u00a0 others\u3000",
    "<0x41> looks like a byte token, <unk> and </s> like others",
    "日本語 العربية Ελληνικά 🙂🙃 \u0000\u0007",
    "x" * 300 + "1234567890" * 20,
]
"""Texts on which both must agree before tokenizer.json is shipped."""


def write_tokenizer(folder: Path, tokenizer: Tokenizer, sequence_length: int) -> str:
    """Write tokenizer.model and, where it encodes alike, tokenizer.json; says what is there. Raises OSError."""
    shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
    try:
        import tokenizers
    except ImportError:
        return "tokenizer.model only, a SentencePiece model (for tokenizer.json install tokenizers)"
    text = json.dumps(tokenizer_json(tokenizer), ensure_ascii=False)
    theirs = tokenizers.Tokenizer.from_str(text)
    different = [probe for probe in PROBES if theirs.encode(probe).ids != tokenizer.encode(probe)]
    if different:
        return (
            "tokenizer.model only, a SentencePiece model: as tokenizer.json it would encode some text otherwise, such "
            f"as {different[0][:40]!r}"
        )
    end = end_of_document(tokenizer)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    ties = ", but where two ways to cut a word score the same" if _is_unigram(_model(tokenizer)) else ""
    return f"tokenizer.model (SentencePiece), and tokenizer.json for AutoTokenizer, which encodes as it does{ties}"


def end_of_document(tokenizer: Tokenizer) -> str:
    """The piece that ends a document."""
    piece: str = _model(tokenizer).pieces[tokenizer.eod_id].piece
    return piece


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json."""
    model = _model(tokenizer)
    pieces = [_Piece(p.piece, p.score, p.type) for p in model.pieces]
    end = tokenizer.eod_id
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": end,
                "content": pieces[end].text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _unigram(pieces) if _is_unigram(model) else _bpe(pieces),
    }


_UNIGRAM = 1  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN = 1, 2  # ModelProto.SentencePiece.Type
_UNREACHABLE = 1000.0


def _is_unigram(model: Any) -> bool:
    return bool(model.trainer_spec.model_type == _UNIGRAM)


class _Piece:
    """A vocabulary entry with real spaces."""

    def __init__(self, piece: str, score: float, kind: int) -> None:
        self.normal = kind == _NORMAL
        self.unknown = kind == _UNKNOWN
        self.text = piece.replace(SPACE_MARK, " ") if self.normal else piece
        self.score = score


def _unigram(pieces: list[_Piece]) -> dict[str, Any]:
    """Their lattice, unlike ours, holds byte and control tokens: a score that no path can afford keeps them out."""
    lowest = min(p.score for p in pieces if p.normal)
    return {
        "type": "Unigram",
        "unk_id": next(i for i, p in enumerate(pieces) if p.unknown),
        "vocab": [[p.text, p.score if p.normal else lowest - _UNREACHABLE] for p in pieces],
        "byte_fallback": True,
    }


def _bpe(pieces: list[_Piece]) -> dict[str, Any]:
    """SentencePiece merges what gives the piece of the highest score; a table of merges says the same in order."""
    ids = {p.text: i for i, p in enumerate(pieces) if p.normal}
    ranked = sorted((p for p in pieces if p.normal and len(p.text) > 1), key=lambda p: -p.score)
    merges = [
        [p.text[:cut], p.text[cut:]]
        for p in ranked
        for cut in range(1, len(p.text))
        if p.text[:cut] in ids and p.text[cut:] in ids
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(p.text for p in pieces if p.unknown),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {p.text: i for i, p in enumerate(pieces)},
        "merges": merges,
    }


def _model(tokenizer: Tokenizer) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(tokenizer.path.read_bytes())
    return model
