"""A run's caption tokenizer as files that other libraries load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from data_pipeline.pairs.tokenizers import BytePairCaptions, CaptionTokenizer, _byte_symbols, _read_merges

START, END = "<|startoftext|>", "<|endoftext|>"


def write_caption_tokenizer(folder: Path, tokenizer: CaptionTokenizer, context_length: int) -> str:
    """Write what transformers' CLIPTokenizer reads, or tokenizer.model; says what is there. Raises OSError."""
    if not isinstance(tokenizer, BytePairCaptions):
        shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
        return (
            f"tokenizer.model only, a SentencePiece model: a caption is {tokenizer.sot_id}, its ids, "
            f"{tokenizer.eot_id}, padded with 0 to {context_length}; CLIPTokenizer cannot read it"
        )
    merges = _read_merges(tokenizer.path)
    bytes_ = list(_byte_symbols().values())
    symbols = [*bytes_, *(symbol + "</w>" for symbol in bytes_), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": context_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return "vocab.json and merges.txt, CLIP's byte pairs, which CLIPTokenizer reads"
