"""A CLIP through `trestle import` and `trestle export`: transformers' and open_clip's folders, tokenizers, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from data_pipeline.pairs.tokenizers import BytePairCaptions, SentencePieceCaptions
from data_pipeline.recipe import TokenizerConfig
from data_pipeline.tokenizer_training import train
from launcher.caption_tokenizer_files import write_caption_tokenizer
from launcher.cli import main
from tests.data_pipeline.pair_sets import write_merges, write_pairs
from training.recipe import load_recipe

RECIPE = """
run: {directory: runs, seed: 7}
data: {mix: [{shards: shards/pairs}]}
batch: {global_batch_size: 4, micro_batch_size: 2}
training: {steps: 2, precision: fp32}
cluster: {ranks_per_node: 1}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a shard set of pairs and a folder `theirs` with a random CLIPModel."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "shards").mkdir()
    merges = folder / "shards" / "merges.txt"
    write_pairs(folder / "shards" / "pairs", 8, sha256=write_merges(merges))
    size = BytePairCaptions(merges).vocab_size
    torch.manual_seed(0)
    text = {"vocab_size": size, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 11, "eos_token_id": size - 1}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text | {"bos_token_id": size - 2}, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder / "theirs")
    shutil.copyfile(merges, folder / "theirs" / "merges.txt")
    return folder


