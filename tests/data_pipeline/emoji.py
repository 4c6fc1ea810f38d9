"""Real named pictures: the emoji of Debian's fonts-noto-color-emoji, each with its Unicode name.

The package is used where it is installed; else it is fetched by apt-get and unpacked into a folder, not installed.
"""

from __future__ import annotations

import csv
import subprocess
import unicodedata
from pathlib import Path

PACKAGE = "fonts-noto-color-emoji"
_PLACE = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


def find_font(folder: Path) -> Path:
    """The font's file. Raises AssertionError, which says how to mend it, if there is none to be had."""
    installed = Path("/") / _PLACE
    if installed.is_file():
        return installed
    folder.mkdir(parents=True, exist_ok=True)
    said = ""
    for command in (["apt-get", "download", PACKAGE], ["apt-get", "update", "-qq"], ["apt-get", "download", PACKAGE]):
        if not list(folder.glob("*.deb")):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            said = done.stderr.strip()
    packages = list(folder.glob("*.deb"))
    assert packages, f"there is no {installed}, and apt-get cannot fetch it: apt-get install {PACKAGE} ({said[-300:]})"
    subprocess.run(["dpkg-deb", "-x", str(packages[0]), str(folder)], timeout=120, check=True)
    return folder / _PLACE


def write_emoji(font: Path, folder: Path) -> Path:
    """Writes each emoji of one character as a PNG of 136 x 128 pixels; returns the list of (path, name), a CSV."""
    from fontTools.ttLib import TTFont

    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    opened = TTFont(font, lazy=True)
    (strike,) = opened["CBDT"].strikeData
    rows = []
    for code, glyph in sorted(opened.getBestCmap().items()):
        name = unicodedata.name(chr(code), "").lower()
        if name and glyph in strike:
            (pictures / f"u{code:05x}.png").write_bytes(strike[glyph].imageData)
            rows.append((f"pictures/u{code:05x}.png", name))
    with open(folder / "emoji.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("picture", "name"), *rows])
    return folder / "emoji.csv"
