"""Documents on their way: tallies that can be merged, files that give back what was written, what is held out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document_file import DocumentWriter, read_batches, read_documents
from data_pipeline.documents import EXAMPLES, Document, Tally, logarithmic_bin
from data_pipeline.heldout import found_shingles, is_held_out, known_shingles, overlap
from data_pipeline.stages.cleaning import clean_text

DROPS = st.lists(st.tuples(st.sampled_from(["a: x", "b: y"]), st.text(max_size=5), st.text(max_size=20)), max_size=60)


def tally_of(drops: list[tuple[str, str, str]]) -> Tally:
    tally = Tally()
    tally.files += 1
    for reason, source, text in drops:
        tally.drop(reason, source, text)
        tally.observe("length", logarithmic_bin(len(text)))
    tally.keep("read", Document("naïve", "here"))
    return tally


@given(one=DROPS, other=DROPS)
def test_tallies_of_parts_merge_to_the_tally_of_the_whole(
    one: list[tuple[str, str, str]], other: list[tuple[str, str, str]]
) -> None:
    merged, reverse, whole = tally_of(one), tally_of(other), tally_of([*one, *other])
    merged.merge(Tally.from_json(json.loads(json.dumps(tally_of(other).to_json()))))
    reverse.merge(tally_of(one))
    whole.files, whole.kept = 2, {"read": [2, 12]}
    assert merged.to_json() == reverse.to_json() == whole.to_json()
    assert all(len(drop.examples) <= EXAMPLES for drop in merged.dropped.values())


def test_a_tally_reads_as_one_line() -> None:
    line = str(tally_of([("clean: empty", "blank.txt", "")]))
    assert line == "1 files, 1 documents read, 1 kept; dropped: 1 clean: empty (blank.txt)"


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_documents_come_back_from_their_file(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("documents") / "documents.arrow"
    with DocumentWriter(path) as writer:
        for number, text in enumerate(texts):
            writer.append(text, f"source {number}")
    assert (writer.documents, writer.bytes) == (len(texts), sum(len(text.encode()) for text in texts))
    documents = list(read_documents(path))
    assert [document.text for document in documents] == texts
    assert [document.source for document in documents] == [f"source {number}" for number in range(len(texts))]


def test_large_files_come_in_batches_with_their_bytes(tmp_path: Path) -> None:
    text = "ümlaut " * 200_000
    with DocumentWriter(tmp_path / "documents.arrow") as writer:
        for number in range(12):
            writer.append(f"{number} {text}", "here")
    batches = list(read_batches(tmp_path / "documents.arrow"))
    assert len(batches) == 2 and [batch.first for batch in batches][1] == len(batches[0])
    for batch in batches:
        data, starts = batch.utf8()
        again = [bytes(data[a:b]).decode() for a, b in itertools.pairwise(starts)]
        assert again == batch.texts


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
    known = known_shingles(held_out)
    found = found_shingles(known, training)
    shares = [overlap(text, known, found) for text in held_out]
    assert shares[:3] == [1.0, 51 / 94, 0.0] and np.isnan(shares[3]) and shares[4] == 0.0
    parts = found_shingles(known, training[:1]) | found_shingles(known, training[1:])
    assert np.array_equal(parts, found)
    assert len(known_shingles([])) == 0


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_cleaning_ascii_and_other_text_is_the_same(text: str) -> None:
    assert clean_text(text + "\né") == (clean_text(text + "\ne")[:-2] + "é\n")
