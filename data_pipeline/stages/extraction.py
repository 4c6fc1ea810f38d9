"""The stage that takes the main content out of an HTML page, without navigation, comments and other boilerplate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from data_pipeline.documents import Document, StageFunction, Tally
from data_pipeline.errors import BadConfig

NO_CONTENT = "extract: no main content"
TOO_DEEP = "extract: nested too deeply"

#: resiliparse takes time quadratic in the depth of these: minutes for a page of a megabyte made for it.
_NESTING = re.compile("<(/?)(?:div|article)", re.IGNORECASE)
_MAX_DEPTH = 500


@dataclass
class ExtractionConfig:
    """From an HTML page to its text."""

    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """resiliparse is many times faster. trafilatura is a package of its own, to be installed."""


def extraction(config: ExtractionConfig) -> StageFunction:
    """The stage: HTML documents become text, paragraph by paragraph; others pass as they are.

    Raises BadConfig if the extractor is not installed. resiliparse: Bevendorff et al. 2018, Elastic ChatNoir.
    trafilatura: Barbaresi 2021, ACL demonstrations.
    """
    main_content = _trafilatura() if config.extractor == "trafilatura" else _resiliparse()

    def extract(documents: Iterable[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            if document.html:
                if _depth(document.text) > _MAX_DEPTH:
                    tally.drop(TOO_DEEP, document.source, document.text)
                    continue
                text = main_content(document.text)
                if not text.strip():
                    tally.drop(NO_CONTENT, document.source, document.text)
                    continue
                document.text, document.html = text, False
            yield document

    return extract


def _resiliparse() -> Callable[[str], str]:
    from resiliparse.extract.html2text import extract_plain_text

    def main_content(html: str) -> str:
        text: str = extract_plain_text(
            html,
            preserve_formatting=True,  # paragraphs, lists, and <pre> with its line ends and indentation
            main_content=True,
            alt_texts=False,
            links=False,
            form_fields=False,
            noscript=False,
            comments=False,
            post_meta=False,
        )
        return text

    return main_content


def _trafilatura() -> Callable[[str], str]:
    try:
        from trafilatura import extract
    except ImportError as error:
        raise BadConfig("extractor: trafilatura needs a package: pip install trafilatura") from error

    def main_content(html: str) -> str:
        return extract(html, include_comments=False, include_images=False, include_links=False) or ""

    return main_content


def _depth(html: str) -> int:
    """The greatest depth to which the elements are nested, or less than _MAX_DEPTH; too much if some end unsaid."""
    small = html.lower()
    if small.count("<div") + small.count("<article") <= _MAX_DEPTH:
        return 0
    depth = deepest = 0
    for tag in _NESTING.finditer(html):
        depth = max(0, depth + (-1 if tag[1] else 1))
        deepest = max(deepest, depth)
    return deepest
