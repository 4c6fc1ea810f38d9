"""The first phase: pictures with captions, lists and tars → checked pairs on disk, part by part."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import BadCorpus, EnvironmentFailure
from data_pipeline.pairs.prepare.checking import check_pairs, from_settings
from data_pipeline.pairs.prepare.finding import Found, find, groups, key_of, without_listed
from data_pipeline.pairs.prepare.lists import read_list_rows, split_rows
from data_pipeline.pairs.prepare.raw import NO_PICTURE, NO_URL, UNREADABLE, RawPair, loader, unfit
from data_pipeline.pairs.prepare.tally import PairTally
from data_pipeline.pairs.prepare.tars import tar_pairs
from data_pipeline.pairs.recipe import PairCorpusConfig, PairPrepareConfig
from data_pipeline.pairs.shards import MAX_CAPTION_BYTES
from data_pipeline.prepare.runner import Runner, Task
from data_pipeline.sources import SourceFile, open_source
from data_pipeline.sources.decompression import Damaged
from data_pipeline.sources.remote import RemoteFile
from data_pipeline.sources.text import printable

TALLY = "tally.json"
DAMAGED = "read: the file is damaged from here on"


@dataclass(frozen=True)
class Part:
    """Some of a corpus's pairs: what one task has checked. folder: see store.py; with tally.json."""

    corpus: PairCorpusConfig
    folder: Path
    kind: str
    """Where the pairs come from: pictures, lists or tars."""

    @property
    def tally(self) -> Path:
        """The file with the part's tally."""
        return self.folder / TALLY


def read_corpora(runner: Runner, config: PairPrepareConfig, corpora: Sequence[PairCorpusConfig]) -> list[Part]:
    """Reads and checks the corpora, in their order. Raises BadConfig, BadCorpus, EnvironmentFailure."""
    found = [find(config, corpus) for corpus in corpora]  # all, so that a mistake is known before any is read
    return [
        part for corpus, own in zip(corpora, found, strict=True) for part in _read_corpus(runner, config, corpus, own)
    ]


def _read_corpus(runner: Runner, config: PairPrepareConfig, corpus: PairCorpusConfig, found: Found) -> list[Part]:
    checks = {
        "filters": asdict(corpus.filters or config.filters),
        "resize": None if corpus.resize is None else asdict(corpus.resize),
        "max_pixels": config.max_pixels,
        "fetch_threads": config.fetch_threads,
    }
    shared = {"corpus": corpus.name, "checks": checks, "max_picture_bytes": config.max_picture_bytes}
    phase = f"read {corpus.name}"
    folders: list[Path] = []
    lists = _split_lists(runner, config, corpus, found.lists)
    pictures = found.pictures if corpus.caption == "folder" else without_listed(found.pictures, lists)
    if pictures:
        beside = {"base": found.base, "caption": corpus.caption, "template": corpus.template}
        tasks = [
            Task(
                {"files": [asdict(file) for file in group], **beside, **shared},
                weight=sum(file.picture.size for file in group),
            )
            for group in groups(pictures, config.part_bytes, config.part_rows)
        ]
        folders += runner.map(phase, read_pictures, tasks)
    if found.lonely:
        lonely = [asdict(file) for file in found.lonely]
        folders += runner.map(phase, read_lonely_captions, [Task({"files": lonely, "base": found.base, **shared})])
    kinds = ["pictures"] * len(folders)
    if found.lists:
        folders += _read_lists(runner, phase, lists, {"base": found.base, **shared})
    kinds += ["lists"] * (len(folders) - len(kinds))
    tasks = [
        Task(
            {
                "file": asdict(file),
                "base": found.base,
                "caption_field": corpus.caption_field,
                "damaged_files": config.damaged_files,
                **shared,
            },
            weight=file.size,
        )
        for file in found.tars
    ]
    if tasks:
        folders += runner.map(phase, read_tar, tasks)
    kinds += ["tars"] * (len(folders) - len(kinds))
    return [Part(corpus, folder, kind) for folder, kind in zip(folders, kinds, strict=True)]


def _split_lists(
    runner: Runner, config: PairPrepareConfig, corpus: PairCorpusConfig, files: Sequence[SourceFile]
) -> list[tuple[SourceFile, Path]]:
    columns = {"path_field": corpus.path_field, "caption_field": corpus.caption_field}
    how = {"part_rows": config.part_rows, "damaged_files": config.damaged_files}
    splits = [Task({"file": asdict(file), **columns, **how}, weight=file.size) for file in files]
    return list(zip(files, runner.map(f"list {corpus.name}", split_list, splits) if files else (), strict=True))


def _read_lists(
    runner: Runner, phase: str, lists: Sequence[tuple[SourceFile, Path]], shared: dict[str, Any]
) -> list[Path]:
    tasks = []
    for file, split in lists:
        own = {"list_path": file.path, **shared}
        for number, rows in enumerate(sorted(split.glob("rows-*.arrow"))):
            tasks.append(Task({"rows": str(rows), "files": 1 if number == 0 else 0, "broken": None, **own}))
        broken = json.loads((split / "broken.json").read_text())
        if broken is not None:
            tasks.append(Task({"rows": None, "files": 0, "broken": broken, **own}))
    return runner.map(phase, read_list_part, tasks)


