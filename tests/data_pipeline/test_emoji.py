"""Real pictures with names, from a Debian package, through prepare."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.pairs.prepare import prepare_pairs
from data_pipeline.pairs.recipe import CaptionTokenizerConfig, PairCorpusConfig, PairFilterConfig, PairPrepareConfig
from tests.data_pipeline.emoji import find_font, write_emoji
from tests.data_pipeline.pair_recipes import dropped, pairs_of


@pytest.mark.slow
def test_emoji_with_their_unicode_names_become_shards(tmp_path: Path) -> None:
    listed = write_emoji(find_font(tmp_path / "package"), tmp_path / "emoji")
    with open(listed, newline="") as file:
        names = {row["name"]: row["picture"] for row in csv.DictReader(file)}
    assert len(names) > 1200 and "grinning face" in names and "dog face" in names
    corpus = PairCorpusConfig("emoji", [str(listed)], path_field="picture", caption_field="name")
    config = PairPrepareConfig(
        output=str(tmp_path / "shards"),
        pairs=[corpus],
        tokenizer=CaptionTokenizerConfig(vocab_size=1000),
        filters=PairFilterConfig(min_characters=2),
        validation_fraction=0.1,
    )
    result = prepare_pairs(config, lambda line: None)
    written = [*pairs_of(tmp_path / "shards" / "emoji"), *pairs_of(tmp_path / "shards" / "emoji-validation")]
    for picture, name in written:
        assert picture == (tmp_path / "emoji" / names[name]).read_bytes()
    # Some emoji of other names look the same (the families, signs of the same shape): few, and no others are lost.
    assert set(dropped(result)) <= {
        "copies: a picture that has come before",
        "near copies: a picture that looks like one before",
        "size: sides of more than 3 to 1",
    }
    assert 0.9 * len(names) < len(written) == len(names) - sum(dropped(result).values())
    assert Image.open(io.BytesIO(written[0][0])).size == (136, 128)
