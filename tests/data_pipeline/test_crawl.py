"""A crawl with all its noise, through every stage, to shards that the stream reads."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, ShardSource
from data_pipeline.decontamination import DecontaminationConfig
from data_pipeline.errors import BadCorpus
from data_pipeline.prepare import PrepareResult, prepare
from data_pipeline.quality import Classifier, QualityConfig
from data_pipeline.recipe import CorpusConfig, PrepareConfig, TokenizerConfig
from data_pipeline.shard_reader import ShardSet
from data_pipeline.stream import Stream
from data_pipeline.tokenizer import Tokenizer
from tests.data_pipeline.crawl import Page, pydoc_pages, with_noise, write_warc

#: A sentence that only an evaluation set and a few pages of the crawl have.
SECRET = (
    "the quick auditor counted nineteen silver herons above the frozen canal before anybody else had woken up at all"
)
#: In so many pages, since each may be drawn out by the quality filter; fewer than make a gram a common phrase (10).
PAGES_WITH_SECRET = 8


def crawl_pages() -> list[Page]:
    pages = list(with_noise(pydoc_pages(), seed=1))
    long = sorted((page for page in pages if page.kind == "page" and "<p>" in page.html), key=lambda page: page.url)
    told = {page.url for page in long[:PAGES_WITH_SECRET]}
    return [
        Page(page.url, page.html.replace("<p>", f"<p>{SECRET} ", 1), page.kind) if page.url in told else page
        for page in pages
    ]


def crawl_recipe(folder: Path, **changes: object) -> PrepareConfig:
    """Five corpora with GPT-3's weights; the crawl goes through every stage."""
    settings: dict[str, object] = {
        "output": str(folder / "shards"),
        "sequence_length": 64,
        "tokenizer": TokenizerConfig(vocab_size=1200, sample_bytes=400_000),
        "validation_fraction": 0.0,
        "corpora": [
            CorpusConfig(
                "crawl",
                [str(folder / "*.warc.gz")],
                60,
                stages=["extract", "clean", "language", "gopher", "personal_data", "quality", "deduplicate",
                        "fuzzy_deduplicate", "decontaminate"],
            ),
            CorpusConfig("webtext", ["{site_packages}/*.dist-info/METADATA"], 22),
            CorpusConfig("books1", ["{stdlib}/pydoc_data/topics.py"], 8),
            CorpusConfig("books2", ["{stdlib}/unittest/*.py", "{stdlib}/email/*.py"], 8),
            CorpusConfig("encyclopedia", ["{stdlib}/asyncio/*.py", "{stdlib}/json/*.py"], 3),
        ],
        "quality": QualityConfig(curated=["webtext"], pareto_alpha=0.3),
        "decontaminate": DecontaminationConfig(evaluation_sets=[str(folder / "evaluation.jsonl")]),
    }  # fmt: skip
    return PrepareConfig(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareResult, list[Page]]:
    folder = tmp_path_factory.mktemp("crawl")
    pages = crawl_pages()
    half = len(pages) // 2
    write_warc(folder / "a.warc.gz", pages[:half])
    write_warc(folder / "b.warc.gz", pages[half:])
    (folder / "evaluation.jsonl").write_text(json.dumps({"text": SECRET}) + "\n")
    return folder, prepare(crawl_recipe(folder), lambda line: None), pages


def text_of(shards: Path) -> str:
    tokenizer = Tokenizer(shards.parent / "tokenizer.model")
    shard_set = ShardSet(shards)
    rows = shard_set.read(np.arange(len(shard_set)))
    return tokenizer.decode(np.append(rows[:, :-1].ravel(), rows[-1, -1]).astype(np.int64).tolist())


def test_every_kind_of_noise_is_dropped_for_its_reason(crawled: tuple[Path, PrepareResult, list[Page]]) -> None:
    _, result, pages = crawled
    kinds = Counter(page.kind for page in pages)
    tally = result.corpora[0].tally
    dropped = {reason: drop.documents for reason, drop in tally.dropped.items()}
    assert tally.kept["read"][0] == len(pages)
    assert dropped["read: not an HTML response"] > 0
    assert sum(n for reason, n in dropped.items() if reason.startswith("language: ")) >= kinds["de"] + kinds["fr"]
    assert sum(n for reason, n in dropped.items() if reason.startswith("gopher: ")) >= kinds["boilerplate"]
    # A copy or near-copy is dropped unless a draw of the quality filter has dropped its original.
    drawn = dropped.get("quality: drawn out by its score", 0)
    copies = dropped["deduplicate: a copy of an earlier document"]
    near = dropped["fuzzy_deduplicate: nearly a copy of an earlier document"]
    assert kinds["copy"] + kinds["near-copy"] - drawn <= copies + near <= kinds["copy"] + kinds["near-copy"]
    assert copies > 0 and near > 0
    counts = [documents for documents, _ in tally.kept.values()]
    assert counts == sorted(counts, reverse=True) and 10 < counts[-1] < counts[0]
    assert list(tally.kept) == ["read", *crawl_recipe(Path("x")).corpora[0].stages]


