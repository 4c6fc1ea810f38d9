"""The recipe's `evaluation:` section, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import RecipeError
from training.evaluation.config import TEMPLATES, EvaluationConfig, class_names, name_of
from training.sections import parse_section, to_plain


def parsed(**section: object) -> EvaluationConfig:
    return parse_section(EvaluationConfig, section, "evaluation")


def test_a_section_reads_as_it_is_written_and_back(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\ufeffcat\n\n  black   dog \n", encoding="utf-8")
    config = parsed(
        zero_shot=[
            {"shards": "shards/pets-test", "classes": str(tmp_path / "names.txt")},
            {"shards": "s3://bucket/birds", "classes": ["wren", "owl"], "templates": ["a {}"], "name": "birds"},
        ],
        probe=[{"train": "shards/pets", "test": "shards/pets-test"}],
        samples=100,
    )
    config.check()
    first, second = config.zero_shot
    assert class_names(first) == ["cat", "black dog"] and first.templates == list(TEMPLATES)
    assert [name_of(first), name_of(second), name_of(config.probe[0])] == ["pets-test", "birds", "pets-test"]
    assert parse_section(EvaluationConfig, to_plain(config), "evaluation") == config
    config.anchor()
    assert first.shards == str(Path("shards/pets-test").absolute()) and second.shards == "s3://bucket/birds"
    assert config.probe[0].train == str(Path("shards/pets").absolute())
    config.check()


def test_nothing_written_is_retrieval_with_pictures() -> None:
    config = parsed()
    config.check()
    assert (config.zero_shot, config.probe, config.retrieval, config.pictures) == ([], [], True, True)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"classes": "absent.txt"}, r"zero_shot\.0\.classes: absent.txt cannot be read: No such file"),
        ({"classes": ["cat"]}, "names 1 class: with fewer than two there is nothing to choose"),
        ({"classes": []}, "names 0 classes"),
        ({"classes": ["cat", "Cat "]}, 'names "cat" twice'),
        ({"classes": ["cat", " "]}, "has an empty class name"),
        ({"classes": ["cat", "dog"], "templates": []}, r"zero_shot\.0\.templates is empty"),
        ({"classes": ["cat", "dog"], "templates": ["a photo"]}, r'"a photo" has no \{\}, where the class name goes'),
    ],
)
def test_a_task_that_means_nothing_is_refused(task: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parsed(zero_shot=[{"shards": "shards/pets", **task}]).check()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluation\.samples is -1"):
        parsed(samples=-1).check()
    with pytest.raises(RecipeError, match=r"evaluation\.zero_shot\.0\.class does not exist; did you mean .*classes"):
        parsed(zero_shot=[{"shards": "x", "class": ["a", "b"]}])
    with pytest.raises(RecipeError, match=r"evaluation\.zero_shot\.0\.classes is 3"):
        parsed(zero_shot=[{"shards": "x", "classes": 3}])
    twice = [{"train": "a/train", "test": "a/test"}, {"train": "b/train", "test": "b/test"}]
    with pytest.raises(RecipeError, match=r'evaluation\.probe has two entries called "test"'):
        parsed(probe=twice).check()
    (tmp_path / "latin.txt").write_bytes("löwe\nbär\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="is no UTF-8 text"):
        parsed(zero_shot=[{"shards": "x", "classes": str(tmp_path / "latin.txt")}]).check()
