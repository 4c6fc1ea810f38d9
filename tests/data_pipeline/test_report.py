"""The pages of `trestle prepare`: whole, harmless whatever the documents hold, and with the right numbers."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import logarithmic_bin
from data_pipeline.report import render_corpus, render_mix
from data_pipeline.report.duplicates import MOST_WORDS, mark_differences
from data_pipeline.report.markup import Html, element, escape
from data_pipeline.report.numbers import count, duration, loss, magnitude, ratio, round_size, share, size

HOSTILE = (
    '</style></title><script>alert(1)</script><img src=x onerror=\'alert(2)\'>" onload="alert(3)" '
    "\u202egnp.exe\u2066\u2069\x00\x1b[31m\x85\ufeff\ud800\uffff ]]><!-- & &lt; javascript:alert(4) https://evil.example/a.js"
)
ZERO = {"documents": 0, "bytes": 0, "tokens": 0, "samples": 0}


def corpus(name: str, weight: float, share_of_mix: float, epochs: float) -> dict[str, Any]:
    examples = [{"source": f"/crawl/{n}.warc.gz:{n}", "excerpt": f"excerpt number {n} of {name}"} for n in range(20)]
    stages = [
        ("read", 812_345, 7_654_321_000),
        ("gopher", 501_234, 2_222_000_000),
        ("deduplicate", 423_456, 1_900_000_000),
    ]
    return {
        "name": name,
        "weight": weight,
        "share": share_of_mix,
        "files": 1_234,
        "funnel": [{"stage": stage, "documents": n, "bytes": size} for stage, n, size in stages],
        "dropped": [
            {"reason": "deduplicate: a copy", "documents": 77_778, "bytes": 322_000_000, "examples": examples[:3]},
            {
                "reason": "gopher: fewer than 50 words",
                "documents": 311_111,
                "bytes": 5_432_321_000,
                "examples": examples,
            },
            {"reason": "read: invalid UTF-8", "documents": 155, "bytes": 0, "examples": []},
        ],
        "histograms": {
            "length": {logarithmic_bin(2 ** (n / 4)): 1_000 + n for n in range(20, 60)},
            "language": {"en": 400_001, "nan": 20_002, "": 3_453},
            "score": {f"{n / 20:.2f}": 5_000 + n for n in range(20)},
            "decontaminated": {"2": 41, "10": 31, "1": 51},
        },
        "held_out": {"documents": 4_111, "dropped_for_overlap": 222},
        "training": {"documents": 419_123, "bytes": 1_888_000_000, "tokens": 444_555_666, "samples": 217_068},
        "validation": {"documents": 4_111, "bytes": 12_000_000, "tokens": 2_777_888, "samples": 1_356},
        "epochs": epochs,
    }


def example() -> dict[str, Any]:
    side = {"corpus": "web", "source": "https://a.example/1", "excerpt": "the quick brown fox jumps over the lazy dog"}
    other = {"corpus": "books", "source": "b", "excerpt": "the quick red fox jumps over the dog"}
    return {
        "title": "shards",
        "sequence_length": 2_048,
        "vocab_size": 32_768,
        "tokenizer_sha256": "0123456789abcdef" * 4,
        "training_tokens": 300_000_000_000,
        "seconds": {"read web": 12.34, "encode": 4_000.0},
        "corpora": [corpus("web", 60.0, 0.6, 0.44), corpus("books", 40.0, 0.4, 4.25)],
        "duplicates": {
            "threshold": 0.8,
            "cluster_sizes": {"2": 3_001, "3": 45, "700": 1},
            "pairs": [{"jaccard": 0.91, "kept": side, "dropped": other} for _ in range(20)],
        },
        "classifier": {
            "auc": 0.9812,
            "roc": [[0, 0], [0.01, 0.4], [0.2, 0.97], [1, 1]],
            "kept_share": 0.31,
            "curated_documents": 10_101,
            "raw_documents": 20_202,
        },
    }


def empty() -> dict[str, Any]:
    return {
        **example(),
        **{"training_tokens": 0, "seconds": {}, "corpora": [], "duplicates": None, "classifier": None},
    }


def barren() -> dict[str, Any]:
    """Everything is there, with nothing in it."""
    void = {"name": "void", "weight": 1.0, "share": 1.0, "files": 0, "funnel": [], "dropped": [], "histograms": {}}
    made = {
        "held_out": {"documents": 0, "dropped_for_overlap": 0},
        "training": ZERO,
        "validation": None,
        "epochs": None,
    }
    zeros = {
        "funnel": [{"stage": "read", "documents": 0, "bytes": 0}],
        "histograms": {"length": {}, "score": {"0.00": 0}},
    }
    duplicates = {"threshold": 0.8, "cluster_sizes": {}, "pairs": []}
    classifier = {"auc": 0.5, "roc": [], "kept_share": 0.0, "curated_documents": 0, "raw_documents": 0}
    corpora = [{**void, **made}, {**void, **made, **zeros, "name": "zero"}]
    return {**empty(), "corpora": corpora, "duplicates": duplicates, "classifier": classifier}


def poisoned(value: Any) -> Any:
    """The same with every text hostile, and keys that are free text too."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return {key: poisoned(item) for key, item in value.items()} if isinstance(value, dict) else value


