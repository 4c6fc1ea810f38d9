"""Pictures with captions made for tests: scenes of shapes that differ clearly, in files, lists and tars."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (210, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (230, 200, 40)}
SHAPES = ("circle", "square", "triangle")


def scene(seed: int, size: tuple[int, int] = (96, 80)) -> tuple[Image.Image, str]:
    """A picture of three shapes on noise, and a caption that says what is to be seen. Two seeds, two pictures."""
    draw = random.Random(seed)
    width, height = size
    coarse = np.random.default_rng(seed).integers(60, 256, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    words = []
    for _ in range(3):
        colour, shape = draw.choice(sorted(COLOURS)), draw.choice(SHAPES)
        side = min(size) // 4
        x, y = draw.randrange(0, width - side), draw.randrange(0, height - side)
        box = (x, y, x + side, y + side)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=COLOURS[colour])
        words.append(f"a {colour} {shape}")
    return image, f"{words[0]} beside {words[1]} and {words[2]}, picture {seed}"


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 92) -> bytes:
    """The picture's bytes."""
    out = io.BytesIO()
    image.save(out, kind, **({"quality": quality} if kind != "PNG" else {}))
    return out.getvalue()


def write_folder(folder: Path, seeds: Sequence[int], kind: str = "JPEG") -> Path:
    """NNN.jpg (or .png, .webp) with NNN.txt for each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        image, caption = scene(seed)
        extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
        (folder / f"{seed:03d}.{extension}").write_bytes(encoded(image, kind))
        (folder / f"{seed:03d}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar with these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tar_members(seeds: Sequence[int], kind: str = "JPEG") -> list[tuple[str, bytes]]:
    """What img2dataset writes: KEY.jpg, KEY.json, KEY.txt for each seed."""
    members = []
    for seed in seeds:
        image, caption = scene(seed)
        extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
        members.append((f"{seed:09d}.{extension}", encoded(image, kind)))
        members.append((f"{seed:09d}.json", f'{{"url": "http://example.invalid/{seed}", "caption": "j"}}'.encode()))
        members.append((f"{seed:09d}.txt", caption.encode()))
    return members
