"""Exact copies and near-duplicates: what is found, what is not, and that the division of the work does not matter."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup import candidates, find, verify
from data_pipeline.dedup.clusters import cluster
from data_pipeline.dedup.config import DedupConfig
from data_pipeline.dedup.exact import text_keys
from data_pipeline.dedup.find import Duplicates, Part, find_duplicates
from data_pipeline.dedup.minhash import hash_functions, signatures
from data_pipeline.dedup.shingles import Shingles, shingle
from data_pipeline.document_file import DocumentWriter
from data_pipeline.errors import BadConfig
from tests.benchmarks.dedup import jaccard, planted_pair, shingles, tokens, words

ODD = st.text(alphabet=st.sampled_from(" \t\n\x1c\x85\u00a0\u2003\u3000,.-'aAbZ9ßẞſİΣςéÉŉΐﬃ漢字かカ한😀𐐀"), max_size=40)
TEXTS = st.lists(ODD | st.text(max_size=60), max_size=6)


@dataclass
class InOneProcess:
    """Makes the calls here; arguments pass through JSON, as they do in the real one."""

    root: Path

    def map(self, name: str, function: Callable[..., None], tasks: Sequence[Any]) -> list[Path]:
        folders = [self.root / name / str(number) for number in range(len(tasks))]
        for folder, task in zip(folders, tasks, strict=True):
            folder.mkdir(parents=True)
            function(folder, **json.loads(json.dumps(task.arguments)))
        return folders


def shingled(texts: Sequence[str], wanted: Sequence[bool] | None = None, count: int = 5) -> Shingles:
    array = pyarrow.array(texts, pyarrow.large_utf8())
    _, offsets, content = array.buffers()
    starts = np.frombuffer(offsets, dtype=np.int64)[: len(texts) + 1]
    data = np.frombuffer(content, dtype=np.uint8) if content else np.frombuffer(b"", dtype=np.uint8)
    return shingle(data, starts, np.array(wanted or [True] * len(texts), dtype=bool), count)


def split(parts: Shingles) -> tuple[list[str], list[list[int]]]:
    """The texts, and the hashes of each document."""
    text, hashes = parts.text.tobytes(), parts.hashes.tolist()
    ends = parts.text_starts.tolist(), parts.starts.tolist()
    documents = range(len(ends[0]) - 1)
    return (
        [text[ends[0][i] : ends[0][i + 1]].decode() for i in documents],
        [hashes[ends[1][i] : ends[1][i + 1]] for i in documents],
    )


def write(folder: Path, texts: Sequence[str], sizes: Sequence[int] = ()) -> list[Part]:
    """Parts of the given sizes; what is left over is one more."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, begin = [], 0
    for number, size in enumerate([*sizes, len(texts)]):
        path = folder / f"{number}.arrow"
        with DocumentWriter(path) as writer:
            for text in texts[begin : begin + size]:
                writer.append(text, "somewhere")
        parts.append(Part(path))
        begin += size
    return parts


def search(folder: Path, parts: Sequence[Part], config: DedupConfig | None = None, **how: Any) -> Duplicates:
    runner, config = InOneProcess(folder), config or DedupConfig()
    return find_duplicates(runner, parts, config, **{"exact": True, "near": True, "workers": 1, **how})


def together(paths: Sequence[Path]) -> list[Any]:
    return np.concatenate([np.load(path) for path in paths]).tolist()


def pairs_in(paths: Sequence[Path]) -> set[tuple[int, int]]:
    larger, smaller = candidates.unpack(np.concatenate([np.load(path) for path in paths]))
    return set(zip(smaller.tolist(), larger.tolist(), strict=True))


def text_of(generator: random.Random, count: int = 500) -> str:
    return " ".join(tokens(generator, count))


# -- words, shingles, hashes -------------------------------------------------------------------------------------------


@given(TEXTS)
def test_copies_differ_in_case_and_whitespace_alone(texts: list[str]) -> None:
    found = shingled(texts)
    normal = [" ".join(text.casefold().split()) for text in texts]
    assert split(found)[0] == normal
    keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in normal]
    assert text_keys(found).astype(">u8").tobytes() == b"".join(keys)


