"""What sources name: which files, each once, in which order."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.errors import BadConfig, BadCorpus
from data_pipeline.sources import find_files
from data_pipeline.sources.read import suffixes
from tests.data_pipeline.reading import dropped, named, read, texts


def test_files_come_once_in_a_fixed_order_and_can_be_excluded(tmp_path: Path) -> None:
    for name in ("b.md", "a.md", "skip/c.md", "d.rst", ".hidden.md", ".git/e.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    sources = [tmp_path / "*.md", tmp_path / "**/*.md", tmp_path / "nothing/*.md", tmp_path / "skip"]
    assert texts(*sources) == ["a.md", "b.md", "skip/c.md"]
    assert texts(*sources, exclude=["*/skip/*"]) == ["a.md", "b.md"]
    assert texts(f"file://{tmp_path}/*.md") == ["a.md", "b.md"]
    assert texts(tmp_path / "**") == ["a.md", "b.md", "d.rst", "skip/c.md"]


def test_relative_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    for pattern in ("**/*.txt", "in", "*/a.txt", "i*/**"):
        assert [file.path for file in find_files([pattern], [], "c")] == ["in/a.txt"]


def test_links_neither_repeat_a_file_nor_lead_in_circles(tmp_path: Path) -> None:
    (tmp_path / "docs" / "v2").mkdir(parents=True)
    (tmp_path / "docs" / "v2" / "page.txt").write_text("page")
    os.symlink("v2", tmp_path / "docs" / "latest")
    os.symlink("v2/page.txt", tmp_path / "docs" / "start.txt")
    os.symlink(".", tmp_path / "docs" / "self")
    os.symlink("..", tmp_path / "docs" / "v2" / "up")
    os.symlink("circle", tmp_path / "docs" / "circle")
    for source in (tmp_path / "docs", tmp_path / "docs" / "**" / "*.txt", tmp_path / "**" / "v2" / "**"):
        documents, tally = read(source)
        assert [document.text for document in documents] == ["page"]
    assert texts(tmp_path / "docs" / "latest") == ["page"]
    tally = read(tmp_path / "docs")[1]
    assert dropped(tally) == {"read: unreadable": 1} and "circle" in named(tally, "read: unreadable")[0]


def test_placeholders_find_the_running_python() -> None:
    assert any(file.path.endswith("json/decoder.py") for file in find_files(["{stdlib}/json/*.py"], [], "c"))
    assert find_files(["{site_packages}/*.dist-info/METADATA"], [], "c")
    with pytest.raises(BadConfig, match=r"corpus c: .*only \{stdlib\} and \{site_packages\}"):
        find_files(["{home}/*"], [], "c")
    with pytest.raises(BadCorpus, match="corpus c: no file matches /nothing/here"):
        find_files(["/nothing/here"], [], "c")


def test_the_version_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    before = find_files([str(path)], [], "c")
    assert before == find_files([str(path)], [], "c") and before[0].size == 3
    path.write_text("two")
    assert find_files([str(path)], [], "c") != before


@pytest.fixture
def somebody() -> Iterator[Path]:
    """A folder, and a process without the super-user's rights."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    user = os.geteuid()
    yield folder
    os.seteuid(user)
    shutil.rmtree(folder)


def test_files_and_folders_without_permission_are_counted(somebody: Path) -> None:
    (somebody / "open.txt").write_text("open")
    (somebody / "closed.txt").write_text("closed")
    (somebody / "inner").mkdir()
    (somebody / "closed.txt").chmod(0)
    (somebody / "inner").chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    documents, tally = read(somebody)
    assert [document.text for document in documents] == ["open"]
    assert named(tally, "read: unreadable") == [
        f"{somebody}/closed.txt: Permission denied",
        f"{somebody}/inner: Permission denied",
    ]


def test_what_is_no_text_by_its_name_is_not_read(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "c.svg.gz", "d.css", "e.js", "f.pdf", "objects.inv", "g.pickle", "h.woff2", "i.zip"]
    for name in names:
        (tmp_path / name).write_text("looks like a text")
    (tmp_path / "changelog.gz").write_bytes(gzip.compress(b"a changelog"))
    (tmp_path / "png").write_text("no suffix")
    documents, tally = read(tmp_path)
    assert [document.text for document in documents] == ["a changelog", "no suffix"]
    assert dropped(tally) == {"read: not text": len(names)} and tally.dropped["read: not text"].bytes == 0


def test_suffixes() -> None:
    assert suffixes("/a.b/c.JSONL.Gz") == (".jsonl", ".gz")
    assert suffixes("https://x/a.warc.gz?key=b.png#c.html") == (".warc", ".gz")
    assert suffixes("/a/.gz") == ("", ".gz")
    assert suffixes("/a/.html") == ("", "") and suffixes("https://host.html") == ("", "")
