"""A crawl like those that the web gives, made of real pages: a WARC with copies, near-copies, boilerplate and other
languages among them.

    python -m tests.data_pipeline.crawl OUTPUT.warc.gz [FOLDER_OF_HTML]

Without a folder, the pages are the documentation that `pydoc` writes of the standard library.
"""

from __future__ import annotations

import gzip
import importlib
import io
import pydoc
import random
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastwarc.warc import WarcRecord, WarcRecordType

_MODULES = """
    argparse ast asyncio base64 bisect calendar cmd code codecs collections configparser contextlib copy csv
    ctypes datetime decimal difflib dis doctest email enum fileinput fnmatch fractions ftplib functools getopt
    glob gzip hashlib heapq hmac html http imaplib inspect io ipaddress json locale logging lzma mailbox mimetypes
    netrc numbers optparse os pathlib pdb pickle platform plistlib poplib pprint profile pstats queue quopri
    random re sched secrets selectors shelve shlex shutil signal smtplib socket sqlite3 ssl stat statistics string
    struct subprocess tarfile tempfile textwrap threading timeit token tokenize trace traceback tracemalloc types
    typing unittest urllib uuid venv warnings wave weakref zipapp zipfile
"""

#: Article 1 to 3 of the Universal Declaration of Human Rights.
FOREIGN = {
    "fr": (
        "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
        "conscience et doivent agir les uns envers les autres dans un esprit de fraternité. Chacun peut se "
        "prévaloir de tous les droits et de toutes les libertés proclamés dans la présente Déclaration, sans "
        "distinction aucune, notamment de race, de couleur, de sexe, de langue, de religion, d'opinion politique "
        "ou de toute autre opinion. Tout individu a droit à la vie, à la liberté et à la sûreté de sa personne."
    ),
    "de": (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
        "begabt und sollen einander im Geiste der Brüderlichkeit begegnen. Jeder hat Anspruch auf alle in dieser "
        "Erklärung verkündeten Rechte und Freiheiten, ohne irgendeinen Unterschied, etwa nach Rasse, Hautfarbe, "
        "Geschlecht, Sprache, Religion, politischer oder sonstiger Anschauung, nationaler oder sozialer Herkunft,"
        " Vermögen, Geburt oder sonstigem Stand. Jeder hat das Recht auf Leben, Freiheit und Sicherheit der "
        "Person."
    ),
    "es": (
        "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
        "conciencia, deben comportarse fraternalmente los unos con los otros. Toda persona tiene todos los "
        "derechos y libertades proclamados en esta Declaración, sin distinción alguna de raza, color, sexo, "
        "idioma, religión, opinión política o de cualquier otra índole, origen nacional o social, posición "
        "económica, nacimiento o cualquier otra condición. Todo individuo tiene derecho a la vida, a la libertad "
        "y a la seguridad de su persona."
    ),
}
COOKIES = "<html><head><title>Welcome</title></head><body><p>This site uses cookies. Accept?</p></body></html>"


@dataclass(frozen=True)
class Page:
    """What a server answered. kind: page, copy, near-copy, boilerplate or a language."""

    url: str
    html: str
    kind: str = "page"


def pydoc_pages(modules: Iterable[str] = tuple(_MODULES.split())) -> Iterator[Page]:
    """What `pydoc` shows of each module."""
    writer = pydoc.HTMLDoc()
    for name in modules:
        module = importlib.import_module(name)
        html = pydoc.html.page(pydoc.describe(module), writer.document(module))
        yield Page(f"https://docs.example/{name}.html", html)


def folder_pages(folder: Path) -> Iterator[Page]:
    """The HTML files below a folder."""
    for path in sorted(folder.rglob("*.html")):
        if path.is_file():
            yield Page(f"https://docs.example/{path.relative_to(folder)}", path.read_text(errors="replace"))


def with_noise(pages: Iterable[Page], seed: int) -> Iterator[Page]:
    """The pages as a crawl would bring them: of every five, one comes again as it is, one slightly edited."""
    draw = random.Random(seed)
    for number, page in enumerate(pages):
        yield page
        if number % 5 == 1:
            yield Page(page.url + "?session=1", page.html, "copy")
        if number % 5 == 2:
            yield Page(page.url.replace("docs.", "mirror."), edited(page.html, draw), "near-copy")
        if number % 5 == 3:
            yield Page(f"https://shop.example/{number}", COOKIES, "boilerplate")
        if number % 5 == 4:
            language = sorted(FOREIGN)[number // 5 % len(FOREIGN)]
            body = "".join(f"<p>{FOREIGN[language]}</p>" for _ in range(2))
            html = f"<html><head><title>{number}</title></head><body><main>{body}<p>{number}</p></main></body></html>"
            yield Page(f"https://{language}.example/{number}", html, language)


def edited(html: str, draw: random.Random) -> str:
    """Another date, and one word in four hundred changed, but no markup."""

    def change(match: re.Match[str]) -> str:
        words = match.group().split(" ")
        return " ".join("changed" if word.isalpha() and draw.random() < 1 / 400 else word for word in words)

    return re.sub(r">[^<>]+<", change, html)


def write_warc(path: Path, pages: Iterable[Page], seed: int = 0) -> int:
    """Writes the pages as responses, with requests, redirects and pictures between them; how many pages."""
    draw = random.Random(seed)
    count = 0
    with open(path, "wb") as file:
        for page in pages:
            count += 1
            _record(file, page.url, "200 OK", "text/html; charset=utf-8", page.html.encode())
            if draw.random() < 0.1:
                _record(file, page.url + ".png", "200 OK", "image/png", b"\x89PNG\r\n\x1a\n" + draw.randbytes(500))
            if draw.random() < 0.1:
                _record(file, page.url + "/gone", "404 Not Found", "text/html", b"<html><body>Not found</body></html>")
    return count


def _record(file: io.BufferedWriter, url: str, status: str, kind: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    record = WarcRecord()
    record.init_headers(WarcRecordType.response, str(uuid.uuid5(uuid.NAMESPACE_URL, url)).encode())
    record.headers["WARC-Date"] = "2026-01-01T00:00:00Z"
    record.headers["WARC-Target-URI"] = url
    record.headers["Content-Type"] = "application/http; msgtype=response"
    record.set_bytes_content(head + body)
    plain = io.BytesIO()
    record.write(plain)
    file.write(gzip.compress(plain.getvalue(), 6, mtime=0))  # each record is a member of its own


if __name__ == "__main__":
    output, *folders = map(Path, sys.argv[1:])
    output.parent.mkdir(parents=True, exist_ok=True)
    print(write_warc(output, with_noise(folder_pages(folders[0]) if folders else pydoc_pages(), seed=0)), "pages")
