"""What the room promises the rooms around it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest
import yaml

from data_pipeline.batching import BatchConfig, RampConfig
from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.errors import BadConfig, BadCorpus, BadShards, BadTokenizer, DamagedShard, DataMismatch, UserError
from data_pipeline.recipe import PrepareConfig

REPOSITORY = Path(__file__).parents[2]
RECIPE = """
output: shards
sequence_length: 256
tokenizer: {type: unigram, vocab_size: 4096}
validation_fraction: 0.01
corpora:
  - {name: stdlib, sources: ["lib/python3*/**/*.py"], weight: 0.7, stages: []}
  - {name: docs, sources: ["share/doc/**/*"], weight: 0.3}
"""


def test_no_model_code_and_no_other_room_is_imported() -> None:
    files = sorted((REPOSITORY / "data_pipeline").rglob("*.py"))
    modules = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert "data_pipeline.stream" in modules and "data_pipeline.prepare.pipeline" in modules
    code = "import sys\n" + "".join(f"import {module}\n" for module in modules)
    code += "print({'torch', 'ray', 'modeling', 'training', 'cluster', 'launcher'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_recipes_are_parsed_as_they_are_documented(shards: Path) -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(PrepareConfig, "prepare")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(BatchConfig, "batch")
    batch = {"global_batch_size": 16, "micro_batch_size": 4, "ramp": {"start": 4, "increment": 4, "over": "1M tokens"}}
    sections = {
        "prepare": yaml.safe_load(RECIPE),
        "data": yaml.safe_load((shards / "mix.yaml").read_text()),
        "batch": batch,
    }
    parsed = parser.instantiate_classes(parser.parse_object(sections))
    prepare = PrepareConfig(**vars(parsed.prepare)) if not isinstance(parsed.prepare, PrepareConfig) else parsed.prepare
    assert prepare.corpora[0].stages == [] and prepare.corpora[1].stages == ["extract", "clean", "deduplicate"]
    assert prepare.tokenizer.vocab_size == 4096
    assert parsed.data.mix[0] == ShardSource(str(shards / "network"), 0.7)
    assert parsed.data.prefetch == 2 and len(parsed.data.validation) == 2
    assert parsed.batch.ramp == RampConfig(4, 4, "1M tokens")


@pytest.mark.parametrize("kind", [BadConfig, BadCorpus, BadShards, BadTokenizer, DataMismatch])
def test_mistakes_of_the_user_end_with_2_and_failures_of_the_machine_with_1(kind: type[UserError]) -> None:
    assert kind.exit_code == 2 and DamagedShard.exit_code == 1


def test_reading_a_recipe_loads_nothing_heavy() -> None:
    heavy = {"numba", "sklearn", "resiliparse", "fastwarc", "trafilatura", "pyarrow", "fsspec"}
    code = f"import sys, data_pipeline.recipe, data_pipeline.config\nprint({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