def hostile() -> dict[str, Any]:
    data: dict[str, Any] = poisoned(example())
    data["seconds"] = {HOSTILE: 1.0}
    for each in data["corpora"]:
        each["histograms"]["language"] = {HOSTILE: 5}
        each["histograms"][HOSTILE] = {HOSTILE: 5, "b": 1}
        each["dropped"][0]["reason"] = f"gopher: {HOSTILE}"
    return data


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts).replace("\u00a0", " ")


def pages(data: dict[str, Any]) -> list[str]:
    names = list(dict.fromkeys(each["name"] for each in data["corpora"]))
    return [render_mix(data), *(render_corpus(data, name) for name in names)]


def pictures(page: str) -> list[str]:
    """The outermost SVG elements."""
    found, depth, begin = [], 0, 0
    for tag in re.finditer("<(/?)svg", page):
        depth += -1 if tag[1] else 1
        if depth == 1 and not tag[1]:
            begin = tag.start()
        elif depth == 0:
            found.append(page[begin : tag.end() + 1])
    return found


MAKERS = [example, empty, barren, hostile]


@pytest.mark.parametrize("make", MAKERS)
def test_pages_are_well_formed_and_pictures_are_xml_with_titles(make: Any) -> None:
    for page in pages(make()):
        read = Page(page)
        page.encode()  # a lone surrogate could not be written
        identifiers = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
        assert len(set(identifiers)) == len(identifiers)
        shown = [svg for svg in map(ElementTree.fromstring, pictures(page)) if svg.get("aria-hidden") != "true"]
        assert len(shown) >= 2 or make in (empty, barren)
        for svg in shown:
            named = {child.get("id"): child.text for child in svg if child.tag in ("title", "desc")}
            assert [bool(named[key]) for key in (svg.get("aria-labelledby") or "").split()] == [True, True]


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_can_run_or_be_loaded(make: Any) -> None:
    for page in pages(make()):
        read = Page(page)
        assert {tag for tag, _ in read.elements}.isdisjoint(
            (
                "script",
                "img",
                "link",
                "iframe",
                "object",
                "embed",
                "base",
                "form",
                "input",
                "use",
                "image",
                "foreignobject",
            )
        )
        for _, attributes in read.elements:
            assert not any(key.startswith("on") for key in attributes)
            assert {"src", "srcset", "style", "action", "data", "xlink:href"}.isdisjoint(attributes)
            assert re.fullmatch(r"(\.\./)?([A-Za-z0-9_.~%-]+/)?report\.html", attributes.get("href") or "report.html")
        sheets = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(sheets[0].encode()).digest()).decode()
        policies = [a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert len(sheets) == len(policies) == 1 and "url(" not in sheets[0] and "@import" not in sheets[0]
        assert policies[0] == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        assert "\u202e" not in page and "\x00" not in page and "\x1b" not in page and "\ufeff" not in page


def test_addresses_stand_in_documents_text_alone() -> None:
    data = example()
    for pair in data["duplicates"]["pairs"]:
        pair["kept"]["source"] = "a"
    assert not any(re.search("https?://", page) for page in pages(data))


def test_hostile_text_is_shown_as_text() -> None:
    shown = (
        HOSTILE.replace("\u202e", "⟨U+202E⟩").replace("\u2066\u2069", "⟨U+2066⟩⟨U+2069⟩").replace("\x00", "⟨U+0000⟩")
    )
    shown = shown.replace("\x1b", "⟨U+001B⟩").replace("\x85", "⟨U+0085⟩").replace("\ufeff", "⟨U+FEFF⟩")
    shown = shown.replace("\ud800", "\ufffd").replace("\uffff", "\ufffd")
    for page in pages(hostile()):
        assert Page(page).text.count(shown) > 20


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_comes_back_from_an_element_and_an_attribute(text: str) -> None:
    page = element("p", text, title=text)
    root = ElementTree.fromstring(page)
    plain = escape(text).replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#x27;", "'")
    assert (root.text or "") == plain.replace("&amp;", "&")
    assert (root.get("title") or "") == plain.replace("&amp;", "&").replace("\n", " ").replace("\t", " ")
    harmless = all(character.isprintable() or character.isspace() or ord(character) > 0xFF for character in plain)
    assert harmless and not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f]", page)
    assert element("p", Html(escape(text))) == element("p", text)


