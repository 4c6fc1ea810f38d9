"""A CLIP through the commands alone: prepare pictures, train on two ranks, on one, look, hand over, take over."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data_pipeline.config import ShardSource
from data_pipeline.pairs.validation import PairValidationSet
from launcher.digits import NAMES, write_strips
from launcher.run_folder import RunFolder
from tests.data_pipeline.pair_sets import learnt_merges
from tests.launcher.conftest import trestle_in
from training.metrics.events import read_events

HELD_OUT = 24
CONTEXT = 20

RECIPE = f"""
run: {{name: digits, directory: runs, seed: 7}}
model: {{family: clip, embed_dim: 16, image_size: 24, patch_size: 8, vision_layers: 2, vision_width: 32,
  vision_heads: 4, context_length: {CONTEXT}, text_layers: 2, text_width: 32, text_heads: 4, activation: gelu}}
data:
  mix: [{{shards: shards/digits}}]
  validation: [{{shards: shards/digits-held-out}}]
batch: {{global_batch_size: 32, micro_batch_size: 8}}
optimizer: {{lr: 2.0e-3}}
training: {{steps: 6, validate_every: 3, log_every: 1, precision: fp32}}
checkpoint: {{every: 3}}
cluster: {{ranks_per_node: 2}}
evaluation:
  zero_shot: [{{name: thousand, shards: shards/digits-held-out, classes: digits/captions.txt, templates: ["{{}}"]}}]
prepare:
  output: shards
  workers: 1
  tokenizer: {{clip_merges: merges.txt}}
  validation_fraction: 0
  filters: {{min_side: 24}}
  deduplicate: {{perceptual: false}}
  pairs:
    - {{name: digits, sources: [digits/training]}}
    - {{name: digits-held-out, sources: [digits/held-out]}}
