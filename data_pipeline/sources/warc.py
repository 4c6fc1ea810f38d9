"""Web archives (ISO 28500): a document for each page that a server sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

from data_pipeline.documents import Document, Tally
from data_pipeline.sources.decompression import Damaged, PieceReader
from data_pipeline.sources.http_content import decoded_content
from data_pipeline.sources.text import TOO_LONG, ReadingOptions, document, html_document, web_text, whole

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

NOT_A_PAGE = "read: not an HTML response"
UNDECODABLE = "read: HTTP content that cannot be decoded"

_HTML = ("text/html", "application/xhtml+xml")
_PLAIN = "text/plain"
#: HTTP headers and chunk lengths that come on top of a page.
_OVERHEAD = 1 << 20


def warc(pieces: Iterable[bytes], source: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    """HTML and plain text of the responses with status 200, and of resource and conversion records (WET).

    Other records of content are counted; those about the crawl (requests, metadata) are not. Raises Damaged: fastwarc
    takes a record that breaks off for a short one, so each is measured against its Content-Length.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    contents = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion | WarcRecordType.revisit
    stream = PieceReader(pieces)
    try:
        for record in ArchiveIterator(cast(BinaryIO, stream), parse_http=False, stream_detect=False):
            length = record.headers.get("Content-Length")
            if length is None or not length.strip().isdigit():
                raise Damaged(f"the record at byte {record.stream_pos} breaks off in its header")
            if record.record_type & contents:
                yield from _content(record, source, tally, options)
            record.reader.consume()
            if record.reader.tell() < record.content_length:
                raise Damaged(f"the record at byte {record.stream_pos} breaks off")
    except OSError as error:
        raise Damaged(f"no record where one should begin, before byte {stream.tell()} ({error})") from error


def _content(record: WarcRecord, path: str, tally: Tally, options: ReadingOptions) -> Iterator[Document]:
    uri = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    source = uri.encode(errors="replace").decode() or f"{path}:{record.stream_pos}"
    if record.content_length > options.max_document_bytes + _OVERHEAD:
        tally.drop(TOO_LONG, source)
        return
    if record.is_http:
        try:
            record.parse_http(quirks_mode=True)
        except OSError:
            tally.drop(NOT_A_PAGE, source)
            return
        kind, status = record.http_content_type, record.http_headers.status_code
    else:
        kind, status = (record.headers.get("Content-Type") or "").partition(";")[0], 200
    kind = (kind or "").strip().lower()
    if status != 200 or kind not in (*_HTML, _PLAIN):
        tally.drop(NOT_A_PAGE, source)
        return
    body = record.reader.read()
    if len(body) < record.content_length:
        raise Damaged(f"the record at byte {record.stream_pos} breaks off")
    charset = None
    if record.is_http:
        charset = record.http_charset
        encodings = [record.http_headers.get(name) or "" for name in ("Transfer-Encoding", "Content-Encoding")]
        try:
            decoded = whole(decoded_content(body, *encodings), options.max_document_bytes)
        except Damaged:
            tally.drop(UNDECODABLE, source)
            return
    else:
        decoded = body if len(body) <= options.max_document_bytes else None
    if decoded is None:
        tally.drop(TOO_LONG, source)
    elif kind == _PLAIN:
        yield from document(web_text(decoded, charset), source, tally)
    else:
        yield from html_document(decoded, source, tally, charset)