def test_every_character_is_folded_as_python_folds_it() -> None:
    characters = " x".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert split(shingled([characters]))[0] == [" ".join(characters.casefold().split())]


@given(TEXTS, st.integers(1, 6))
def test_shingles_are_runs_of_words(texts: list[str], count: int) -> None:
    runs: list[tuple[tuple[str, ...], int]] = []
    hashes = split(shingled(texts, count=count))[1]
    for text, own in zip(texts, hashes, strict=True):
        found = words(text)
        mine = [tuple(found[i : i + count]) for i in range(max(1, len(found) - count + 1))] if found else []
        assert len(mine) == len(own)
        runs += zip(mine, own, strict=True)
    assert len({run for run, _ in runs}) == len({value for _, value in runs}) == len(set(runs))


@given(TEXTS, st.data())
def test_a_document_is_hashed_alike_in_any_company(texts: list[str], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    for text, own, asked in zip(texts, split(shingled(texts, wanted))[1], wanted, strict=True):
        assert own == (split(shingled([text]))[1][0] if asked else [])


def test_text_without_spaces_is_compared_by_characters() -> None:
    one, other = "天地玄黃宇宙洪荒日月盈昃", "天地玄黃宇宙洪荒日月盈虧"
    assert words(one) == list(one)
    a, b = split(shingled([one, other]))[1]
    assert len(a) == len(b) == 8 and a[:7] == b[:7] and a[7] != b[7]


def test_a_signature_is_the_least_value_of_each_function() -> None:
    found = shingled([" ".join(f"word{i}" for i in range(4 + count)) for count in range(10)] + [""])
    factors, addends = functions = hash_functions(3, 20)
    minima = signatures(found, functions)
    for number, own in enumerate(split(found)[1]):
        values = np.array(own, dtype=np.uint64).astype(np.uint32)[:, None] * factors + addends
        assert minima[number].tolist() == values.min(axis=0, initial=0xFFFF_FFFF).tolist()
    assert len({tuple(hash_functions(seed, 20).ravel().tolist()) for seed in range(50)}) == 50


@pytest.mark.parametrize("similarity", [0.1, 0.3, 0.5, 0.7, 0.85, 0.95])
def test_estimates_are_unbiased_and_binomial(similarity: float) -> None:
    generator, pairs, functions = random.Random(f"estimate {similarity}"), 250, 128
    texts = [text for _ in range(pairs) for text in planted_pair(generator, similarity)]
    minima = signatures(shingled(texts), hash_functions(3, functions))
    estimates = (minima[::2] == minima[1::2]).mean(axis=1)
    exact = np.array([jaccard(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)])
    assert exact.mean() == pytest.approx(similarity, abs=0.01)
    variances = exact * (1 - exact) / functions
    normal = (estimates - exact) / np.sqrt(variances)
    assert abs(normal.mean()) < 4 / np.sqrt(pairs)
    assert abs(normal.var() - 1) < 4 * np.sqrt(2 / pairs)


# -- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", [0.75, 0.88])
def test_planted_pairs_are_found_as_often_as_theory_says(tmp_path: Path, similarity: float) -> None:
    generator, pairs, config = random.Random(similarity), 400, DedupConfig()
    texts = [text for _ in range(pairs) for text in planted_pair(generator, similarity)]
    found = search(tmp_path / "work", write(tmp_path, texts), config, exact=False)
    planted = [(i, i + 1) for i in range(0, 2 * pairs, 2)]
    exact = np.array([jaccard(texts[i], texts[j]) for i, j in planted])
    theory = 1 - (1 - exact**config.rows) ** config.bands
    hits = len(pairs_in(found.candidate_files).intersection(planted))
    assert abs(hits - theory.sum()) <= 4 * np.sqrt((theory * (1 - theory)).sum()) + 1
    verified = pairs_in(found.verified_files)
    if similarity >= 0.85:
        assert len(verified.intersection(planted)) / pairs >= 0.97
    assert all(jaccard(texts[i], texts[j]) >= config.threshold for i, j in verified)
    assert found.verified == len(verified) and found.candidates == len(pairs_in(found.candidate_files))


def brute_force(texts: Sequence[str], threshold: float, *, exact: bool = True) -> tuple[list[int], list[bool]]:
    """The kept copy of each document and which are exact copies, by comparing all with all."""
    normal = [" ".join(text.casefold().split()) for text in texts]
    first = [normal.index(text) if exact else number for number, text in enumerate(normal)]
    kept = list(range(len(texts)))
    sets = [shingles(text) for text in texts]
    for i in range(len(texts)):
        for j in range(i):
            alive = first[i] == i and first[j] == j and sets[i] and sets[j]
            if alive and len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]):
                low, high = sorted((kept[i], kept[j]))
                kept = [low if root == high else root for root in kept]
    return [kept[number] for number in first], [number != i for i, number in enumerate(first)]