# -- tasks -------------------------------------------------------------------------------------------------------------


def read_pictures(
    folder: Path,
    *,
    corpus: str,
    files: list[dict[str, Any]],
    base: str,
    caption: str,
    template: str,
    checks: dict[str, Any],
    max_picture_bytes: int,
) -> None:
    """Pictures that are files, each with the caption beside it or its folder's name. corpus: its name, so that two
    corpora with the same sources are two tasks."""

    def pairs() -> Iterator[RawPair]:
        for file in files:
            path = file["picture"]["path"]
            beside = file["caption"]
            text, load = None, loader(path, max_picture_bytes)
            if caption == "folder":
                text = template.replace("{}", path.rstrip("/").split("/")[-2].replace("_", " "))
            elif beside is not None:
                try:
                    text = _caption(beside["path"])
                except OSError:
                    load = unfit(UNREADABLE)
                    text = ""
            key = printable(key_of(path, base))
            yield RawPair(key, printable(path), text, load, near="://" not in path)

    _check(folder, pairs(), checks, files=len(files))


def read_lonely_captions(
    folder: Path,
    *,
    corpus: str,
    files: list[dict[str, Any]],
    base: str,
    checks: dict[str, Any],
    max_picture_bytes: int,
) -> None:
    """Captions without a picture beside them: only to be counted."""
    tally = PairTally()
    for file in files:
        key = printable(key_of(file["path"], base))
        tally.keep("found")
        tally.drop(NO_PICTURE, key, printable(file["path"]), "")
    _check(folder, iter(()), checks, files=len(files), tally=tally)


def split_list(
    folder: Path,
    *,
    file: dict[str, Any],
    path_field: str,
    caption_field: str,
    part_rows: int,
    damaged_files: str,
) -> None:
    """A list in files of so many rows, rows-00000.arrow and on. Raises BadCorpus."""
    broken = split_rows(folder, SourceFile(**file), path_field, caption_field, part_rows, damaged_files == "keep")
    (folder / "broken.json").write_text(json.dumps(broken))


def read_list_part(
    folder: Path,
    *,
    corpus: str,
    rows: str | None,
    files: int,
    list_path: str,
    broken: str | None,
    base: str,
    checks: dict[str, Any],
    max_picture_bytes: int,
) -> None:
    """Some rows of a list; or none, and how it breaks off. files: what this counts for among files."""
    source, key = printable(list_path), printable(key_of(list_path, base))

    def pairs() -> Iterator[RawPair]:
        for row in read_list_rows(Path(rows)) if rows else ():
            path = row.resolved(list_path)
            load = unfit(NO_URL) if path is None else loader(path, max_picture_bytes)
            facts = {} if row.path is None else {"url" if "://" in row.path else "path": printable(row.path)}
            near = path is None or "://" not in path
            yield RawPair(f"{key}:{row.number}", f"{source}:{row.number}", row.caption, load, near=near, facts=facts)

    tally = PairTally()
    if broken is not None:
        tally.drop(DAMAGED, f"{key}!", f"{source}: {broken}", "")
    _check(folder, pairs(), checks, files=files, tally=tally)


def read_tar(
    folder: Path,
    *,
    corpus: str,
    file: dict[str, Any],
    base: str,
    caption_field: str,
    damaged_files: str,
    checks: dict[str, Any],
    max_picture_bytes: int,
) -> None:
    """One tar of pairs. Raises BadCorpus if it is damaged, unless the recipe says to keep what is before."""
    tally = PairTally()
    source, key = SourceFile(**file), printable(key_of(file["path"], base))
    name = printable(source.path)

    def pairs() -> Iterator[RawPair]:
        try:
            yield from tar_pairs(source, key, caption_field=caption_field, max_picture_bytes=max_picture_bytes)
        except Damaged as error:
            if damaged_files == "stop":
                raise BadCorpus(
                    f"{name} is damaged: {error}; repair or exclude it, or set damaged_files: keep to use the pairs "
                    "before the damage"
                ) from error
            tally.drop(DAMAGED, f"{key}!", f"{name}: {error}", "")

    _check(folder, pairs(), checks, files=1, tally=tally)


def _check(
    folder: Path, pairs: Iterator[RawPair], checks: dict[str, Any], *, files: int, tally: PairTally | None = None
) -> None:
    tally = tally or PairTally()
    tally.files += files
    check_pairs(folder, pairs, from_settings(checks), tally)
    write_tally(folder / TALLY, tally)


def _caption(path: str) -> str:
    """Bytes that are no UTF-8 become surrogates, which a check finds; so is what is too long, of which a part is read.

    Raises OSError.
    """
    opened: Callable[[str], Any] = RemoteFile if "://" in path else open_source
    try:
        with opened(path) as file:
            content: bytes = file.read(MAX_CAPTION_BYTES + 1 + len(codecs.BOM_UTF8))
    except (BadCorpus, EnvironmentFailure) as error:
        raise OSError(str(error)) from error
    return content.decode("utf-8-sig", "surrogateescape")


def write_tally(path: Path, tally: PairTally) -> None:
    """Writes a tally for `read_tally`."""
    path.write_text(json.dumps(tally.to_json(), ensure_ascii=False))


def read_tally(path: Path) -> PairTally:
    """The tally in a file."""
    return PairTally.from_json(json.loads(path.read_text()))