def test_evaluation_text_is_cut_out_of_the_shards(crawled: tuple[Path, PrepareResult, list[Page]]) -> None:
    folder, result, _ = crawled
    assert sum(result.corpora[0].tally.histograms["decontaminated"].values()) >= 1
    assert "silver herons" not in text_of(folder / "shards" / "crawl")


def test_the_reports_say_what_the_result_says(crawled: tuple[Path, PrepareResult, list[Page]]) -> None:
    folder, result, _ = crawled
    report = json.loads((folder / "shards" / "report.json").read_text())
    crawl = report["corpora"][0]
    assert [row["stage"] for row in crawl["funnel"]] == list(result.corpora[0].tally.kept)
    assert crawl["training"]["documents"] == crawl["funnel"][-1]["documents"]
    share = 60 / 101
    assert crawl["epochs"] == pytest.approx(share * 300e9 / (crawl["training"]["samples"] * 64))
    assert report["classifier"]["auc"] > 0.8
    assert {pair["kept"]["corpus"] for pair in report["duplicates"]["pairs"]} == {"crawl"}
    assert all(0.8 <= pair["jaccard"] <= 1 for pair in report["duplicates"]["pairs"])
    for page in (folder / "shards" / "report.html", folder / "shards" / "crawl" / "report.html"):
        assert "fuzzy_deduplicate" in page.read_text()


def test_the_quality_filter_is_kept_beside_the_shards(crawled: tuple[Path, PrepareResult, list[Page]]) -> None:
    folder, _, _ = crawled
    scores = Classifier.load(folder / "shards" / "quality-filter.npz").scores(["Metadata-Version: 2.4 Name: package"])
    assert scores.shape == (1,) and 0 <= scores[0] <= 1


def test_the_mix_streams_with_gpt3s_weights(crawled: tuple[Path, PrepareResult, list[Page]]) -> None:
    folder, result, _ = crawled
    mix = [ShardSource(str(folder / "shards" / corpus.name), corpus.weight) for corpus in result.corpora]
    stream = Stream(DataConfig(mix=mix), seed=1)
    counts = np.bincount(stream.locate(np.arange(101_000))[0])
    assert np.abs(counts - [60_000, 22_000, 8_000, 8_000, 3_000]).max() <= 5


def test_a_corpus_that_the_filters_empty_is_refused_by_name_and_reason(tmp_path: Path) -> None:
    write_warc(tmp_path / "a.warc.gz", [Page(f"https://de.example/{n}", page.html) for n, page in
                                        enumerate(p for p in crawl_pages() if p.kind == "de")])  # fmt: skip
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"text": SECRET}) + "\n")
    recipe = crawl_recipe(tmp_path)
    recipe.corpora = [CorpusConfig("crawl", [str(tmp_path / "*.warc.gz")], stages=["extract", "clean", "language"])]
    recipe.quality = QualityConfig()
    with pytest.raises(BadCorpus, match=r"corpus crawl is empty: .*language: not one of en"):
        prepare(recipe, lambda line: None)


@pytest.mark.parametrize("damaged", ["truncated WARC", "broken gzip"])
def test_a_damaged_source_stops_by_default_and_can_be_used_up_to_the_damage(tmp_path: Path, damaged: str) -> None:
    count = write_warc(tmp_path / "whole.warc.gz", list(pydoc_pages())[:40])
    content = (tmp_path / "whole.warc.gz").read_bytes()
    (tmp_path / "whole.warc.gz").unlink()
    if damaged == "truncated WARC":
        (tmp_path / "a.warc.gz").write_bytes(content[: len(content) // 2])
    else:
        draw = random.Random(0)
        lines = b"".join(json.dumps({"text": draw.randbytes(2000).hex()}).encode() + b"\n" for _ in range(5000))
        packed = bytearray(gzip.compress(lines, 1))
        packed[len(packed) // 2] ^= 0xFF
        (tmp_path / "a.jsonl.gz").write_bytes(packed)
    recipe = PrepareConfig(
        output=str(tmp_path / "shards"),
        corpora=[CorpusConfig("crawl", [str(tmp_path / "a.*")], stages=["extract"])],
        sequence_length=16,
        tokenizer=TokenizerConfig("bpe", 400),
        validation_fraction=0.0,
    )
    with pytest.raises(BadCorpus, match=r"a\..* damaged_files: keep") as error:
        prepare(recipe, lambda line: None)
    assert "\n" not in str(error.value)
    recipe.damaged_files = "keep"
    tally = prepare(recipe, lambda line: None).corpora[0].tally
    assert 0 < tally.kept["extract"][0] < (count if damaged == "truncated WARC" else 5000)
    assert tally.dropped["read: the file is damaged from here on"].documents == 1