def test_all_counts_appear() -> None:
    data = example()
    mix, web, books = (Page(page).text for page in pages(data))
    for number in (419_123, 444_555_666, 217_068, 812_345, 501_234, 423_456, 10_101, 20_202, 1_234):
        assert count(number) in mix, number
    for written in (
        "4.25",
        "0.44",
        "AUC 0.9812",
        "31.0 %",
        "0.91",
        "12.3 s",
        "1 h 07 min",
        "32,768",
        "0123456789abcdef",
    ):
        assert written in mix, written
    for page in (web, books):
        for stage in data["corpora"][0]["funnel"]:
            assert count(stage["documents"]) in page and size(stage["bytes"]).replace("\u00a0", " ") in page
        assert "−311,111" in page and "−38.3 %" in page and "−5.43 GB" in page
        for drop in data["corpora"][0]["dropped"]:
            assert drop["reason"] in page and count(drop["documents"]) in page
        for bins in data["corpora"][0]["histograms"].values():
            assert all(count(documents) in page for documents in bins.values())
        assert "4,111 documents" in page and "222 more held-out documents" in page
    assert all(f"excerpt number {n} of web" in web and f"excerpt number {n} of web" not in books for n in range(20))


def test_reasons_come_most_documents_first_as_shares_of_all_found() -> None:
    page = Page(render_corpus(example(), "web")).text
    begin = page.index("Why documents were dropped")
    order = [page.index(reason, begin) for reason in ("gopher: fewer", "deduplicate: a copy", "read: invalid")]
    assert order == sorted(order)
    assert share(311_111, 812_345 + 155).replace("\u00a0", " ") == "38.3 %"
    assert re.search(r"fewer than 50 words\s*311,111\s*38\.3 %", page[begin:])


def test_pages_link_to_each_other() -> None:
    data = example()
    data["corpora"][1]["name"] = "a b/<c>"
    mix, web, _ = pages(data)
    assert {"web/report.html", "a%20b%2F%3Cc%3E/report.html"} == {
        a["href"] for tag, a in Page(mix).elements if tag == "a"
    }
    assert {"../report.html", "../a%20b%2F%3Cc%3E/report.html"} == {
        a["href"] for tag, a in Page(web).elements if tag == "a"
    }
    with pytest.raises(KeyError, match="nothing"):
        render_corpus(data, "nothing")


@pytest.mark.parametrize(
    ("epochs", "warned"), [(0.44, False), (4.0, False), (4.01, True), (123.4, True), (None, False)]
)
def test_more_than_four_epochs_are_warned_of(epochs: float | None, warned: bool) -> None:
    data = example()
    data["corpora"] = [{**data["corpora"][0], "epochs": epochs}]
    for page in map(Page, pages(data)):
        assert ("Many epochs" in page.text) == warned
        assert (f"web ({ratio(epochs)} epochs)" in page.text) == warned
        assert any(a.get("class") == "warning" for _, a in page.elements) == warned
        assert ratio(epochs) in page.text
    over = [a for _, a in Page(render_mix(data)).elements if a.get("class") == "number over"]
    assert bool(over) == warned


def test_empty_parts_say_so() -> None:
    nothing = Page(render_mix(empty())).text
    for sentence in ("There is no corpus.", "No corpus has the stage quality.", "No phase was timed."):
        assert sentence in nothing
    assert "No corpus has the stage fuzzy_deduplicate." in nothing and "Many epochs" not in nothing
    mix, void, zero = (Page(page).text for page in pages(barren()))
    for sentence in ("No token was made.", "No cluster of near-duplicates.", "No pair to show.", "There is no curve."):
        assert sentence in mix
    for sentence in ("No document was read.", "No document was dropped.", "Nothing was observed."):
        assert sentence in void
    assert zero.count("No document.") == 2
    assert not any(re.search(r"\b(nan|inf|None)\b", page) for page in (nothing, mix, void, zero))


