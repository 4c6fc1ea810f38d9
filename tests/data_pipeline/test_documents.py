"""Files → documents → kept documents."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning import Deduplicator, clean, clean_text, is_held_out
from data_pipeline.config import CorpusConfig
from data_pipeline.errors import BadConfig, BadCorpus
from data_pipeline.heldout import overlaps
from data_pipeline.readers import Document, Funnel, find_files, read_documents

TEXTS = ["first text", "second\ntext with ümlaut", "third 漢字"]


def corpus(*sources: object, **changes: str) -> CorpusConfig:
    return CorpusConfig("c", [str(source) for source in sources], **changes)  # type: ignore[arg-type]


def texts(config: CorpusConfig, funnel: Funnel | None = None) -> list[str]:
    return [document.text for document in read_documents(config, funnel or Funnel())]


def json_lines(field: str = "text") -> bytes:
    return "".join(json.dumps({field: text, "n": 1}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json_lines()))
    (tmp_path / "c.jsonl.zst").write_bytes(
        zstandard.compress(json_lines()[:30]) + zstandard.compress(json_lines()[30:])
    )
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": TEXTS}), tmp_path / "d.parquet")
    for path in tmp_path.iterdir():
        assert texts(corpus(path)) == TEXTS
    assert texts(corpus(tmp_path)) == TEXTS * 4
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    (folder / "3.gz").write_bytes(gzip.compress(b"zipped"))
    assert texts(corpus(tmp_path / "folder")) == [*TEXTS, "zipped"]


def test_another_text_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines("body"))
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "b.parquet")
    assert texts(corpus(tmp_path, text_field="body")) == TEXTS * 2
    funnel = Funnel()
    assert texts(corpus(tmp_path / "a.jsonl"), funnel) == []
    assert funnel.dropped == {'without a text field "text"': 3}
    with pytest.raises(BadCorpus, match=r'b\.parquet has no column "text" but body'):
        texts(corpus(tmp_path / "b.parquet"))


def test_files_come_once_in_a_fixed_order_and_can_be_excluded(tmp_path: Path) -> None:
    for name in ("b.md", "a.md", "skip/c.md", "d.rst"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    config = corpus(tmp_path / "*.md", tmp_path / "**/*.md", tmp_path / "nothing/*.md")
    assert texts(config) == ["a.md", "b.md", "skip/c.md"]
    config.exclude = ["*/skip/*"]
    assert texts(config) == ["a.md", "b.md"]


def test_placeholders_find_the_running_python() -> None:
    assert any(path.endswith("json/decoder.py") for path in find_files(corpus("{stdlib}/json/*.py")))
    assert find_files(corpus("{site_packages}/*.dist-info/METADATA"))
    with pytest.raises(BadConfig, match=r"only \{stdlib\} and \{site_packages\}"):
        find_files(corpus("{home}/*"))
    with pytest.raises(BadCorpus, match="no file matches /nothing/here"):
        find_files(corpus("/nothing/here"))


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    os.symlink("nowhere", tmp_path / "gone.txt")
    (tmp_path / "lines.jsonl").write_bytes(
        b'{"text": "\xff"}\n{"text": \n{"text": "\\ud800"}\n["x"]\n\n{"text": "fine"}'
    )
    funnel = Funnel()
    assert texts(corpus(tmp_path), funnel) == ["good", "fine"]
    assert funnel.dropped == {
        "invalid UTF-8": 3,
        "unreadable": 1,
        "broken JSON": 1,
        'without a text field "text"': 1,
    }
    assert funnel.examples["unreadable"] == [f"{tmp_path}/gone.txt: No such file or directory"]
    assert funnel.examples["invalid UTF-8"] == [
        f"{tmp_path}/{n}" for n in ("latin.txt", "lines.jsonl:1", "lines.jsonl:3")
    ]
    assert (funnel.files, funnel.read) == (4, 2)
    assert "\n" not in str(funnel) and "gone.txt" in str(funnel)


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "not gz", "not parquet"])
def test_a_file_that_breaks_off_is_named(tmp_path: Path, kind: str) -> None:
    long = json_lines() * 2000
    path = tmp_path / {"gz": "a.jsonl.gz", "zst": "a.jsonl.zst", "not gz": "a.gz"}.get(kind, "a.parquet")
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS * 100}), path)
        content = path.read_bytes()
    else:
        content = {"gz": gzip.compress(long), "zst": zstandard.compress(long)}.get(kind, long)
    path.write_bytes(content if kind.startswith("not") else content[: len(content) * 2 // 3])
    with pytest.raises(BadCorpus) as error:
        texts(corpus(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


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
    assert clean_text(once) == once
    assert "\r" not in once and "\n\n\n\n" not in once and (not once or once.endswith("\n"))


def test_stages_work_on_a_list_and_give_reasons() -> None:
    funnel = Funnel()
    documents = [Document(text, str(n)) for n, text in enumerate(["A b\n", "a  B", "\0ELF", " ", "c"])]
    kept = list(Deduplicator()(clean(documents, funnel), funnel))
    assert [document.source for document in kept] == ["0", "4"]
    assert funnel.dropped == {"duplicate": 1, "binary": 1, "empty": 1}


def test_equal_texts_are_held_out_together_and_in_proportion() -> None:
    held_out = [is_held_out(f"text number {n}", 0.1) for n in range(5000)]
    assert sum(held_out) == pytest.approx(500, abs=85)  # four standard deviations
    assert held_out == [is_held_out(f"TEXT  number {n}\n", 0.1) for n in range(5000)]
    assert not any(is_held_out(f"{n}", 0.0) for n in range(100))


def test_overlap_is_the_share_of_shared_shingles() -> None:
    words = [f"word{n}" for n in range(200)]
    held_out = [
        " ".join(words[:100]),  # all of it in the training text
        " ".join([*words[100:158], *(f"new{n}" for n in range(43))]),  # 51 of its 94 shingles
        " ".join(f"other{n}" for n in range(100)),
        "too short",
        " ".join(reversed(words[:100])),  # the same words in another order
    ]
    training = [" ".join(words).upper(), "something else entirely"]
    shares = overlaps(held_out, training)
    assert shares[:3].tolist() == [1.0, 51 / 94, 0.0] and np.isnan(shares[3]) and shares[4] == 0.0
    assert overlaps([], training).tolist() == []
