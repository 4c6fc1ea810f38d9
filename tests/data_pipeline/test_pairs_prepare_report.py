"""The report on pairs: what it shows, that nothing in it runs, that it is the same for the same pairs."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.pairs.recipe import PairCorpusConfig
from data_pipeline.pairs.report import render_corpus, render_mix
from tests.data_pipeline.pair_recipes import pair_recipe, run
from tests.data_pipeline.pictures import encoded, scene, tar_members, write_folder, write_tar

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> \u202e reversed'


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    folder = write_folder(root / "photos", range(30))
    for seed in range(30, 50):
        (folder / f"{seed:03d}.jpg").write_bytes(encoded(scene(seed)[0]))  # no captions
    (folder / "cut.jpg").write_bytes(encoded(scene(60)[0])[:900])
    (folder / "cut.txt").write_text("a truncated picture")
    (folder / "hostile.jpg").write_bytes(encoded(scene(61)[0]))
    (folder / "hostile.txt").write_text(HOSTILE)
    (folder / "wide.png").write_bytes(encoded(scene(62, (400, 70))[0], "PNG"))
    (folder / "wide.txt").write_text(HOSTILE)
    (folder / "z.jpg").write_bytes(encoded(scene(2)[0], quality=50))
    (folder / "z.txt").write_text("nearly the same picture")
    write_tar(root / "tars" / "0.tar", tar_members(range(70, 80)))
    corpora = [PairCorpusConfig("photos", [str(folder)]), PairCorpusConfig("tars", [str(root / "tars")])]
    run(pair_recipe(root / "out", *corpora, validation_fraction=0.2))
    return root / "out"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_report_json_tells_the_funnel_the_reasons_and_the_sets(output: Path) -> None:
    data = json.loads((output / "report.json").read_text())
    photos, tars = data["corpora"]
    funnel = {stage["stage"]: stage["pairs"] for stage in photos["funnel"]}
    assert funnel == {
        "found": 54, "caption": 34, "language": 34, "read": 34, "picture": 33, "size": 32, "copies": 32,
        "near copies": 31,
    }  # fmt: skip
    dropped = {drop["reason"]: drop["pairs"] for drop in photos["dropped"]}
    assert dropped == {
        "caption: missing": 20,
        "picture: truncated or damaged": 1,
        "size: sides of more than 3 to 1": 1,
        "near copies: a picture that looks like one before": 1,
    }
    assert sum(dropped.values()) == funnel["found"] - funnel["near copies"]
    assert photos["training"]["samples"] + photos["validation"]["samples"] == 31
    assert tars["dropped"] == [] and data["duplicates"]["cluster_sizes"] == {"2": 1}
    (near,) = (
        photos["dropped"][-1]["examples"]
        if photos["dropped"][-1]["reason"].startswith("near")
        else [
            example for drop in photos["dropped"] if drop["reason"].startswith("near") for example in drop["examples"]
        ]
    )
    assert near["kept"]["caption"] == scene(2)[1]


def test_the_contact_sheet_shows_kept_and_dropped_pairs_with_their_captions_and_reasons(output: Path) -> None:
    text = (output / "photos" / "report.html").read_text()
    page = Page(text)
    images = [attributes["src"] or "" for attributes in page.all("img")]
    for source in images:
        assert source.startswith("data:image/jpeg;base64,")
        shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert max(shown.size) <= 144
    # 24 kept, 12 of those without a caption, the wide one, the near copy and what is kept instead.
    assert len(images) == 24 + 12 + 1 + 2
    words = " ".join(page.text)
    for reason in (
        "missing",
        "truncated or damaged",
        "sides of more than 3 to 1",
        "a picture that looks like one before",
    ):
        assert reason in words
    assert "no picture" in words and "nearly the same picture" in words and "no caption" in words


def test_captions_are_shown_and_nothing_in_a_page_runs_or_is_loaded(output: Path) -> None:
    for path in (output / "report.html", output / "photos" / "report.html", output / "tars" / "report.html"):
        page = Page(path.read_text())
        (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
        assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
        assert not page.all("script") and not page.all("link")
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert all(re.fullmatch(r"(\.\./)?([a-z]+/)?report\.html", a["href"] or "") for a in page.all("a"))
    text = " ".join(Page((output / "photos" / "report.html").read_text()).text)
    assert "<script>alert(1)</script>" in text and "\u202e" not in text and "⟨U+202E⟩" in text


def test_equal_data_gives_equal_pages_and_a_picture_that_is_none_is_left_out(output: Path) -> None:
    data = json.loads((output / "report.json").read_text())
    assert render_mix(data).encode() == (output / "report.html").read_bytes()
    assert render_corpus(data, "photos").encode() == (output / "photos" / "report.html").read_bytes()
    data["corpora"][0]["kept"][0]["picture"] = '"onload="alert(1)'
    assert "onload" not in render_mix(data)
    with pytest.raises(KeyError):
        render_corpus(data, "none")
