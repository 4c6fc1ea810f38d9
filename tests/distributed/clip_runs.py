"""Real shards of handwritten digits in words, and a recipe of a tiny CLIP for them in which everything random is on."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.pairs.prepare import prepare_pairs
from data_pipeline.pairs.recipe import (
    CaptionTokenizerConfig,
    PairCorpusConfig,
    PairDedupConfig,
    PairFilterConfig,
    PairPrepareConfig,
)
from launcher.digits import DigitStrips, write_strips

MODEL = (
    "{family: clip, embed_dim: 16, image_size: 24, patch_size: 8, vision_layers: 2, vision_width: 32, vision_heads: 4, "
    "context_length: 24, text_layers: 2, text_width: 32, text_heads: 4, dropout: 0.1, patch_dropout: 0.4}"
)
RECIPE = f"""
run: {{name: test, seed: 7}}
model: {MODEL}
data:
  mix: [{{shards: SHARDS/digits}}]
  validation: [{{shards: SHARDS/digits-held-out}}]
  images: {{augment: random_resized_crop, crop_scale: [0.5, 1.0], flip: 0.5, brightness: 0.3, contrast: 0.3,
    saturation: 0.3, grayscale: 0.2, workers: 2}}
batch: {{global_batch_size: 16, micro_batch_size: 4}}
optimizer: {{lr: 2.0e-3, warmup: 3}}
parallel: {{zero_stage: 1}}
training: {{steps: 8, precision: fp32, log_every: 1}}
checkpoint: {{every: 5, keep: 5}}
evaluation: {{pictures: false}}
"""


def write_digits(folder: Path, *, training: int, held_out: int) -> DigitStrips:
    """Strips in `folder`/digits, and of them the shard sets `folder`/shards/digits and /digits-held-out."""
    made = write_strips(folder / "digits", training=training, held_out=held_out)
    config = PairPrepareConfig(
        output=str(folder / "shards"),
        pairs=[
            PairCorpusConfig("digits", [str(made.training)]),
            PairCorpusConfig("digits-held-out", [str(made.held_out)]),
        ],
        tokenizer=CaptionTokenizerConfig("char", 300),
        validation_fraction=0.0,
        filters=PairFilterConfig(min_side=24),
        deduplicate=PairDedupConfig(perceptual=False),
        workers=1,
    )
    prepare_pairs(config, lambda line: None)
    return made


def write_recipe(folder: Path) -> Path:
    """The recipe of the shards in `folder`."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("SHARDS", str(folder / "shards")))
    return path