@pytest.mark.parametrize("make", MAKERS)
def test_equal_data_gives_equal_bytes_and_is_left_as_it_was(make: Any) -> None:
    data = make()
    before = copy.deepcopy(data)
    assert pages(data) == pages(copy.deepcopy(data)) and data == before


def test_columns_of_lengths_stand_where_their_bytes_are() -> None:
    data = example()
    data["corpora"][0]["histograms"] = {"length": {"100": 1, "1000": 2, "10000": 4, "1e+05": 0}}
    page = render_corpus(data, "web")
    found = re.findall(r'<rect x="([0-9.]+)" y="([0-9.]+)" width="[0-9.]+" height="([0-9.]+)" class="documents">', page)
    left, bottoms, heights = zip(*((float(x), float(y) + float(h), float(h)) for x, y, h in found), strict=True)
    assert len(left) == 3 and left[1] - left[0] == pytest.approx(left[2] - left[1], abs=0.02)
    assert bottoms == pytest.approx([bottoms[0]] * 3)
    assert heights == pytest.approx([heights[2] / 4, heights[2] / 2, heights[2]], abs=0.02)
    assert "100 B to 119 B: 1" in page.replace("\u00a0", " ")
    assert "median 10.2 kB" in page.replace("\u00a0", " ")


def test_the_words_that_differ_are_marked() -> None:
    kept, dropped = mark_differences("a b <i>c</i> d\n\ne f", "a x <i>c</i>  e f g h")
    assert kept == "a <mark>b</mark> &lt;i&gt;c&lt;/i&gt; <mark>d</mark>\n\ne f"
    assert dropped == "a <mark>x</mark> &lt;i&gt;c&lt;/i&gt;  e f <mark>g h</mark>"
    assert mark_differences("日本語の本", "日本酒の本") == ("日本<mark>語</mark>の本", "日本<mark>酒</mark>の本")
    assert mark_differences("", "") == ("", "")


@settings(max_examples=50)
@given(st.text("ab \n<", max_size=200), st.text("ab \n<", max_size=200))
def test_marking_changes_no_text_and_leaves_what_both_have(kept: str, dropped: str) -> None:
    sides = mark_differences(kept, dropped)
    for text, side in zip((kept, dropped), sides, strict=True):
        assert re.sub("</?mark>", "", side) == escape(text)
    left, right = (re.sub("<mark>.*?</mark>", " ", side, flags=re.DOTALL).split() for side in sides)
    assert left == right


def test_the_comparison_of_long_texts_is_bounded() -> None:
    begun = time.process_time()
    kept, _ = mark_differences("a b " * 200_000, "b b a a " * 100_000)
    assert time.process_time() - begun < 5
    assert kept.rindex("</mark>") < 20 * MOST_WORDS


def test_numbers_are_written_for_people() -> None:
    def plain(text: str) -> str:
        return text.replace("\u00a0", " ")

    assert [count(n) for n in (0, 1_234_567, -5)] == ["0", "1,234,567", "−5"]
    written = [plain(size(n)) for n in (0, 999, 999.6, 1_000, 99_960, 1_234_567, 7.65e9, 2e12, -1_500)]
    assert written == ["0 B", "999 B", "1.00 kB", "1.00 kB", "100 kB", "1.23 MB", "7.65 GB", "2.00 TB", "−1.50 kB"]
    assert [plain(round_size(n)) for n in (50, 1_000, 2e7)] == ["50 B", "1 kB", "20 MB"]
    written = [plain(magnitude(n)) for n in (0, 99_999, 100_000, 3.3e6, 300e9, 999.9e6)]
    assert written == ["0", "99,999", "100 thousand", "3.30 million", "300 billion", "1.00 billion"]
    written = [plain(share(n, 10_000)) for n in (0, 1, 5_940, 9_999, 10_000)]
    assert written == ["0 %", "<0.1 %", "59.4 %", ">99.9 %", "100 %"] and share(1, 0) == "–"
    assert [plain(duration(s)) for s in (0.04, 59.94, 59.96, 245, 7_384)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "4 min 05 s",
        "2 h 03 min",
    ]
    assert [ratio(x) for x in (0.44, 0.001, 12.345, 123.45, None, float("inf"))] == [
        "0.44",
        "<0.01",
        "12.35",
        "123.5",
        "–",
        "–",
    ]
    assert [plain(" ".join(loss(part, 200, str(abs(part))))) for part in (50, -2, 0)] == [
        "−50 −25.0 %",
        "+2 +1.0 %",
        "– ",
    ]
