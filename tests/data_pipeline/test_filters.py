"""The rules of Gopher and C4 and the masking of personal data, each just inside and just outside its threshold."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.documents import Document, StageFunction, Tally
from data_pipeline.errors import BadConfig
from data_pipeline.stages.c4 import C4Config, c4
from data_pipeline.stages.gopher import GopherConfig, gopher
from data_pipeline.stages.personal_data import PersonalDataConfig, personal_data
from data_pipeline.stages.repetition import RepetitionConfig, gram_fractions, line_fractions, repetition
from data_pipeline.stages.words import Words, find_words

LICENSE = Path(__file__).parents[2] / "LICENSE"
EVERYTHING = GopherConfig(min_words=0, min_mean_word_length=0, min_words_with_letter=0, min_stop_words=0)
NO_REPETITION_RULE = [1.0] * 13
STAGES = [gopher(GopherConfig()), repetition(RepetitionConfig()), c4(C4Config()), personal_data(PersonalDataConfig())]
WIDE = st.text(st.characters(), max_size=200)  # lone surrogates too
DENSE = st.text(st.sampled_from("ab \n\t.!?#…•-1+(@:\u2028\u00a0é\ud800"), max_size=300)


def prose() -> list[str]:
    """The paragraphs of the Apache License, a line each."""
    paragraphs = LICENSE.read_text().split("APPENDIX")[0].split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs if len(paragraph.split()) > 20]


def apply(stage: StageFunction, text: str) -> tuple[str | None, Tally]:
    """The text that comes out, or None if it is dropped."""
    tally = Tally()
    texts = [document.text for document in stage([Document(text, "source")], tally)]
    return (texts[0] if texts else None), tally


def reason(stage: StageFunction, text: str) -> str | None:
    kept, tally = apply(stage, text)
    assert (kept is None) == (len(tally.dropped) == 1)
    return next(iter(tally.dropped), None)


def words(count: int, word: str = "word") -> list[str]:
    return ["the", "and", *[word] * (count - 2)]


# -- Gopher ------------------------------------------------------------------------------------------------------------


def lines_of(marked: int, line: str) -> str:
    return "\n".join([line] * marked + ["the line and five more words"] * (10 - marked))


@pytest.mark.parametrize(
    ("inside", "outside", "why"),
    [
        (words(50), words(49), "fewer than 50 words"),
        (words(100_000), words(100_001), "more than 100000 words"),
        (["the"] * 49 + ["and"], ["the"] * 48 + ["and", "to"], "mean word length below 3"),
        (words(50, "x" * 10)[:-2] + ["x" * 17] * 2, [*words(50, "x" * 10)[:-1], "x" * 25], "mean word length above 10"),
        (words(90) + ["#"] * 10, words(90) + ["#"] * 9 + ["##"], "more than 0.1 number signs a word"),
        (["x..."] * 10 + words(90), ["x..."] * 9 + ["...…"] + words(90), "more than 0.1 ellipses a word"),
        ([lines_of(9, "- the words and two more")], [lines_of(10, "• the words and two more")], "start with a bullet"),
        ([lines_of(3, "the words and two more...")], [lines_of(4, "the words and two more…")], "end with an ellipsis"),
        (words(80) + ["1234"] * 20, words(80) + ["1234"] * 21, "less than 0.8 of the words contain a letter"),
        (words(50), ["the"] * 10 + ["The"] * 2 + ["word"] * 40, "fewer than 2 stop words"),
        ([*words(50)[1:], "TO"], [*words(50)[1:], "into"], "fewer than 2 stop words"),
    ],
)
def test_gopher_allows_the_threshold_and_no_more(inside: list[str], outside: list[str], why: str) -> None:
    stage = gopher(GopherConfig())
    assert reason(stage, " ".join(inside)) is None
    found = reason(stage, " ".join(outside))
    assert found is not None and found.startswith("gopher: ") and found.endswith(why)


def test_gopher_thresholds_and_words_are_the_configs() -> None:
    french = GopherConfig(min_words=3, stop_words=["le", "et"], min_stop_words=2)
    assert reason(gopher(french), "Le chat, et la souris.") is None
    assert reason(gopher(french), "The cat and the mouse.") == "gopher: fewer than 2 stop words"
    assert reason(gopher(EVERYTHING), "") is None
    with pytest.raises(BadConfig, match="stop_words has 1"):
        gopher(GopherConfig(stop_words=["the", "the"]))


def test_words_are_what_whitespace_delimits() -> None:
    text = "One,\u00a0two  thrée\u2003\n4-5 …\ud800 ٣\U00020000 x\x1cy"
    found = find_words(text, "plain")
    assert [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)] == text.split()
    assert found.with_letter == sum(any(map(str.isalpha, word)) for word in text.split())


@given(WIDE | DENSE)
def test_words_agree_with_split_for_any_text(text: str) -> None:
    found = find_words(text, "plain")
    spelled = [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)]
    assert spelled == text.split()
    hashes: dict[str, int] = {}
    for word, value in zip(spelled, found.hashes.tolist(), strict=True):
        assert hashes.setdefault(word, value) == value
    assert len(set(hashes.values())) == len(hashes)


# -- repetition --------------------------------------------------------------------------------------------------------


def reference_fractions(text: str) -> list[float]:
    """The definitions, word by word."""
    spelled = text.split()
    total = sum(map(len, spelled))
    fractions = []
    for n in range(2, 11):
        grams = [tuple(spelled[i : i + n]) for i in range(len(spelled) - n + 1)]
        counts = Counter(grams)
        most = max(counts.values(), default=0)
        if n > 4:
            choices = [{i + k for i in range(len(grams)) if grams[i] in grams[:i] for k in range(n)}]
        elif most >= 2:
            top = [gram for gram, count in counts.items() if count == most]
            choices = [{i + k for i in range(len(grams)) if grams[i] == gram for k in range(n)} for gram in top]
        else:
            choices = [set()]
        covered = max(sum(len(spelled[i]) for i in places) for places in choices)
        fractions.append(covered / total if total else 0.0)
    return fractions


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "\n"]), max_size=40) | st.lists(st.sampled_from("xy"), max_size=60))
def test_ngram_fractions_are_those_of_their_definition(spelled: list[str]) -> None:
    text = " ".join(spelled)
    assert gram_fractions(find_words(text, "plain")).tolist() == reference_fractions(text)


def test_ngram_fractions_of_long_prose() -> None:
    text = "\n".join(prose()[:12] + prose()[3:6])
    found = gram_fractions(find_words(text, "plain")).tolist()
    assert found == reference_fractions(text)
    assert found[3:] == sorted(found[3:], reverse=True) and 0 < found[-1] < found[3] < 1


def test_line_fractions_by_example() -> None:
    lines, line_characters, paragraphs, characters = line_fractions("ab\n\n  ab \ncd\n \nab\n\nefgh\n\n\n\nab\n")
    assert (lines, line_characters) == (3 / 6, 6 / 14)  # ab, ab, cd, ab, efgh, ab
    assert (paragraphs, characters) == (2 / 5, 4 / 15)  # ab; ab and cd; ab; efgh; ab
    assert line_fractions("") == line_fractions(" \n\n") == (0, 0, 0, 0)


def distinct(count: int) -> list[str]:
    return [f"{n:010}" for n in range(count)]


def copies(count: int, separator: str) -> str:
    """Ten pieces, so many of them copies of another."""
    return separator.join(distinct(10 - count) + distinct(1) * count)


def top(size: int, times: int) -> str:
    """A hundred words, all of them unlike, but for a run that comes again and again."""
    return " ".join(distinct(100 - size * times) + ["abcd"[n] * 10 for n in range(size)] * times)


def again(count: int) -> str:
    """A hundred words, the last so many of them a repetition of the first."""
    return " ".join(distinct(100 - count) + distinct(count))


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "why"),
    [
        ("duplicate_lines", copies(3, "\n"), copies(4, "\n"), "0.3 of the lines are duplicates"),
        ("duplicate_line_characters", copies(2, "\n"), copies(3, "\n"), "0.2 of the characters in duplicate lines"),
        ("duplicate_paragraphs", copies(3, "\n\n"), copies(4, "\n \n"), "0.3 of the paragraphs are duplicates"),
        (
            "duplicate_paragraph_characters",
            copies(2, "\n\n"),
            copies(3, "\n\n"),
            "0.2 of the characters in duplicate p",
        ),
        ("top_2_gram", top(2, 10), top(2, 11), "0.2 of the characters in the top 2-gram"),
        ("top_3_gram", top(3, 6), top(3, 7), "0.18 of the characters in the top 3-gram"),
        ("top_4_gram", top(4, 4), top(4, 5), "0.16 of the characters in the top 4-gram"),
        ("duplicate_5_grams", again(15), again(16), "0.15 of the characters in duplicate 5-grams"),
        ("duplicate_6_grams", again(14), again(15), "0.14 of the characters in duplicate 6-grams"),
        ("duplicate_7_grams", again(13), again(14), "0.13 of the characters in duplicate 7-grams"),
        ("duplicate_8_grams", again(12), again(13), "0.12 of the characters in duplicate 8-grams"),
        ("duplicate_9_grams", again(11), again(12), "0.11 of the characters in duplicate 9-grams"),
        ("duplicate_10_grams", again(10), again(11), "0.1 of the characters in duplicate 10-grams"),
    ],
)
def test_repetition_allows_the_threshold_and_no_more(rule: str, inside: str, outside: str, why: str) -> None:
    config = RepetitionConfig(*NO_REPETITION_RULE)
    setattr(config, rule, getattr(RepetitionConfig(), rule))
    assert reason(repetition(config), inside) is None
    found = reason(repetition(config), outside)
    assert found is not None and found.startswith(f"repetition: more than {why}")


# -- C4 ----------------------------------------------------------------------------------------------------------------

PAGE = ["This is the first sentence. Here is another one!", "Does the page end here, with a question?"]


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("Five words make a line.", "Five words make a line."),
        ("Four words do not.", None),
        ('She said "so it is done"', 'She said "so it is done"'),
        ("She said “so it is done”", "She said “so it is done”"),
        ("A heading that ends in nothing", None),
        ("A line that goes on and on...", None),
        ("Please enable JavaScript to see this page.", None),
        ("You agree to our Terms of Use by reading.", None),
        ("This site uses cookies and so does that.", None),
        ("The sea is deep.[12][citation needed]", None),  # four words without the markers
        ("The sea is very deep.[12][citation needed]", "The sea is very deep."),
        ("A word as long as " + "x" * 1000 + ".", None),
        ("A word as long as " + "x" * 999 + ".", "A word as long as " + "x" * 999 + "."),
    ],
)
def test_c4_keeps_and_removes_lines(line: str, left: str | None) -> None:
    kept, tally = apply(c4(C4Config()), "\n".join([PAGE[0], "", "  " + line, PAGE[1], ""]))
    assert kept == "\n".join([PAGE[0], *([left] if left else []), PAGE[1], ""])
    assert tally.histograms == {"c4: share of the lines kept": {"1.0" if left else "0.7": 1}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\n".join(PAGE), None),
        (PAGE[0], "c4: fewer than 3 sentences"),
        ("It is by e.g. Dr. Who himself, 3.5 of it. It ends.", None),  # Dr. counts: the rule knows no abbreviations
        ("\n".join(PAGE) + "\nLorem Ipsum", "c4: lorem ipsum"),
        ("\n".join(PAGE) + "\n{", "c4: curly bracket"),
        ("", "c4: fewer than 3 sentences"),
    ],
)
def test_c4_drops_pages(text: str, why: str | None) -> None:
    assert reason(c4(C4Config()), text) == why


def test_c4_blocked_words_are_whole_words_in_any_case() -> None:
    stage = c4(C4Config(blocked_words=["Question", "first  SENTENCE", "c++"]))
    assert reason(stage, "\n".join(PAGE)) == "c4: blocked word"
    assert reason(stage, "\n".join(PAGE).replace("question", "questioning")) == "c4: blocked word"
    fine = "\n".join(PAGE).replace("question", "questioning").replace("first", "1st")
    assert reason(stage, fine) is None
    assert reason(stage, fine.replace("another", "C++")) == "c4: blocked word"
    assert reason(stage, fine.replace("another", "Vitamin-C+")) is None


def test_c4_rules_can_be_turned_off() -> None:
    config = C4Config(
        end_marks=[],
        min_line_words=0,
        min_sentences=0,
        remove_javascript=False,
        remove_policies=False,
        remove_citations=False,
        drop_lorem_ipsum=False,
        drop_curly_bracket=False,
    )
    text = "javascript { uses cookies\nlorem ipsum[1]"
    assert apply(c4(config), text)[0] == text


# -- personal data -----------------------------------------------------------------------------------------------------

PHONES = """+1 415 555 2671|+14155552671|+1 (415) 555-2671|(415) 555-2671|(415)555-2671|415-555-2671|415.555.2671|
    1-800-555-1234|415 555-2671|415-555-2671 x123|+44 20 7946 0958|+44 (0)20 7946 0958|+442079460958|020 7946 0958|
    (020) 7946 0958|0161 496 0123|07700 900123|+33 1 23 45 67 89|01 23 45 67 89|01.23.45.67.89|030 123456|0711/1234567|
    0151 23456789|+49 30 123456|+49-89-636-48018|+49 (0) 30 / 123456|+61 2 9876 5432|(02) 9876 5432|0412 345 678|
    +91 98765 43210|+48 123 456 789|+86 138 1234 5678|+1.800.555.1234|+353 1 234 5678|+47 12 34 56 78"""
NOT_PERSONAL = """2020-01-01|01/02/2003|2020-12-31 23:59:59|12.05.2019|1.2.3|10.4.12.1|v8.8.8.8|version 8.8.8.8|
    978-3-16-148410-0|0-306-40615-2|ISBN 0306406152|9780306406157|0317-8471|3.14159 2.71828 1.41421|+1.2345678901|
    +3.14159265358|+45.678901 -12.345|d41d8cd98f00b204e9800998ecf8427e|550e8400-e29b-41d4-a716-446655440000|4155552671|
    200 300 4000|01 02 03 04 05|01 02 03 04 05 06|192.168.0.1|10.0.0.1|127.0.0.1|239.1.1.1|203.0.113.7|256.8.8.8|
    00:1A:2B:3C:4D:5E|01-23-45-67-89-ab|4111 1111 1111 1111|123-45-6789|1,234,567,890|+12.345.678.901|555-1234|
    0010 4865 6c6c 6f20|0100 0200 0300|010 020 030|UTC+0100|GMT+0200 2020|5.4.0-42-generic|+2 +3 +4 +5 +6 +7 +8 +9|
    +2-3-4-5-6-7-8-9-1|2001:db8::1|fe80::1|::1|12:30:45|std::string|[2::3]|2023:12:31|0.12.3.45|Chrome/120.0.0.0|
    1.8.8.8.8|@decorator|user@localhost|a @ b.com|1234567890123456789"""
SURROUNDINGS = ["{}", "See {} now.", "at: {}, or", "({})", "line\n{}\nline"]


def listed(text: str) -> list[str]:
    return [item.strip() for item in text.split("|")]


def masked(text: str, config: PersonalDataConfig | None = None) -> tuple[str | None, dict[str, int]]:
    text_left, tally = apply(personal_data(config or PersonalDataConfig()), text)
    return text_left, dict(tally.histograms.get("personal data", {}))


@pytest.mark.parametrize(
    ("kind", "placeholder", "found"),
    [
        ("phone number", "<PHONE>", listed(PHONES)),
        ("e-mail address", "<EMAIL>", ["joe.doe+x@mail.example.co.uk", "müller@bücher.de", "A_B%c@x-y.org"]),
        ("IP address", "<IP>", ["8.8.8.8", "2606:4700:4700::1111", "2001:4860:4860:0:0:0:0:8888", "2A00:1450:4001::"]),
    ],
)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_personal_data_is_masked(kind: str, placeholder: str, found: list[str], surroundings: str) -> None:
    for item in found:
        assert masked(surroundings.format(item)) == (surroundings.format(placeholder), {kind: 1})


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_what_only_looks_like_personal_data_stays(surroundings: str) -> None:
    for item in listed(NOT_PERSONAL):
        text = surroundings.format(item)
        assert masked(text) == (text, {})


def test_punctuation_around_addresses_stays() -> None:
    text = "Mail <a@b.org>,c@d.net; http://8.8.8.8:80/ [2606:4700::1111]:443 联系joe@example.com谢谢 tel:415-555-2671."
    expected = "Mail <<EMAIL>>,<EMAIL>; http://<IP>:80/ [<IP>]:443 联系<EMAIL>谢谢 tel:<PHONE>."
    assert masked(text) == (expected, {"e-mail address": 1, "IP address": 1, "phone number": 1})


def test_each_kind_can_be_left_and_named() -> None:
    text = "a@b.org 8.8.8.8 415-555-2671"
    assert masked(text, PersonalDataConfig(emails=False, ip_placeholder="[ip]"))[0] == "a@b.org [ip] <PHONE>"
    config = PersonalDataConfig(ip_addresses=False, phone_numbers=False, email_placeholder=r"\1")
    assert masked(text, config) == (r"\1 8.8.8.8 415-555-2671", {"e-mail address": 1})


@pytest.mark.parametrize(
    "piece", listed("a|a.|a@|a@a.|@|1|1 2 |+2 3 |+22222222222222-|(0|2222:|1.|415-|0123 456|.|2222::")
)
def test_masking_takes_linear_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    begin = time.process_time()
    masked("x@" + text)
    assert time.process_time() - begin < 3  # a tenth of that on an idle core; quadratic time would be hours


# -- all of them -------------------------------------------------------------------------------------------------------


def test_prose_passes_all_stages_unchanged() -> None:
    text = "\n\n".join(paragraph for paragraph in prose() if paragraph.endswith("."))
    documents, tally = iter([Document(text, "license")]), Tally()
    for stage in STAGES:
        documents = stage(documents, tally)
    assert [document.text for document in documents] == [text.replace("\n\n", "\n")]
    assert not tally.dropped and len(text.split()) > 500


@given(WIDE | DENSE)
def test_no_text_breaks_a_stage(text: str) -> None:
    for stage in STAGES:
        kept, tally = apply(stage, text)
        assert (kept is None) == bool(tally.dropped)
    lenient = [
        gopher(EVERYTHING),
        repetition(RepetitionConfig(*NO_REPETITION_RULE)),
        c4(C4Config(min_sentences=0, min_line_words=0, end_marks=[], remove_citations=False)),
    ]
    assert apply(lenient[1], text)[0] == text
    for stage in lenient:
        apply(stage, text)


def test_statistics_are_of_the_text_they_are_asked_of() -> None:
    stage = gopher(GopherConfig())
    short, long = " ".join(words(49)), " ".join(words(50))
    assert [reason(stage, text) is None for text in (short, long, short, long)] == [False, True, False, True]
    assert isinstance(find_words("", "bare"), Words) and len(find_words("", "bare")) == 0