@given(
    base=st.integers(0, 3).flatmap(lambda seed: st.just(text_of(random.Random(seed), 30).split())),
    edits=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 12), st.booleans()), min_size=1, max_size=14),
    others=st.lists(ODD, max_size=3),
    sizes=st.lists(st.integers(0, 5), max_size=5),
    workers=st.integers(1, 3),
    memory=st.sampled_from([8e-7, 4.0]),
    exact=st.booleans(),
)
@settings(max_examples=30)
def test_clusters_are_those_of_comparing_all_with_all(
    base: list[str],
    edits: list[tuple[int, int, bool]],
    others: list[str],
    sizes: list[int],
    workers: int,
    memory: float,
    exact: bool,
) -> None:
    texts = others + [" ".join([*base[:at], *["new"] * n, *base[at + n :]]).swapcase() for at, n, _ in edits]
    texts += [text.upper() for text, (_, _, again) in zip(texts[len(others) :], edits, strict=True) if again][:2]
    # 32 bands of one minimum each miss a pair above one half with a probability of 1e-10.
    config = DedupConfig(bands=32, rows=1, threshold=0.5, memory_gib=memory)
    with tempfile.TemporaryDirectory() as folder:
        parts = write(Path(folder), texts, sizes)
        found = search(Path(folder) / "work", parts, config, exact=exact, workers=workers)
        kept, copies = brute_force(texts, 0.5, exact=exact)
        dropped = [number != i for i, number in enumerate(kept)]
        assert together(found.kept_copies) == kept
        assert together(found.exact) == copies
        assert together(found.dropped) == dropped
        assert together(found.near) == [a and not b for a, b in zip(dropped, copies, strict=True)]
        assert [len(np.load(path)) for path in found.dropped] == count_documents(sizes, len(texts))
        roots = Counter(number for number, copy in zip(kept, copies, strict=True) if not copy)
        assert found.cluster_sizes == dict(sorted(Counter(n for n in roots.values() if n > 1).items()))


def count_documents(sizes: Sequence[int], total: int) -> list[int]:
    counts: list[int] = []
    for size in [*sizes, total]:
        counts.append(min(size, total - sum(counts)))
    return counts


def collection(seed: int = 5) -> list[str]:
    """200 documents, some of them copies and near-copies of others."""
    generator = random.Random(seed)
    texts = [text_of(generator, 120) for _ in range(120)]
    for _ in range(80):
        copy = generator.choice(texts).split()
        at = generator.randrange(100)
        copy[at : at + generator.randrange(12)] = tokens(generator, generator.randrange(12))
        texts.append(" ".join(copy))
    generator.shuffle(texts)
    return texts