@pytest.fixture
def imported(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with the run `taken-over` made of `theirs`."""
    for name in ("recipe.yaml", "shards", "theirs"):
        (tmp_path / name).symlink_to(workplace / name)
    monkeypatch.chdir(tmp_path)
    assert main(["import", "theirs", "--name", "taken-over", "--recipe", "recipe.yaml"]) == 0
    return tmp_path


def assert_same(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_clip_model_comes_back_from_a_run_as_it_went_in(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/taken-over", "out", "--to", "huggingface"]) == 0
    assert "CLIPModel of step 0" in capsys.readouterr().out
    assert_same(imported / "theirs" / "model.safetensors", imported / "out" / "model.safetensors")
    theirs = CLIPModel.from_pretrained(imported / "out")
    assert theirs.config.text_config.eos_token_id == theirs.config.text_config.vocab_size - 1
    pictures = json.loads((imported / "out" / "preprocessor_config.json").read_text())
    assert pictures["crop_size"] == {"height": 32, "width": 32}
    ours = BytePairCaptions(imported / "shards" / "merges.txt")
    tokenizer = CLIPTokenizer.from_pretrained(imported / "out")
    caption = "the red ant, and The hand!"
    encoded = tokenizer(caption)["input_ids"]
    assert ours.encode([caption], 40)[0, : len(encoded)].tolist() == encoded


def test_open_clips_folder_is_written_and_read_back(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/taken-over", "other", "--to", "openclip"]) == 0
    assert "CLIP of open_clip of step 0" in capsys.readouterr().out
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= {p.name for p in (imported / "other").iterdir()}
    assert main(["import", "other", "--name", "again", "--recipe", "recipe.yaml", "--model.lock_image", "true"]) == 0
    assert main(["export", "runs/again", "out", "--to", "huggingface"]) == 0
    assert_same(imported / "theirs" / "model.safetensors", imported / "out" / "model.safetensors")


def test_the_learned_bias_of_a_sigmoid_loss_is_kept_by_open_clip_and_left_out_in_words_elsewhere(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--name", "pairwise", "--recipe", "recipe.yaml", "--model.loss", "sigmoid", "--model.initial_bias", "-3"]
    assert main(["import", "theirs", *rest]) == 0
    for name, there in (("huggingface", False), ("openclip", True)):
        capsys.readouterr()
        assert main(["export", "runs/pairwise", name, "--to", name]) == 0
        (weights,) = (imported / name).glob("*.safetensors")
        assert ("logit_bias" in load_file(weights)) is there
        said = capsys.readouterr().out
        assert ("left out: the bias that the sigmoid loss has learned" in said) is not there
        assert ("--to openclip keeps it" in said) is not there


def test_another_image_size_is_interpolated_only_when_asked(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--name", "larger", "--recipe", "recipe.yaml", "--model.image_size", "48"]
    assert main(["import", "theirs", *rest]) == 2
    assert "32 x 32 pixels, but model.image_size is 48" in capsys.readouterr().err
    assert [p.name for p in (imported / "runs").iterdir()] == ["taken-over"]
    assert main(["import", "theirs", *rest, "--model.interpolate_positions", "true"]) == 0
    weights = load_file(imported / "runs" / "larger" / "checkpoints" / "step-00000000" / "rank-00000.safetensors")
    assert weights["weight/vision.position_embedding"].numel() == 37 * 32


def test_what_weights_decide_and_other_tokenizers_are_refused(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--name", "refused", "--recipe", "recipe.yaml"]
    assert main(["import", "theirs", *rest, "--model.text_layers", "3"]) == 2
    assert "--model.text_layers cannot be set" in capsys.readouterr().err
    other = imported / "other-tokenizer"
    shutil.copytree(imported / "theirs", other)
    write_merges(other / "merges.txt", ["a b"])
    assert main(["import", "other-tokenizer", *rest]) == 2
    assert "another tokenizer" in capsys.readouterr().err
    (other / "config.json").write_text('{"model_type": "bert"}')
    assert main(["import", "other-tokenizer", *rest]) == 2
    assert "'bert', which cannot be imported; there are GPT-2 and Llama of transf" in capsys.readouterr().err
    assert [p.name for p in (imported / "runs").iterdir()] == ["taken-over"]


def test_recipe_decides_what_weights_do_not_and_the_rest_of_its_model_is_named_as_left_aside(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "{family: clip, lock_image: true, loss: sigmoid, dropout: 0.2, vision_layers: 3, text_width: 24}"
    (imported / "lit.yaml").write_text(RECIPE + f"model: {asked}\n")
    capsys.readouterr()
    assert main(["import", "theirs", "--name", "lit", "--recipe", "lit.yaml", "--model.dropout", "0.1"]) == 0
    said = capsys.readouterr().err
    assert said == "the model is that of theirs; left aside: lit.yaml's model.vision_layers 3 (1 in theirs)\n"
    model = load_recipe(imported / "runs" / "lit").model
    assert (model.lock_image, model.loss, model.dropout, model.vision_layers) == (True, "sigmoid", 0.1, 1)
    rest = ["--recipe", "other.yaml", "--name", "other", "--print_config"]
    for asked, code, said in [
        ("{preset: clip-vit-b-32, lock_text: true}", 0, "left aside: other.yaml's model.preset clip-vit-b-32"),
        ("{preset: gpt3-125m}", 2, "a recipe for a model of family gpt, but that of theirs is of clip"),
        ("{lock_images: true}", 2, "model.lock_images"),
    ]:
        (imported / "other.yaml").write_text(RECIPE + f"model: {asked}\n")
        assert main(["import", "theirs", *rest]) == code
        told = capsys.readouterr()
        assert said in told.err and told.err.count("\n") == 1
        assert ("lock_text: true" in told.out) is (code == 0)


def test_sentencepiece_model_goes_along_as_it_is_with_how_a_caption_is_framed(tmp_path: Path) -> None:
    path = tmp_path / "trained.model"
    path.write_bytes(train(["one two three four five six"] * 20, TokenizerConfig(type="char", vocab_size=280)))
    tokenizer = SentencePieceCaptions(path)
    out = tmp_path / "out"
    out.mkdir()
    said = write_caption_tokenizer(out, tokenizer, 24)
    assert [p.name for p in out.iterdir()] == ["tokenizer.model"]
    assert (out / "tokenizer.model").read_bytes() == path.read_bytes()
    assert f"a caption is {tokenizer.sot_id}, its ids, {tokenizer.eot_id}, padded with 0 to 24" in said
