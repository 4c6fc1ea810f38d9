"""The stage that says which language a text is in, and keeps some."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.documents import Document, StageFunction, Tally
from data_pipeline.errors import BadConfig

UNCERTAIN = "language: uncertain"
TOO_SHORT = "language: too short to tell"

#: Text -> language code, or "" if it cannot be told.
Detector = Callable[[str], str]


@dataclass
class LanguageConfig:
    """Which languages are kept, and who tells them."""

    keep: list[str] = field(default_factory=lambda: ["en"])
    """Language codes, as the detector gives them: ISO 639-1 for resiliparse. An empty list keeps all."""
    detector: str = "resiliparse"
    """resiliparse needs no model and knows 101 languages. Or module:function, text → (code, confidence from 0 to 1); an
    interrupted prepare does not notice a change of its code."""
    max_distance: int = 1200
    """Only resiliparse: a text is uncertain if it is further than this from every language's profile. Prose comes to
    300 to 800 (shorter is further), 100 characters to 700, tables of numbers to more than 1,700."""
    min_confidence: float = 0.65
    """Only module:function: a text is uncertain if the confidence is lower."""
    min_characters: int = 100
    """Shorter texts are too short to tell: of 80 characters one in seven is told wrongly."""
    short_texts: Literal["keep", "drop"] = "keep"
    """What becomes of texts that are too short to tell."""


def language(config: LanguageConfig) -> StageFunction:
    """The stage: sets `language`, drops other languages and what cannot be told; counts in the histogram "language".

    Raises BadConfig for a detector that cannot be imported and for languages that it does not know.
    """
    detect = _resiliparse(config) if config.detector == "resiliparse" else _imported(config)
    keep = frozenset(config.keep)
    other = f"language: not one of {', '.join(config.keep)}"

    def tell(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            if len(document.text) < config.min_characters:
                tally.observe("language", "too short")
                if config.short_texts == "keep":
                    yield document
                else:
                    tally.drop(TOO_SHORT, document.source, document.text)
                continue
            document.language = detect(document.text)
            tally.observe("language", document.language or "uncertain")
            if not document.language:
                tally.drop(UNCERTAIN, document.source, document.text)
            elif keep and document.language not in keep:
                tally.drop(other, document.source, document.text)
            else:
                yield document

    return tell


def _resiliparse(config: LanguageConfig) -> Detector:
    from resiliparse.parse.lang import detect_fast, supported_langs

    unknown = sorted(set(config.keep) - set(supported_langs()))
    if unknown:
        known = ", ".join(supported_langs())
        raise BadConfig(f"language: resiliparse does not know {', '.join(unknown)}; it knows {known}")

    def detect(text: str) -> str:
        code, _ = detect_fast(text, cutoff=config.max_distance)
        return "" if code == "unknown" else code

    return detect


def _imported(config: LanguageConfig) -> Detector:
    module, _, name = config.detector.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
        if not callable(function):
            raise TypeError(f"{name} is no function")
    except Exception as error:  # whatever somebody else's module raises
        raise BadConfig(
            f"language: the detector {config.detector} cannot be imported ({error}); it is resiliparse or "
            "module:function, of an installed module or one on PYTHONPATH"
        ) from error

    def detect(text: str) -> str:
        try:
            told = function(text)
        except Exception as error:  # whatever somebody else's function raises
            raise BadConfig(
                f"language: the detector {config.detector} failed: {type(error).__name__}: {error}"
            ) from error
        try:
            code, confidence = told
            certain = float(confidence) >= config.min_confidence
        except (TypeError, ValueError) as error:
            raise BadConfig(
                f"language: the detector {config.detector} gave {told!r:.80}, not (language code, confidence)"
            ) from error
        return str(code) if certain else ""

    return detect