"""


@dataclass
class Story:
    """What the commands said, in the order in which they were called, and where."""

    folder: Path
    said: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)

    def call(self, name: str, *words: str, code: int = 0) -> None:
        done = trestle_in(self.folder)(*words)
        assert done.returncode == code, f"{name}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        self.said[name] = done

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / name)

    def figures(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(name).metrics.read_text().splitlines()]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("clip")
    write_strips(folder / "digits", training=300, held_out=HELD_OUT)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(learnt_merges(" ".join(NAMES), 40)) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    told = Story(folder)
    told.call("prepare", "prepare", "recipe.yaml")
    told.call("train", "train", "recipe.yaml")
    told.call("resume", "resume", "runs/digits", "--training.steps", "8", "--cluster.ranks_per_node", "1")
    earlier = folder / "runs" / "digits" / "evaluation" / "step-00000008" / "zero_shot-earlier-confusion.png"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"of other settings, which is not to stay beside today's")
    told.call("evaluate", "evaluate", "runs/digits")
    told.call("generate", "generate", "runs/digits", "--prompt", "three", code=2)
    told.call("huggingface", "export", "runs/digits", "handed-over", "--to", "huggingface")
    told.call("openclip", "export", "runs/digits", "for-open-clip", "--to", "openclip")
    lengthened = ["--recipe", "recipe.yaml", "--training.steps", "1", "--cluster.ranks_per_node", "1"]
    told.call("import", "import", "handed-over", "--name", "taken-over", *lengthened)
    told.call("train on", "resume", "runs/taken-over")
    told.call("import again", "import", "for-open-clip", "--name", "taken-over-again", *lengthened)
    return told


@pytest.mark.timeout(400)
def test_prepare_and_train_say_what_was_made_and_what_comes_next(story: Story) -> None:
    prepared, trained = story.said["prepare"].stdout, story.said["train"].stdout
    assert "digits-held-out" in prepared and "next: trestle train recipe.yaml" in prepared
    assert "run runs/digits finished at step 6" in trained
    assert "retrieval/digits-held-out/image_to_text_r1" in trained and "zero_shot/thousand/top1" in trained
    assert "evaluate runs/digits" in trained
    assert [line["step"] for line in story.figures("digits")] == list(range(1, 9))


@pytest.mark.timeout(400)
def test_resume_on_one_rank_goes_on_where_two_ended(story: Story) -> None:
    assert "resuming from step 6" in story.said["resume"].stdout and "step 8/8" in story.said["resume"].stdout
    events = read_events(story.run("digits").events)
    assert [e["ranks"] for e in events if e["event"] == "started"] == [2, 1]
    (resized,) = (e for e in events if e["event"] == "resized")
    assert resized["keys"] == {"cluster.ranks_per_node": {"old": 2, "new": 1}}
    assert {"checkpointed", "finished"} <= {e["event"] for e in events}
    assert [line["samples"] for line in story.figures("digits")] == [32 * step for step in range(1, 9)]


@pytest.mark.timeout(400)
def test_evaluate_prints_what_the_run_has_measured_and_writes_its_pictures(story: Story) -> None:
    said = story.said["evaluate"].stdout
    figures = story.figures("digits")[-1]
    assert "runs/digits, step 8" in said
    for key, label in {
        "validation_loss/digits-held-out": "held-out loss (nats)",
        "retrieval/digits-held-out/image_to_text_r10": "picture → text, among 10",
        "retrieval/digits-held-out/text_to_image_median_rank": "text → picture, median rank",
        "zero_shot/thousand/top5": "right class among 5",
    }.items():
        shown = [line for line in said.splitlines() if label in line]
        assert any(float(line.split()[-1]) == pytest.approx(figures[key], abs=1e-3) for line in shown), (key, shown)
    named = [Path(line.removeprefix("picture: ")) for line in said.splitlines() if line.startswith("picture: ")]
    paths = sorted((story.run("digits").path / "evaluation" / "step-00000008").iterdir())
    assert [path.name for path in paths] == sorted(path.name for path in named) and len(paths) == 4
    assert [path.name for path in paths[0].parent.parent.iterdir()] == ["step-00000008"]
    for path in paths:
        picture = cv2.imread(str(path))
        assert picture is not None and min(picture.shape[:2]) > 100 and len(np.unique(picture)) > 10, path


@pytest.mark.timeout(400)
def test_tensorboard_has_the_scores_and_the_pictures(story: Story) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(story.run("digits").path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    scores = story.figures("digits")
    for name in ("retrieval/digits-held-out/image_to_text_r1", "zero_shot/thousand/top1", "validation_loss"):
        assert [event.step for event in board.Scalars(name)] == [3, 6, 8]
        assert [event.value for event in board.Scalars(name)] == pytest.approx([scores[s - 1][name] for s in (3, 6, 8)])
    assert [event.step for event in board.Scalars("logit_scale")] == list(range(1, 9))
    wanted = {f"retrieval/digits-held-out/{what}" for what in ("text_to_image", "image_to_text", "similarity")}
    assert set(board.Tags()["images"]) == {*wanted, "zero_shot/thousand/confusion"}
    for tag in board.Tags()["images"]:
        assert [event.step for event in board.Images(tag)] == [3, 6, 8]
        for event in board.Images(tag):
            picture = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
            assert picture.shape[:2] == (event.height, event.width) and len(np.unique(picture)) > 10


@pytest.mark.timeout(400)
def test_exported_model_and_tokenizer_have_the_held_out_loss_that_the_run_reports(story: Story) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    folder = story.folder / "handed-over"
    model: Any = CLIPModel.from_pretrained(folder).eval()
    pairs = PairValidationSet(
        [ShardSource(str(story.folder / "shards" / "digits-held-out"))], image_size=24, context_length=CONTEXT
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(pairs.captions(0, HELD_OUT), padding="max_length", max_length=CONTEXT, return_tensors="pt")
    described = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(described[f"image_{name}"]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        found = model(
            pixel_values=(torch.from_numpy(pairs.batch(0, HELD_OUT).images) / 255 - mean) / std,
            input_ids=tokens["input_ids"],
        )
    logits, truth = found.logits_per_image.double(), torch.arange(HELD_OUT)
    loss = (torch.nn.functional.cross_entropy(x, truth) for x in (logits, logits.T))
    assert float(sum(loss)) / 2 == pytest.approx(story.figures("digits")[-1]["validation_loss"], rel=1e-4)


@pytest.mark.timeout(400)
def test_a_run_made_of_the_export_begins_with_its_weights_and_trains_on(story: Story) -> None:
    from safetensors.torch import load_file

    last = load_file(story.run("digits").checkpoints / "step-00000008" / "rank-00000.safetensors")
    for name in ("taken-over", "taken-over-again"):
        first = load_file(story.run(name).checkpoints / "step-00000000" / "rank-00000.safetensors")
        for key, tensor in last.items():
            if key.startswith("weight/"):
                assert torch.equal(first[key], tensor), key
            else:
                assert not first[key].any()
    assert "resuming from step 0" in story.said["train on"].stdout
    (line,) = story.figures("taken-over")
    fresh, trained = story.figures("digits")[0], story.figures("digits")[-1]
    # Its first batch is the first run's, to a model that has learned; the evaluation section goes with the recipe.
    assert line["loss"] < fresh["loss"] and line["loss/digits"] == line["loss"]
    assert line["logit_scale"] == pytest.approx(trained["logit_scale"], rel=0.05)
    assert "zero_shot/thousand/top1" in line


@pytest.mark.timeout(400)
def test_a_clip_continues_no_text_and_says_so_in_one_line(story: Story) -> None:
    refused = story.said["generate"]
    assert refused.stderr == "trestle: runs/digits is a model of family clip, which continues no text\n"
    assert not refused.stdout
