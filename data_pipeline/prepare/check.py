"""Refuses a recipe that cannot work, before anything is read."""

from __future__ import annotations

import math
import re

from data_pipeline.batching import Duration
from data_pipeline.errors import BadConfig
from data_pipeline.prepare.reading import STAGES
from data_pipeline.prepare.selecting import held_out_fraction
from data_pipeline.quality import check_config
from data_pipeline.recipe import LATER_STAGES, CorpusConfig, PrepareConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.workspace import OUTPUT_FILES


def check(config: PrepareConfig) -> None:
    """Raises BadConfig or BadTokenizer, naming the corpus and the key."""
    if not config.output:
        raise BadConfig("output is empty: name a folder for the shards")
    if not config.corpora:
        raise BadConfig("corpora is empty: name at least one")
    names = [corpus.name for corpus in config.corpora]
    for corpus in config.corpora:
        if names.count(corpus.name) > 1:
            raise BadConfig(f"two corpora are named {corpus.name}")
        _check_corpus(config, corpus)
    for key, named in (("priority", config.priority), ("quality.curated", config.quality.curated)):
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise BadConfig(f"{key} names {twice} twice")
        unknown = next((name for name in named if name not in names), None)
        if unknown is not None:
            raise BadConfig(f'{key} names "{unknown}", but the corpora are {", ".join(names)}')
    _check_later_stages(config)
    for name in ("sequence_length", "part_bytes", "max_document_bytes"):
        if getattr(config, name) < 1:
            raise BadConfig(f"{name} is {getattr(config, name)}, it must be at least 1")
    if not 0 <= config.held_out_overlap <= 1:
        raise BadConfig(f"held_out_overlap is {config.held_out_overlap}, it must be from 0 to 1")
    _check_tokenizer(config)
    if config.workers < 0:
        raise BadConfig(f"workers is {config.workers}, it must be at least 0 (0: every core)")
    training_tokens(config)


def training_tokens(config: PrepareConfig) -> int:
    """Tokens of the training that the report reckons with. Raises BadConfig."""
    text = config.training_tokens
    try:
        tokens = Duration.parse(text if "token" in text else f"{text} tokens").tokens
    except BadConfig as error:
        raise BadConfig(f'training_tokens is "{text}": write it as 300B') from error
    if not tokens:
        raise BadConfig(f'training_tokens is "{text}": it must be positive')
    return tokens


def _check_tokenizer(config: PrepareConfig) -> None:
    settings = config.tokenizer
    if settings.model is not None:
        Tokenizer(settings.model)  # says what is wrong with it
    if settings.vocab_size < 1:
        raise BadConfig(f"tokenizer.vocab_size is {settings.vocab_size}, it must be at least 1")
    if settings.sample_bytes is not None and settings.sample_bytes < 1:
        raise BadConfig(f"tokenizer.sample_bytes is {settings.sample_bytes}, it must be at least 1")


def _check_corpus(config: PrepareConfig, corpus: CorpusConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", corpus.name) or corpus.name.endswith("-validation"):
        allowed = "use letters, digits, dots, - and _, and no ending -validation"
        raise BadConfig(f'corpus name "{corpus.name}": {allowed}')
    if corpus.name in OUTPUT_FILES:
        raise BadConfig(f"corpus name {corpus.name}: prepare writes a file of that name, choose another")
    if not 0 < corpus.weight < math.inf:
        raise BadConfig(f"corpus {corpus.name}: weight is {corpus.weight}, it must be positive")
    if not corpus.sources:
        raise BadConfig(f"corpus {corpus.name}: sources is empty, name at least one")
    if corpus.separator == "":
        raise BadConfig(f"corpus {corpus.name}: separator is empty; null leaves texts whole")
    if not 0 <= held_out_fraction(config, corpus) < 1:
        raise BadConfig(f"corpus {corpus.name}: validation_fraction must be at least 0 and less than 1")
    later = [stage for stage in corpus.stages if stage in LATER_STAGES]
    if corpus.stages[len(corpus.stages) - len(later) :] != sorted(later, key=LATER_STAGES.index):
        raise BadConfig(
            f"corpus {corpus.name}: the stages {', '.join(LATER_STAGES)} come last and in this order, not "
            f"{', '.join(corpus.stages)}"
        )
    twice = next((stage for stage in corpus.stages if corpus.stages.count(stage) > 1), None)
    if twice is not None:
        raise BadConfig(f"corpus {corpus.name}: the stage {twice} is there twice")
    if "extract" in corpus.stages[1:]:
        raise BadConfig(f"corpus {corpus.name}: extract comes first: the stages before it would see HTML")
    for stage in corpus.stages:
        if stage in STAGES:
            STAGES[stage](corpus.filters or config.filters)  # raises BadConfig for what it cannot work with
    if "fuzzy_deduplicate" in corpus.stages and "deduplicate" not in corpus.stages:
        raise BadConfig(f"corpus {corpus.name}: fuzzy_deduplicate needs the stage deduplicate before it")


def _check_later_stages(config: PrepareConfig) -> None:
    config.deduplicate.check()
    config.decontaminate.check()
    check_config(config.quality)
    filtered = [corpus.name for corpus in config.corpora if "quality" in corpus.stages]
    if filtered and not config.quality.curated:
        raise BadConfig(f"corpus {filtered[0]} has the stage quality: name the curated corpora in quality.curated")
    both = next((name for name in filtered if name in config.quality.curated), None)
    if both is not None:
        raise BadConfig(f"corpus {both} is in quality.curated, so it cannot have the stage quality itself")
    cleaned = next((corpus.name for corpus in config.corpora if "decontaminate" in corpus.stages), None)
    if cleaned is not None and not config.decontaminate.evaluation_sets:
        raise BadConfig(f"corpus {cleaned} has the stage decontaminate: name files in decontaminate.evaluation_sets")