def test_the_division_of_the_work_has_no_influence_on_any_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, results = collection(), []
    for number, (memory, workers) in enumerate([(4.0, 1), (2e-5, 2), (1e-5, 7)]):
        monkeypatch.setattr(verify, "BLOCK_BYTES", [verify.BLOCK_BYTES, 40_000, 2_000][number])
        parts = write(tmp_path, texts, [70, 0, 31])
        results.append(search(tmp_path / f"work{number}", parts, DedupConfig(memory_gib=memory), workers=workers))
    assert len(results[0].candidate_files) == 1 and len(results[2].candidate_files) > 3
    for other in results[1:]:
        for field in ("exact", "near", "dropped", "kept_copies"):
            for one, path in zip(getattr(results[0], field), getattr(other, field), strict=True):
                assert filecmp.cmp(one, path, shallow=False)
        assert replace(other, **{f: getattr(results[0], f) for f in FILES}) == results[0]
    whole = search(tmp_path / "whole", write(tmp_path / "one", texts))
    assert together(whole.kept_copies) == together(results[0].kept_copies)
    assert (whole.pairs, whole.cluster_sizes, whole.copy_sizes) == (
        results[0].pairs,
        results[0].cluster_sizes,
        results[0].copy_sizes,
    )


FILES = ("exact", "near", "dropped", "kept_copies", "candidate_files", "verified_files")


def test_copies_give_way_to_the_first_part(tmp_path: Path) -> None:
    texts = ["One text.", "another", "", "ONE\n text.", "Another ", " \n", "one text", "...", " ..."]
    found = search(tmp_path / "work", write(tmp_path, texts, [3, 0]), near=False)
    assert together(found.kept_copies) == [0, 1, 2, 0, 1, 2, 6, 7, 7]
    assert together(found.exact) == together(found.dropped) == [False] * 3 + [True] * 3 + [False, False, True]
    assert found.copy_sizes == {2: 4} and found.cluster_sizes == {} and not any(together(found.near))


def test_documents_without_words_are_near_to_nothing(tmp_path: Path) -> None:
    texts = ["", "...", "!!!", "", "a b", "a, b!", "b a"]
    found = search(tmp_path / "work", write(tmp_path, texts), exact=False)
    assert together(found.kept_copies) == [0, 1, 2, 3, 4, 4, 6]


def test_documents_left_out_match_nothing(tmp_path: Path) -> None:
    generator = random.Random(8)
    texts = [*planted_pair(generator, 0.95), *planted_pair(generator, 0.95)] * 2
    [part] = write(tmp_path, texts)[:1]
    np.save(tmp_path / "dropped.npy", np.array([True, False, False, False] + [False] * 4))
    np.save(tmp_path / "kept.npy", np.array([True, True, True, True, True, True, False, True]))
    part = Part(part.documents, [(tmp_path / "dropped.npy", True), (tmp_path / "kept.npy", False)])
    found = search(tmp_path / "work", [part])
    assert together(found.kept_copies) == [0, 1, 2, 2, 1, 1, 6, 2]
    assert together(found.exact) == [False] * 5 + [True, False, True]
    assert found.copy_sizes == {2: 2} and found.cluster_sizes == {2: 2}


def test_a_copy_of_a_near_copy_gives_way_to_the_kept_document(tmp_path: Path) -> None:
    one, other = planted_pair(random.Random(9), 0.95)
    found = search(tmp_path / "work", write(tmp_path, [one, other, other.lower()], [1, 1]))
    assert together(found.kept_copies) == [0, 0, 0]
    assert together(found.exact) == [False, False, True] and together(found.near) == [False, True, False]


def test_pairs_of_a_large_group_grow_with_its_documents_alone(tmp_path: Path) -> None:
    generator = random.Random(10)
    base = tokens(generator, 400)
    texts = []
    for number in range(300):
        copy = list(base)
        copy[generator.randrange(400)] = f"new{number}"
        texts.append(" ".join(copy))
    found = search(tmp_path / "work", write(tmp_path, texts), exact=False)
    config = DedupConfig()
    assert found.cluster_sizes == {300: 1}
    assert found.candidates <= config.bands * (candidates.PREDECESSORS + 1) * len(texts)


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(0, 2**20))
def test_pairs_of_groups(sizes: list[int], first: int) -> None:
    """All of a small group; of a larger one, with the first and a few before."""
    ids = np.arange(first, first + sum(sizes), dtype=np.uint32)
    edges = np.cumsum([0, *sizes])
    expected = []
    for begin, size in zip(edges[:-1].tolist(), sizes, strict=True):
        for larger in range(1, size):
            near = range(larger) if size <= candidates.ALL_PAIRS else {0, *range(larger - 4, larger)}
            expected += [(int(ids[begin + larger]), int(ids[begin + i])) for i in near if i >= 0]
    found = candidates.unpack(candidates.group_pairs(ids, edges))
    assert list(zip(found[0].tolist(), found[1].tolist(), strict=True)) == sorted(expected)


