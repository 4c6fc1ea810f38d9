"""Real pictures with names, through the commands: emoji are prepared, a CLIP learns them, and finds held-out ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data_pipeline.emoji import find_font, write_emoji
from tests.launcher.conftest import trestle_in

RECIPE = """
run: {name: emoji, directory: runs}
prepare:
  output: shards
  tokenizer: {type: bpe, vocab_size: 1200}
  validation_fraction: 0.1
  deduplicate: {perceptual: false}     # medals, clocks and hearts differ in a detail
  filters: {min_characters: 2}
  pairs: [{name: emoji, sources: [emoji/emoji.csv], path_field: picture, caption_field: name}]
model:
  {family: clip, embed_dim: 128, image_size: 64, patch_size: 8, vision_layers: 4, vision_width: 128, vision_heads: 4,
   context_length: 16, text_layers: 2, text_width: 128, text_heads: 4, activation: gelu, patch_dropout: 0.5}
data:
  mix: [{shards: shards/emoji}]
  validation: [{shards: shards/emoji-validation}]
  images: {augment: random_resized_crop, crop_scale: [0.6, 1.0], flip: 0.5}
batch: {global_batch_size: 256, micro_batch_size: 64}
optimizer: {lr: 1.0e-3, betas: [0.9, 0.98], eps: 1.0e-6, weight_decay: 0.2, warmup: 30, min_lr_ratio: 0.05}
training: {steps: 200, precision: fp32, log_every: 50}
checkpoint: {every: 200, keep: 1}
cluster: {ranks_per_node: 2}
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_emoji_that_were_held_out_are_found_by_their_names(tmp_path: Path) -> None:
    write_emoji(find_font(tmp_path / "package"), tmp_path / "emoji")
    (tmp_path / "emoji.yaml").write_text(RECIPE)
    trestle = trestle_in(tmp_path, deadline=1200)
    for words in (["prepare", "emoji.yaml"], ["train", "emoji.yaml"], ["evaluate", "runs/emoji"]):
        done = trestle(*words)
        assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "runs" / "emoji" / "metrics.jsonl").read_text().splitlines()[-1])
    pairs = json.loads((tmp_path / "shards" / "emoji-validation" / "manifest.json").read_text())["samples"]
    assert 100 < pairs < 200
    for way in ("image_to_text", "text_to_image"):
        # None of these pictures or names was trained on: what is known of them is what their words and looks share.
        assert figures[f"retrieval/emoji-validation/{way}_r10"] > 2.5 * 10 / pairs
        assert figures[f"retrieval/emoji-validation/{way}_median_rank"] < pairs / 3
    assert list((tmp_path / "runs" / "emoji" / "evaluation").glob("*/retrieval-*text_to_image.png"))
