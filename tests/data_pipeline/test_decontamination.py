"""Evaluation n-grams: what matches, how often, and what is left of a text."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.decontamination import DecontaminationConfig, EvaluationGrams, cut, gram_documents, matches
from data_pipeline.errors import BadConfig, EnvironmentFailure

CONFIG = DecontaminationConfig()
SMALL = DecontaminationConfig(
    ngram_words=3, min_words=2, window_characters=4, min_piece_characters=3, max_pieces=4, max_gram_documents=2
)
WORDS = [f"word{n}" for n in range(2000)]
TEXT = st.lists(st.sampled_from(["a", "B", "c.", "—", "$", "don't", "É", "\n", "\u2003", "x" * 9]), max_size=40).map(
    " ".join
)


def bare_words(text: str) -> list[tuple[str, int, int]]:
    """The definition, character by character: word, start and end."""
    found = []
    for match in re.finditer(r"\S+", text):
        kept = [c.lower() for c in match.group() if unicodedata.category(c)[0] not in "PS"]
        if kept:
            found.append(("".join(kept), match.start(), match.end()))
    return found


def reference_grams(texts: list[str], config: DecontaminationConfig) -> set[tuple[str, ...]]:
    grams = set()
    for text in texts:
        words = [word for word, _, _ in bare_words(text)]
        if len(words) >= config.min_words:
            size = min(len(words), config.ngram_words)
            grams |= {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
    return grams


def reference_spans(text: str, grams: set[tuple[str, ...]]) -> list[tuple[int, int]]:
    words = bare_words(text)
    sizes = {len(gram) for gram in grams}
    spans = [
        (words[i][1], words[i + size - 1][2])
        for size in sizes
        for i in range(len(words) - size + 1)
        if tuple(word for word, _, _ in words[i : i + size]) in grams
    ]
    return sorted(spans)


def spans(text: str, grams: EvaluationGrams) -> list[tuple[int, int]]:
    _, starts, ends = matches(text, grams)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def cleaned(text: str, grams: EvaluationGrams, config: DecontaminationConfig = CONFIG) -> list[str] | None:
    return cut(text, matches(text, grams), np.zeros(len(grams), dtype=bool), config)


# -- matching ----------------------------------------------------------------------------------------------------------


@given(st.lists(TEXT, max_size=4), TEXT)
def test_matches_are_those_of_the_definition(evaluation: list[str], text: str) -> None:
    expected = reference_grams(evaluation, SMALL)
    grams = EvaluationGrams.of(evaluation, SMALL)
    assert len(grams) == len(expected)
    assert spans(text, grams) == reference_spans(text, expected)
    index, _, _ = matches(text, grams)
    assert len(np.unique(index)) == len({gram for gram in expected if reference_spans(text, {gram})})


def test_case_punctuation_and_spacing_do_not_matter() -> None:
    grams = EvaluationGrams.of(["It's a well-known fact that dogs (mostly) don't eat grass, or do they?"], CONFIG)
    text = "Well:\n «ITS a wellknown FACT — that dogs mostly dont\teat grass… or do they» say some."
    assert spans(text, grams) == [(7, 75)] and text[7:75].startswith("«ITS") and text[7:75].endswith("they»")


def test_short_evaluation_texts_match_as_a_whole_down_to_eight_words() -> None:
    evaluation = [" ".join(WORDS[:7]), " ".join(WORDS[10:18]), " ".join(WORDS[20:32]), " ".join(WORDS[40:54])]
    grams = EvaluationGrams.of(evaluation, CONFIG)
    assert grams.lengths.tolist() == [8, 12, 13] and np.diff(grams.starts).tolist() == [1, 1, 2]
    assert [len(spans(text, grams)) for text in evaluation] == [0, 1, 1, 2]
    assert spans(" ".join(WORDS[10:17]), grams) == spans(" ".join(WORDS[20:31]), grams) == []


def test_grams_are_counted_once_a_document() -> None:
    grams = EvaluationGrams.of([" ".join(WORDS[:13]), " ".join(WORDS[20:33])], CONFIG)
    once, twice = " ".join(WORDS[:13]), " ".join([*WORDS[20:33], "x", *WORDS[20:33]])
    counts = gram_documents([once, twice, twice, "none of it"], grams)
    first, second = matches(once, grams)[0][0], matches(twice, grams)[0][0]
    assert (counts[first], counts[second]) == (1, 2)


def test_no_evaluation_text_means_no_match() -> None:
    grams = EvaluationGrams.of(["too short", ""], CONFIG)
    assert len(grams) == 0 and spans(" ".join(WORDS), grams) == []
    assert cleaned(" ".join(WORDS), grams) == [" ".join(WORDS)]
    assert gram_documents(["any"], grams).tolist() == []


def test_lengths_that_cannot_be_are_refused() -> None:
    for config in (DecontaminationConfig(min_words=14), DecontaminationConfig(min_words=0)):
        with pytest.raises(BadConfig, match="1 <= min_words <= ngram_words"):
            EvaluationGrams.of([], config)


# -- cutting -----------------------------------------------------------------------------------------------------------


@given(st.lists(TEXT, min_size=1, max_size=3), TEXT, st.booleans())
def test_pieces_come_in_order_and_hold_no_gram(evaluation: list[str], text: str, contaminate: bool) -> None:
    if contaminate:
        text = f"{text} {evaluation[0]} {text}"
    grams = EvaluationGrams.of(evaluation, SMALL)
    ignored = np.arange(len(grams)) % 3 == 1
    found = matches(text, grams)
    pieces = cut(text, found, ignored, SMALL)
    if ignored[found[0]].all():
        assert pieces == [text]
        return
    place = 0
    for piece in pieces or []:
        place = text.index(piece, place) + len(piece)
        assert len(piece) >= SMALL.min_piece_characters
        assert ignored[matches(piece, grams)[0]].all()


def test_a_match_goes_with_its_window_and_no_word_is_cut() -> None:
    before, after = " ".join(WORDS[100:200]), " ".join(WORDS[300:400])
    grams = EvaluationGrams.of([" ".join(WORDS[:13])], CONFIG)
    text = f"{before} {' '.join(WORDS[:13])}\n{after}\n"
    pieces = cleaned(text, grams)
    assert pieces is not None and len(pieces) == 2
    assert before.startswith(pieces[0]) and after.endswith(pieces[1].rstrip()) and pieces[1].endswith("\n")
    for whole, piece in ((before, pieces[0]), (after, pieces[1].rstrip())):
        removed = len(whole) - len(piece)
        assert 200 <= removed <= 200 + len("word100 ") and set(piece.split()) < set(whole.split())


def contaminated(times: int, between: int) -> str:
    """A match after every so many characters of other words, and after the last as many again."""
    other = ("other text " * (between // 11 + 1))[:between]
    return other + "".join(f" {' '.join(WORDS[:13])} {other}" for _ in range(times))


def test_short_pieces_go_and_too_many_pieces_drop_the_document() -> None:
    grams = EvaluationGrams.of([" ".join(WORDS[:13])], CONFIG)
    assert cleaned(contaminated(1, 380), grams) == []  # two pieces of less than 180
    assert [len(piece) >= 200 for piece in cleaned(contaminated(1, 450), grams) or []] == [True, True]
    ten, eleven = cleaned(contaminated(9, 700), grams), cleaned(contaminated(10, 700), grams)
    assert ten is not None and len(ten) == 10 and eleven is None
    loose = DecontaminationConfig(max_pieces=11, window_characters=0, min_piece_characters=0)
    assert [piece.strip() for piece in cleaned(contaminated(10, 700), grams, loose) or []] == [
        contaminated(0, 700).strip()
    ] * 11
    assert cleaned(" ".join(WORDS[:13]), grams) == []
    # Pieces too short to keep count too.
    assert cleaned(contaminated(10, 450), grams) is None


def test_overlapping_windows_are_one() -> None:
    grams = EvaluationGrams.of([" ".join(WORDS[:40])], CONFIG)
    filler = "other text " * 60
    text = f"{filler}{' '.join(WORDS[:40])} close by {' '.join(WORDS[10:30])} {filler}"
    pieces = cleaned(text, grams)
    assert pieces is not None and len(pieces) == 2 and not any("word" in piece or "close" in piece for piece in pieces)


# -- files and speed ---------------------------------------------------------------------------------------------------


def test_saved_grams_come_back(tmp_path: Path) -> None:
    grams = EvaluationGrams.of([" ".join(WORDS[:100]), " ".join(WORDS[200:209])], CONFIG)
    grams.save(tmp_path / "a.npz")
    again = EvaluationGrams.load(tmp_path / "a.npz")
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    text = " ".join(WORDS[50:300])
    assert spans(text, again) == spans(text, grams) != []
    EvaluationGrams.of([], CONFIG).save(tmp_path / "empty.npz")
    assert len(EvaluationGrams.load(tmp_path / "empty.npz")) == 0


def test_damaged_grams_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "grams.npz"
    grams = EvaluationGrams.of([" ".join(WORDS[:20]), " ".join(WORDS[200:209])], CONFIG)
    grams.save(path)
    content = path.read_bytes()
    messages = []
    for place in range(0, len(content), 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        try:
            loaded = EvaluationGrams.load(path)
            assert (loaded.hashes == grams.hashes).all() and (loaded.starts == grams.starts).all()
        except EnvironmentFailure as error:
            messages.append(str(error))
    assert len(messages) > len(content) / 4 and all(str(path) in m and "\n" not in m for m in messages)
    np.savez(path, lengths=np.array([8]), starts=np.array([0, 5]), hashes=np.zeros(4, dtype=np.uint64))
    with pytest.raises(EnvironmentFailure, match="make it again"):
        EvaluationGrams.load(path)
    path.write_bytes(b"")
    with pytest.raises(EnvironmentFailure, match="make it again"):
        EvaluationGrams.load(path)


def test_matching_is_faster_than_reading_from_a_disk() -> None:
    draw = random.Random(0)
    vocabulary = [f"{draw.choice('abcdefgh')}{n}" for n in range(5000)]
    evaluation = [" ".join(draw.choices(vocabulary, k=draw.randrange(8, 60))) for _ in range(3000)]
    grams = EvaluationGrams.of(evaluation, CONFIG)
    texts = [" ".join(draw.choices(vocabulary, k=500)) for _ in range(300)]
    begin = time.process_time()
    hits = sum(len(matches(text, grams)[0]) for text in texts)
    rate = sum(map(len, texts)) / (time.process_time() - begin)
    assert hits == 0 and rate > 3e6
