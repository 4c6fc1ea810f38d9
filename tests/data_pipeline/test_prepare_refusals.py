"""What prepare refuses, in one line that names what to mend."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from data_pipeline.decontamination import DecontaminationConfig
from data_pipeline.errors import BadConfig, BadCorpus, BadTokenizer, EnvironmentFailure, UserError
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from tests.data_pipeline.conftest import small_recipe
from tests.data_pipeline.outputs import run


def bad_recipes(tmp_path: Path) -> dict[str, tuple[PrepareConfig, type[UserError], str]]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "blank.txt").write_text(" \n\n")
    (source / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "short.txt").write_text("short")
    output = tmp_path / "out"

    def of(*corpora: CorpusConfig, **changes: object) -> PrepareConfig:
        return small_recipe(output, corpora=list(corpora), **changes)

    json_corpus = CorpusConfig("json", ["{stdlib}/json/*.py"], validation_fraction=0.0)
    return {
        "no corpus": (of(), BadConfig, "corpora is empty"),
        "no file": (of(CorpusConfig("c", [f"{tmp_path}/*.none"])), BadCorpus, "corpus c: no file matches"),
        "nothing left": (
            of(CorpusConfig("c", [str(source)])),
            BadCorpus,
            r"corpus c is empty: .*1 clean: empty .*blank\.txt",
        ),
        "too little": (
            of(CorpusConfig("c", [f"{tmp_path}/short.txt"], validation_fraction=0.0), json_corpus),
            BadCorpus,
            "too few for one sample of 33",
        ),
        "nothing held out": (
            of(CorpusConfig("json", ["{stdlib}/json/*.py"]), validation_fraction=1e-9),
            BadCorpus,
            "larger validation_fraction",
        ),
        "twice the name": (of(json_corpus, json_corpus), BadConfig, "two corpora are named json"),
        "path as name": (of(CorpusConfig("../x", ["a"])), BadConfig, "corpus name"),
        "weight": (of(CorpusConfig("c", ["a"], weight=-1)), BadConfig, "weight"),
        "length": (of(json_corpus, sequence_length=0), BadConfig, "sequence_length"),
        "vocabulary": (of(json_corpus, tokenizer=TokenizerConfig(vocab_size=99999)), BadTokenizer, "is too large"),
        "model": (of(json_corpus, tokenizer=TokenizerConfig(model="/none.model")), BadTokenizer, r"/none\.model"),
        "one of the sources": (of(CorpusConfig("c", ["{stdlib}/json/*.py", "/none.txt"])), BadCorpus, "/none.txt"),
        "name of a file": (of(CorpusConfig("report.html", ["a"])), BadConfig, "writes a file of that name"),
        "endless weight": (of(CorpusConfig("c", ["a"], weight=float("inf"))), BadConfig, "weight"),
        "separator": (of(CorpusConfig("c", ["a"], separator="")), BadConfig, "separator is empty"),
        "late extract": (of(CorpusConfig("c", ["a"], stages=["clean", "extract"])), BadConfig, "extract comes first"),
        "stage order": (of(CorpusConfig("c", ["a"], stages=["deduplicate", "clean"])), BadConfig, "in this order"),
        "fuzzy alone": (of(CorpusConfig("c", ["a"], stages=["fuzzy_deduplicate"])), BadConfig, "needs the stage dedup"),
        "uncurated": (of(CorpusConfig("c", ["a"], stages=["quality"])), BadConfig, "quality.curated"),
        "overlap": (of(json_corpus, held_out_overlap=float("nan")), BadConfig, "held_out_overlap"),
        "priority": (of(json_corpus, priority=["jsno"]), BadConfig, 'priority names "jsno"'),
        "no evaluation sets": (of(CorpusConfig("c", ["a"], stages=["decontaminate"])), BadConfig, "evaluation_sets"),
        "evaluation sets without text": (
            of(
                CorpusConfig("json", ["{stdlib}/json/*.py"], stages=["decontaminate"], validation_fraction=0.0),
                decontaminate=DecontaminationConfig(evaluation_sets=[f"{tmp_path}/short.txt"]),
            ),
            BadCorpus,
            "give no n-grams",
        ),
    }


CASES = """no corpus,no file,nothing left,too little,nothing held out,twice the name,path as name,weight,length
vocabulary,model,one of the sources,name of a file,endless weight,separator,late extract,stage order,fuzzy alone
uncurated,overlap,priority,no evaluation sets,evaluation sets without text"""


def test_every_bad_recipe_is_tried(tmp_path: Path) -> None:
    assert re.split("[,\n]", CASES) == list(bad_recipes(tmp_path))


@pytest.mark.parametrize("case", re.split("[,\n]", CASES))
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    config, kind, message = bad_recipes(tmp_path)[case]
    with pytest.raises(kind, match=message) as error:
        run(config)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    left = os.listdir(config.output) if os.path.exists(config.output) else []
    assert set(left) <= {".prepare.lock", ".prepare"}


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFailure, match="cannot be prepared") as error:
        run(small_recipe(tmp_path / "file" / "out"))
    assert "\n" not in str(error.value)
