"""The checks that look at one pair at a time: its caption first, then, if that may stay, its picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from data_pipeline.documents import Document, Tally, logarithmic_bin
from data_pipeline.pairs.prepare.pictures import Picture, Unfit, examine, shrunk, thumbnail
from data_pipeline.pairs.prepare.raw import RawPair
from data_pipeline.pairs.prepare.store import PairFileWriter
from data_pipeline.pairs.prepare.tally import PairTally
from data_pipeline.pairs.recipe import PairFilterConfig, ResizeConfig
from data_pipeline.pairs.shards import MAX_CAPTION_BYTES
from data_pipeline.recipe import from_plain
from data_pipeline.sources.text import is_utf8
from data_pipeline.stages.language import language

STAGES = ("found", "caption", "language", "read", "picture", "size", "copies", "near copies")
NO_CAPTION = "caption: missing"
EMPTY_CAPTION = "caption: empty"
INVALID_CAPTION = "caption: invalid UTF-8"
LONG_CAPTION = "caption: longer than the format holds"


@dataclass(frozen=True)
class Checks:
    """What the checks need to know."""

    filters: PairFilterConfig
    resize: ResizeConfig | None
    max_pixels: int
    fetch_threads: int


def check_pairs(folder: Path, pairs: Iterable[RawPair], checks: Checks, tally: PairTally) -> None:
    """Writes the pairs that pass into a part's folder; the tally says what became of the others."""
    cv2.setNumThreads(1)  # one core is what a task has
    for stage in STAGES[:-2]:
        tally.kept.setdefault(stage, [0, 0])
    accepted = _captioned(pairs, checks, tally)
    with PairFileWriter(folder) as writer:
        for raw, caption, loaded in _loaded(accepted, checks.fetch_threads):
            if isinstance(loaded, Unfit):
                tally.drop(str(loaded), raw.key, raw.source, caption)
                continue
            tally.keep("read", len(loaded))
            try:
                picture = examine(loaded, checks.max_pixels)
            except Unfit as error:
                tally.drop(str(error), raw.key, raw.source, caption)
                continue
            tally.keep("picture", len(loaded))
            _observe(picture, caption, tally)
            reason = _wrong_size(picture, checks.filters)
            if reason is not None:
                tally.drop(reason, raw.key, raw.source, caption, _shows(picture))
                continue
            tally.keep("size", len(loaded))
            kept, extension, facts = _resized(picture, loaded, checks.resize)
            writer.append(
                key=raw.key,
                source=raw.source,
                caption=caption,
                extension=extension,
                facts={"key": raw.key, **raw.facts, **facts},
                picture=kept,
                found=loaded,
                pixels=picture.pixels,
            )


def _captioned(pairs: Iterable[RawPair], checks: Checks, tally: PairTally) -> Iterator[tuple[RawPair, str]]:
    filters = checks.filters
    tell = language(filters.language) if filters.language.keep else None
    for raw in pairs:
        tally.keep("found")
        caption = " ".join((raw.caption or "").split())
        reason = raw.wrong or _wrong_caption(raw.caption, caption, filters)
        if reason is None:
            tally.keep("caption")
            reason = _wrong_language(caption, tell, tally) if tell else None
        if reason is None:
            tally.keep("language")
            yield raw, caption
        else:
            tally.drop(reason, raw.key, raw.source, caption, _shows_raw(raw, checks.max_pixels))


def _wrong_caption(given: str | None, caption: str, filters: PairFilterConfig) -> str | None:
    if given is None:
        return NO_CAPTION
    if len(given.encode("utf-8", "surrogatepass")) > MAX_CAPTION_BYTES:
        return LONG_CAPTION  # first, for what is longer has been read up to there only
    if not caption:
        return EMPTY_CAPTION
    if not is_utf8(caption):
        return INVALID_CAPTION
    if len(caption) < filters.min_characters:
        return f"caption: shorter than {filters.min_characters} characters"
    if len(caption) > filters.max_characters:
        return f"caption: longer than {filters.max_characters} characters"
    words = len(caption.split())
    if words < filters.min_words:
        return f"caption: fewer than {filters.min_words} words"
    if filters.max_words is not None and words > filters.max_words:
        return f"caption: more than {filters.max_words} words"
    return None


def _wrong_language(caption: str, tell: Callable[..., Iterator[Document]], tally: PairTally) -> str | None:
    told = Tally()
    kept = list(tell(iter([Document(caption, "")]), told))
    for name in told.histograms.get("language", ()):
        tally.observe("language", name)
    return None if kept else next(iter(told.dropped))


def _wrong_size(picture: Picture, filters: PairFilterConfig) -> str | None:
    shorter, longer = sorted((picture.width, picture.height))
    if shorter < filters.min_side:
        return f"size: shorter side below {filters.min_side} pixels"
    if longer > filters.max_aspect * shorter:
        return f"size: sides of more than {filters.max_aspect:g} to 1"
    return None


def _resized(picture: Picture, content: bytes, resize: ResizeConfig | None) -> tuple[bytes, str, dict[str, Any]]:
    facts = {"width": picture.width, "height": picture.height}
    smaller = shrunk(picture, resize.shorter_side, resize.quality) if resize else None
    if smaller is None:
        return content, picture.extension, facts
    return smaller, "jpg", {"original_width": picture.width, "original_height": picture.height}


def _loaded(pairs: Iterable[tuple[RawPair, str]], threads: int) -> Iterator[tuple[RawPair, str, bytes | Unfit]]:
    """The pairs in their order with their pictures' bytes, or why there are none. Those far away many at a time."""
    waiting: deque[tuple[RawPair, str, Callable[[], bytes | Unfit]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for raw, caption in pairs:
            attempt = _attempt(raw) if raw.near else pool.submit(_attempt(raw)).result
            waiting.append((raw, caption, attempt))
            while waiting and (waiting[0][0].near or len(waiting) > 2 * threads):
                first, its_caption, result = waiting.popleft()
                yield first, its_caption, result()
        for raw, caption, result in waiting:
            yield raw, caption, result()


def _attempt(raw: RawPair) -> Callable[[], bytes | Unfit]:
    def attempt() -> bytes | Unfit:
        try:
            return raw.load()
        except Unfit as reason:
            return reason

    return attempt


def _observe(picture: Picture, caption: str, tally: PairTally) -> None:
    tally.observe("kind", picture.extension)
    shorter, longer = sorted((picture.width, picture.height))
    tally.observe("shorter side", logarithmic_bin(shorter))
    tally.observe("aspect", logarithmic_bin(longer / shorter))
    tally.observe("caption length", logarithmic_bin(len(caption)))


def _shows(picture: Picture) -> Callable[[], bytes]:
    return lambda: thumbnail(picture)


def _shows_raw(raw: RawPair, max_pixels: int) -> Callable[[], bytes | None]:
    def show() -> bytes | None:
        try:
            return thumbnail(examine(raw.load(), max_pixels)) if raw.near else None
        except Unfit:
            return None

    return show


def from_settings(values: dict[str, Any]) -> Checks:
    """The checks that `dataclasses.asdict` made `values` of."""
    resize = values["resize"]
    return Checks(
        filters=from_plain(PairFilterConfig, values["filters"]),
        resize=None if resize is None else ResizeConfig(**resize),
        max_pixels=values["max_pixels"],
        fetch_threads=values["fetch_threads"],
    )
