"""Data and settings that a CLIP cannot be trained with: one line that says how to mend it, and no run is begun."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launcher.cli import main
from tests.data_pipeline.pair_sets import write_merges
from tests.data_pipeline.shard_sets import write_set
from tests.distributed.clip_runs import write_digits, write_recipe
from tests.faults.running import TRESTLE, started

GPT = """
run: {name: text, directory: runs}
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4, sequence_length: 8}
data: {mix: [{shards: SHARDS}]}
batch: {global_batch_size: 4, micro_batch_size: 2}
cluster: {ranks_per_node: 1}
"""
RESNET = ["--model.vision=resnet50", "--model.image_size=32", "--model.patch_dropout=0"]


def zero_shot(classes: str, shards: str = "shards/digits-held-out") -> str:
    return f'--evaluation.zero_shot=[{{shards: {shards}, classes: {classes}, templates: ["{{}}"]}}]'


def probe(train: str, test: str) -> str:
    return f"--evaluation.probe=[{{train: shards/{train}, test: shards/{test}}}]"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipe.yaml with its shards, others of text, and lists of class names."""
    folder = tmp_path_factory.mktemp("refusals")
    write_digits(folder, training=40, held_out=12)
    write_recipe(folder)
    (folder / "text").mkdir()
    write_set(folder / "text" / "words", 50)
    for name, pairs in (("gpt-on-pairs", "shards/digits"), ("gpt", "text/words")):
        (folder / f"{name}.yaml").write_text(GPT.replace("SHARDS", pairs))
    (folder / "one.txt").write_text("three seven one\n")
    (folder / "few.txt").write_text("one two three\nfour five six\n")
    (folder / "twice.txt").write_text("one two three\nOne Two  Three\n")
    return folder


@pytest.fixture(autouse=True)
def _here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


def refused(capfd: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that a command ends with; no run has been begun."""
    assert main(list(words)) == code
    said = capfd.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("trestle: ") and not said.out, said
    assert not Path("runs").exists()
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["--data.mix=[{shards: text/words}]"], "text/words is a shard set of text, but image-text is wanted here"),
        (["--data.validation=[{shards: text/words}]"], "text/words is a shard set of text, but image-text is wanted"),
        ([zero_shot("few.txt", "text/words")], "text/words is a shard set of text, but image-text is wanted"),
        ([zero_shot("few.txt", "nowhere")], "the shards nowhere are not there"),
        ([zero_shot("nowhere.txt")], "evaluation.zero_shot.0.classes: nowhere.txt cannot be read: No such file"),
        ([zero_shot("one.txt")], "one.txt) names 1 class: with fewer than two there is nothing to choose between"),
        ([zero_shot("twice.txt")], 'names "one two three" twice'),
        ([zero_shot("few.txt")], "is none of the 2 class names"),
        ([probe("digits", "digits-held-out")], "each caption of shards/digits occurs once only"),
        (["--data.validation=[]", "--training.validate_every=2"], "data.validation names no held-out shards"),
    ],
    ids=[
        "text to train on",
        "text held out",
        "text to classify",
        "no shards to classify",
        "no class names",
        "one class",
        "a class twice",
        "a caption of no class",
        "captions that are no labels",
        "nothing held out",
    ],
)
def test_data_that_do_not_fit_are_refused(capfd: pytest.CaptureFixture[str], overrides: list[str], why: str) -> None:
    assert why in refused(capfd, "train", "recipe.yaml", "--run.directory=runs", *overrides)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["--model.image_size=28"], "image_size 28 is not a multiple of model.patch_size 8; 24 would fit"),
        (["--model.vocab_size=5"], "model.vocab_size is 5, but the tokenizer of data.mix has"),
        (["--parallel.pipeline=2"], "CLIP's two towers are not divided into stages; set it to 1"),
        (["--parallel.tensor=2", *RESNET], "a resnet50 runs data-parallel only"),
        (["--batch.global_batch_size=1"], "a pair is told from the others of its batch, so that it takes at least 2"),
        (["--batch.global_batch_size=2", "--cluster.ranks_per_node=3"], "leaves some of the 3 data-parallel ranks"),
        (["--model.lock_image=true"], "make the run from a trained model with `trestle import`"),
        (RESNET, "batch norm takes its statistics from the whole batch, but 2 micro-batches a rank"),
        (["--training.sample_prompt=three"], "training.sample_prompt continues a text, which model.family clip"),
        (["--data.document_masks=true"], "data.document_masks is for packed text"),
        (["--data.images.crop_scale=[0.9, 0.5]"], "data.images.crop_scale is [0.9, 0.5]"),
        (["--data.images.augment=mirror"], "data.images.augment is mirror; it must be one of none, square_crop"),
        (["--parallel.zero_stage=3", "--batch.global_batch_size=9"], "wants as many micro-batches on each rank"),
    ],
    ids=[
        "half a patch",
        "few tokens",
        "pipeline",
        "a ResNet in parts",
        "one pair",
        "fewer pairs than ranks",
        "locked from the start",
        "batch norm of parts",
        "a prompt",
        "document masks",
        "crop the wrong way round",
        "unknown augmentation",
        "unequal shares in parts",
    ],
)
def test_settings_that_cannot_be_are_refused(capfd: pytest.CaptureFixture[str], overrides: list[str], why: str) -> None:
    words = ["train", "recipe.yaml", "--run.directory=runs", "--cluster.ranks_per_node=2"]
    assert why in refused(capfd, *words, *overrides)


def test_pairs_are_no_text_to_a_gpt(capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(capfd, "train", "gpt-on-pairs.yaml")
    assert "shards/digits is a shard set of image-text, but text is wanted here" in said
    said = refused(capfd, "train", "gpt.yaml", "--evaluation.zero_shot=[{shards: shards/digits, classes: few.txt}]")
    assert "are for pictures, but model.family gpt reads text" in said


def test_another_tokenizer_beside_the_shards_is_found_out(
    workplace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workplace / "shards", tmp_path / "shards")
    write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    own = Path("shards/tokenizer.model").read_bytes()
    Path("shards/tokenizer.model").unlink()
    assert "lies no tokenizer.model or merges.txt" in refused(capfd, "train", "recipe.yaml")
    write_merges(tmp_path / "shards" / "merges.txt")
    assert "merges.txt is not the tokenizer that digits was made with" in refused(capfd, "train", "recipe.yaml")
    Path("shards/tokenizer.model").write_bytes(own[:100])
    assert "tokenizer.model" in refused(capfd, "train", "recipe.yaml")


def test_a_refusal_is_one_line_of_the_real_command_too(workplace: Path) -> None:
    command = [*TRESTLE, "train", "recipe.yaml", "--run.directory=runs", zero_shot("few.txt")]
    with started(command, workplace, workplace / "runs" / "test", deadline=60) as run:
        lines = run.end(2).splitlines()
    assert len(lines) == 1 and "is none of the 2 class names" in lines[0]
    assert not run.files.path.exists()
