"""HTML → text, and which language a text is in."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import textwrap
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.documents import Document, StageFunction, Tally
from data_pipeline.errors import BadConfig
from data_pipeline.stages.cleaning import clean, clean_text
from data_pipeline.stages.extraction import ExtractionConfig, extraction
from data_pipeline.stages.language import LanguageConfig, language
from tests.data_pipeline.crawl import FOREIGN, pydoc_pages
from tests.data_pipeline.reading import dropped

PAGE = """<!DOCTYPE html><html><head><title>A title</title><style>p {{}}</style><script>var x = 1</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About</a></li></ul></nav>
<main><article><h1>How to count</h1><p>The first paragraph, with <b>bold</b> words and a <a href="/x">link</a>.</p>
<p>The second one,
   over two lines.</p><img src="x.png" alt="An alternative text">
<pre><code>def count(n):
    for i in range(n):
        yield i

    # done
</code></pre><p>The last paragraph of the article, after the code.</p></article></main>
<div class="comments"><p>A comment by somebody else</p></div>
<footer><a href="/imprint">Imprint</a> Copyright</footer></body></html>"""
ENGLISH = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood. Everyone is entitled to all the rights and freedoms "
    "set forth in this Declaration, without distinction of any kind."
)


def run(stage: StageFunction, written: Sequence[str], html: bool = False) -> tuple[list[Document], Tally]:
    tally = Tally()
    documents = [Document(text, f"{number}", html=html) for number, text in enumerate(written)]
    return list(stage(documents, tally)), tally


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_the_main_content_of_a_page(extractor: str) -> None:
    (document,), tally = run(extraction(ExtractionConfig(extractor)), [PAGE], html=True)  # type: ignore[arg-type]
    for kept in ("How to count", "bold words and a link.", "The last paragraph"):
        assert kept in document.text
    for gone in ("<", "Home", "Imprint", "A title", "var x", "/x", "alternative", "A comment"):
        assert gone not in document.text
    assert not document.html and not tally.dropped


def test_paragraphs_and_code_stay_readable() -> None:
    (document,), _ = run(extraction(ExtractionConfig()), [PAGE], html=True)
    paragraphs = document.text.split("\n\n")
    assert paragraphs[1:3] == [
        "The first paragraph, with bold words and a link.",
        "The second one, over two lines.",
    ]
    code = document.text[document.text.index("def ") : document.text.index("    # done")]
    assert ast.dump(ast.parse(textwrap.dedent(code))) == ast.dump(
        ast.parse("def count(n):\n for i in range(n):\n  yield i")
    )


def test_documentation_survives_extraction() -> None:
    pages = list(pydoc_pages(["json", "heapq", "fractions", "bisect", "textwrap", "statistics"]))
    documents, tally = run(extraction(ExtractionConfig()), [page.html for page in pages], html=True)
    assert not tally.dropped
    for page, document in zip(pages, documents, strict=True):
        module = sys.modules[page.url.rpartition("/")[2].removesuffix(".html")]
        words = re.findall(r"\w+", module.__doc__ or "")
        found = set(re.findall(r"\w+", document.text))
        assert words and sum(word in found for word in words) > 0.99 * len(words)


def test_pages_without_content_are_dropped_and_other_documents_pass_as_they_are() -> None:
    stage = extraction(ExtractionConfig())
    empty = ["<html><body><nav><a href='/'>Home</a></nav></body></html>", "<script>x</script>", " ", "<br>"]
    documents, tally = run(stage, empty, html=True)
    assert documents == [] and dropped(tally) == {"extract: no main content": 4}
    documents, tally = run(stage, ["<b>no page</b> & so on", ""])
    assert [document.text for document in documents] == ["<b>no page</b> & so on", ""] and not tally.dropped


@pytest.mark.parametrize("tag", ["div", "ARTICLE", "p", "b", "ul><li"])
def test_a_page_made_to_take_for_ever(tag: str) -> None:
    page = f"<html><body><p>Some text before</p>{f'<{tag}>' * 30_000}deep"
    start = time.process_time()
    documents, tally = run(extraction(ExtractionConfig()), [page], html=True)
    assert time.process_time() - start < 3  # 30 seconds for <div>, unless it is looked at
    assert dropped(tally) == ({"extract: nested too deeply": 1} if tag in ("div", "ARTICLE") else {})
    assert len(documents) + len(tally.dropped) == 1


def test_many_elements_side_by_side_are_not_deep() -> None:
    page = "<div><article>" + "<div><p>One of a thousand paragraphs, each in its own box.</p></div>" * 1000
    (document,), _ = run(extraction(ExtractionConfig()), [page], html=True)
    assert document.text.count("One of a thousand") == 1000


def test_a_missing_extractor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(BadConfig, match="pip install trafilatura"):
        extraction(ExtractionConfig("trafilatura"))


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.sampled_from(["<p>", "</p>", "<pre>", "&", "&#0;", "<!--", "]]>"])),
)
def test_extraction_takes_anything(text: str, markup: list[str]) -> None:
    page = text.join(markup)
    documents, tally = run(extraction(ExtractionConfig()), [page], html=True)
    assert len(documents) + sum(dropped(tally).values()) == 1
    assert all(document.text.strip() and document.text.encode() for document in documents)


def test_languages_are_told_and_kept() -> None:
    written = [ENGLISH, *FOREIGN.values()]
    documents, tally = run(language(LanguageConfig()), written)
    assert [(document.text, document.language) for document in documents] == [(ENGLISH, "en")]
    assert tally.histograms["language"] == {"en": 1, "fr": 1, "de": 1, "es": 1}
    assert dropped(tally) == {"language: not one of en": 3}
    documents, tally = run(language(LanguageConfig(keep=["fr", "de"])), written)
    assert [document.language for document in documents] == ["fr", "de"]
    assert dropped(tally) == {"language: not one of fr, de": 2}
    documents, _ = run(language(LanguageConfig(keep=[])), written)
    assert [document.language for document in documents] == ["en", *FOREIGN]


def test_english_prose_of_many_pages_is_english() -> None:
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    docs = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "" for path in modules[:80])
    long = [doc for doc in docs if len(doc) > 500]
    documents, _ = run(language(LanguageConfig()), long)
    assert len(long) > 20 and len(documents) > 0.9 * len(long)


def test_what_is_in_no_language_is_uncertain() -> None:
    table = "\n".join(f"{number * 7919 % 1000:.3f};{number}" for number in range(300))
    documents, tally = run(language(LanguageConfig()), [table])
    assert documents == [] and dropped(tally) == {"language: uncertain": 1}
    assert tally.histograms["language"] == {"uncertain": 1}
    documents, tally = run(language(LanguageConfig(max_distance=100)), [ENGLISH])
    assert documents == [] and dropped(tally) == {"language: uncertain": 1}


def test_texts_too_short_to_tell() -> None:
    short = ["Hi!", FOREIGN["fr"][:99]]
    documents, tally = run(language(LanguageConfig()), short)
    assert [document.language for document in documents] == ["", ""] and not tally.dropped
    assert tally.histograms["language"] == {"too short": 2}
    documents, tally = run(language(LanguageConfig(short_texts="drop")), short)
    assert documents == [] and dropped(tally) == {"language: too short to tell": 2}
    _, tally = run(language(LanguageConfig(min_characters=50)), short)
    assert dropped(tally) == {"language: not one of en": 1}


def test_a_detector_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_detector.py").write_text(
        "def by_article(text):\n"
        "    return ('en', 1.0) if ' the ' in text else ('de', 0.9) if ' und ' in text else ('xx', 0.1)\n"
        "def nonsense(text):\n"
        "    return 'en'\n"
        "broken = None\n"
    )
    (tmp_path / "without_model.py").write_text("open('/nothing/model.bin')")
    monkeypatch.syspath_prepend(tmp_path)
    config = LanguageConfig(keep=["en", "de"], detector="own_detector:by_article")
    documents, tally = run(language(config), [ENGLISH, FOREIGN["de"], FOREIGN["es"]])
    assert [document.language for document in documents] == ["en", "de"]
    assert dropped(tally) == {"language: uncertain": 1}
    with pytest.raises(BadConfig, match="own_detector:nonsense gave 'en', not"):
        run(language(LanguageConfig(detector="own_detector:nonsense")), [ENGLISH])
    for detector in (
        "without_model:x",
        "own_detector:gone",
        "own_detector:broken",
        "nowhere:at_all",
        "fasttext",
        ":x",
        "",
    ):
        with pytest.raises(
            BadConfig, match=f"the detector {re.escape(detector)} cannot be imported .* it is resiliparse"
        ):
            language(LanguageConfig(detector=detector))


def test_languages_that_the_detector_does_not_know() -> None:
    with pytest.raises(BadConfig, match="resiliparse does not know eng, klingon; it knows af, ar,"):
        language(LanguageConfig(keep=["klingon", "en", "eng"]))


def test_cleaning_by_example() -> None:
    dirty = "\ufeff\n\n\tCafe\u0301  \r\nline\x07 two \u00a0\rthree\x0c\n\n\n\n\n\nfour\t\n\n"
    assert clean_text(dirty) == "\tCafé\nline two\nthree\n\n\nfour\n"
    assert clean_text(" \n\t\x01\r\n") == ""


@given(
    st.text(alphabet=st.sampled_from(" \t\n\r\x00\x07\x85\u2028\ufeffabe\u0301\u0327éfi\u00a0"), max_size=40)
    | st.text()
)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once and unicodedata.is_normalized("NFC", once)
    assert "\r" not in once and "\n\n\n\n" not in once and (not once or once.endswith("\n"))


def test_cleaning_drops_what_is_binary_or_empty() -> None:
    tally = Tally()
    documents = [Document("A  \r\n", "0", language="en"), Document("\0ELF", "1"), Document(" ", "2")]
    assert list(clean(documents, tally)) == [Document("A\n", "0", language="en")]
    assert dropped(tally) == {"clean: binary": 1, "clean: empty": 1}
