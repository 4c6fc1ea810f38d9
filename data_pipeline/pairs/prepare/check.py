"""Refuses a recipe for pairs that cannot work, before anything is read."""

from __future__ import annotations

import math
import re
from pathlib import Path

from data_pipeline.errors import BadConfig
from data_pipeline.pairs.decode import MAX_PIXELS
from data_pipeline.pairs.recipe import PairCorpusConfig, PairFilterConfig, PairPrepareConfig
from data_pipeline.pairs.shards import MAX_PICTURE_BYTES
from data_pipeline.pairs.tokenizers import BytePairCaptions, open_caption_tokenizer
from data_pipeline.stages.language import language
from data_pipeline.tokenizer_training import LEAST_VOCABULARY
from data_pipeline.workspace import OUTPUT_FILES


def check(config: PairPrepareConfig) -> None:
    """Raises BadConfig or BadTokenizer, naming the corpus and the key."""
    if not config.output:
        raise BadConfig("output is empty: name a folder for the shards")
    if not config.pairs:
        raise BadConfig("pairs is empty: name at least one corpus")
    names = [corpus.name for corpus in config.pairs]
    for corpus in config.pairs:
        if names.count(corpus.name) > 1:
            raise BadConfig(f"two corpora are named {corpus.name}")
        _check_corpus(config, corpus)
    twice = next((name for name in config.priority if config.priority.count(name) > 1), None)
    if twice is not None:
        raise BadConfig(f"priority names {twice} twice")
    unknown = next((name for name in config.priority if name not in names), None)
    if unknown is not None:
        raise BadConfig(f'priority names "{unknown}", but the corpora are {", ".join(names)}')
    for name in ("part_bytes", "part_rows", "fetch_threads", "max_picture_bytes", "max_pixels"):
        if getattr(config, name) < 1:
            raise BadConfig(f"{name} is {getattr(config, name)}, it must be at least 1")
    for name, most in (("max_picture_bytes", MAX_PICTURE_BYTES), ("max_pixels", MAX_PIXELS)):
        if getattr(config, name) > most:
            raise BadConfig(f"{name} is {getattr(config, name)}, it must be at most {most}")
    if config.workers < 0:
        raise BadConfig(f"workers is {config.workers}, it must be at least 0 (0: every core)")
    _check_duplicates(config)
    _check_tokenizer(config)


def held_out_fraction(config: PairPrepareConfig, corpus: PairCorpusConfig) -> float:
    """The share of the corpus's pairs that is held out."""
    return config.validation_fraction if corpus.validation_fraction is None else corpus.validation_fraction


def _check_duplicates(config: PairPrepareConfig) -> None:
    settings = config.deduplicate
    if not 0 <= settings.distance <= 16:
        raise BadConfig(f"deduplicate.distance is {settings.distance}, it must be from 0 to 16 bits; 4 is usual")
    if not 0 <= settings.colour <= 255:
        raise BadConfig(f"deduplicate.colour is {settings.colour}, it must be from 0 to 255")
    if not 0 < settings.memory_gib < 1e9:
        raise BadConfig(f"deduplicate.memory_gib is {settings.memory_gib}, it must be above 0")
    fractions = {held_out_fraction(config, corpus) for corpus in config.pairs}
    if len(fractions) > 1 and not (settings.exact and settings.perceptual):
        raise BadConfig(
            "copies that are kept (deduplicate.exact and perceptual) must not lie on both sides of the split, which "
            "different values of validation_fraction would do: give all corpora the same, or drop copies"
        )


def _check_tokenizer(config: PairPrepareConfig) -> None:
    settings = config.tokenizer
    if settings.model is not None and settings.clip_merges is not None:
        raise BadConfig("tokenizer.model and tokenizer.clip_merges are both set: keep one of them")
    if settings.model is not None:
        open_caption_tokenizer(settings.model)  # says what is wrong with it
    if settings.clip_merges is not None:
        BytePairCaptions(Path(settings.clip_merges))
    trained = settings.model is None and settings.clip_merges is None
    if trained and settings.vocab_size < LEAST_VOCABULARY:
        raise BadConfig(
            f"tokenizer.vocab_size is {settings.vocab_size}, it must be at least {LEAST_VOCABULARY}: every byte has one"
        )
    if settings.sample_bytes is not None and settings.sample_bytes < 1:
        raise BadConfig(f"tokenizer.sample_bytes is {settings.sample_bytes}, it must be at least 1")


def _check_corpus(config: PairPrepareConfig, corpus: PairCorpusConfig) -> None:
    where = f"corpus {corpus.name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", corpus.name) or corpus.name.endswith("-validation"):
        allowed = "use letters, digits, dots, - and _, and no ending -validation"
        raise BadConfig(f'corpus name "{corpus.name}": {allowed}')
    if corpus.name in OUTPUT_FILES:
        raise BadConfig(f"{where}: prepare writes a file of that name, choose another")
    if not 0 < corpus.weight < math.inf:
        raise BadConfig(f"{where}: weight is {corpus.weight}, it must be positive")
    if not corpus.sources:
        raise BadConfig(f"{where}: sources is empty, name at least one")
    if not 0 <= held_out_fraction(config, corpus) < 1:
        raise BadConfig(f"{where}: validation_fraction must be at least 0 and less than 1")
    if corpus.template.count("{}") != 1:
        raise BadConfig(f'{where}: template is "{corpus.template}", it must have {{}} once, where the name goes')
    if corpus.template != "{}" and corpus.caption != "folder":
        raise BadConfig(f"{where}: template is for caption: folder")
    if corpus.resize is not None:
        if corpus.resize.shorter_side < 1:
            raise BadConfig(f"{where}: resize.shorter_side is {corpus.resize.shorter_side}, it must be at least 1")
        if not 1 <= corpus.resize.quality <= 100:
            raise BadConfig(f"{where}: resize.quality is {corpus.resize.quality}, it must be from 1 to 100")
    _check_filters(where, corpus.filters or config.filters)


def _check_filters(where: str, filters: PairFilterConfig) -> None:
    for name in ("min_side", "min_characters", "max_characters", "min_words"):
        if getattr(filters, name) < 0:
            raise BadConfig(f"{where}: filters.{name} is {getattr(filters, name)}, it must be at least 0")
    if not filters.max_aspect >= 1:
        raise BadConfig(f"{where}: filters.max_aspect is {filters.max_aspect}, it must be at least 1")
    if filters.max_characters < filters.min_characters:
        raise BadConfig(f"{where}: filters.max_characters is below min_characters: no caption can pass")
    if filters.max_words is not None and filters.max_words < filters.min_words:
        raise BadConfig(f"{where}: filters.max_words is below min_words: no caption can pass")
    if filters.language.keep:
        language(filters.language)  # raises BadConfig for what it cannot work with