@given(st.lists(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6), max_size=4))
def test_clusters_are_connected_components(files: list[set[tuple[int, int]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, own in enumerate(files):
            pairs = np.array([(max(pair), min(pair)) for pair in own if pair[0] != pair[1]], dtype=np.uint32)
            (folder / str(number)).mkdir()
            columns = pairs.reshape(-1, 2).T
            np.save(folder / str(number) / "pairs.npy", np.unique(candidates.pack(columns[0], columns[1])))
        cluster(folder, pairs=[str(folder / str(number)) for number in range(len(files))])
        roots = {i: i for own in files for pair in own for i in pair if pair[0] != pair[1]}
        for _ in roots:
            for one, other in (pair for own in files for pair in own if pair[0] != pair[1]):
                roots[one] = roots[other] = min(roots[one], roots[other])
        assert np.load(folder / "ids.npy").tolist() == sorted(roots)
        assert np.load(folder / "roots.npy").tolist() == [roots[i] for i in sorted(roots)]
        sizes = Counter(Counter(roots.values()).values())
        assert json.loads((folder / "sizes.json").read_text()) == {str(size): n for size, n in sorted(sizes.items())}


def test_examples_are_spread_over_similarities(tmp_path: Path) -> None:
    generator = random.Random(11)
    texts = [t for i in range(60) for t in planted_pair(generator, 0.8 + 0.2 * i / 60)]
    texts += [t for _ in range(60) for t in planted_pair(generator, 0.99)]
    found = search(tmp_path / "work", write(tmp_path, texts))
    similarities = [similarity for _, _, similarity in found.pairs]
    assert len(found.pairs) == 20 and similarities == sorted(similarities)
    assert max(np.diff([0.8, *similarities, 1.0])) < 0.03
    for one, other, similarity in found.pairs:
        assert one < other and similarity == jaccard(texts[one], texts[other])


def test_nothing_to_do(tmp_path: Path) -> None:
    assert search(tmp_path / "a", []) == Duplicates()
    [part] = write(tmp_path, [])
    found = search(tmp_path / "b", [part, part])
    assert together(found.dropped) == [] and len(found.dropped) == 2 and found.cluster_sizes == {}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shingle_words": 0}, "shingle_words is 0"),
        ({"bands": 0}, "bands is 0"),
        ({"rows": -1}, "rows is -1"),
        ({"bands": 999, "rows": 8}, "bands x rows is 7992"),
        ({"threshold": 0.0}, r"threshold is 0\.0"),
        ({"threshold": 1.1}, r"threshold is 1\.1"),
        ({"memory_gib": 0.0}, r"memory_gib is 0\.0"),
        ({"memory_gib": float("nan")}, "memory_gib is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        search(tmp_path, [], replace(DedupConfig(), **change))


def test_more_documents_than_ids_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_MOST_DOCUMENTS", 3)
    with pytest.raises(BadConfig, match="not 3: divide the corpora"):
        search(tmp_path / "work", write(tmp_path, ["a", "b", "c"]))


def test_importing_loads_no_compiler() -> None:
    program = "import data_pipeline.dedup.find, sys; print(sorted({'numba', 'ray', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_compiler_that_cannot_keep_its_code_says_what_to_do() -> None:
    program = (
        "from data_pipeline.dedup import shingles\n"
        "from data_pipeline.errors import EnvironmentFailure\n"
        "try: shingles.compiled(shingles._hash)\n"
        "except EnvironmentFailure as error: print(error)\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("set NUMBA_CACHE_DIR to a folder that can be written (cannot cache function")
