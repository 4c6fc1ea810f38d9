"""A set of pictures with captions that every installation can make: strips of three handwritten digits.

The digits are the 1,797 of scikit-learn (8 x 8 pixels, Alpaydin and Kaynak 1998), a caption is their names: "three
seven one". A hundred of the thousand combinations occur in held-out strips alone, which are written with digits that no
training strip has: what is measured on them is composition, not memory.

`python -m launcher.digits FOLDER` writes what `trestle prepare demo-clip` reads from ./digits.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 24
"""Height and width of a picture, in pixels: a strip of 8 x 24 in the middle of a square."""
HELD_OUT_COMBINATIONS = 100
_HELD_OUT_DIGITS = 0.2
TRAINING_STRIPS, HELD_OUT_STRIPS = 12_000, 1_000
"""How many the demo has."""


@dataclass(frozen=True)
class DigitStrips:
    """What was written."""

    training: Path
    """Folder of PNGs with a caption beside each."""
    held_out: Path
    """The same of the held-out combinations."""
    captions: Path
    """All thousand captions, one a line: the classes of a zero-shot classification."""


def write_strips(folder: Path, *, training: int, held_out: int, seed: int = 0) -> DigitStrips:
    """Write `training` strips of 900 combinations and `held_out` of the other 100 into a new folder.

    Equal arguments give equal bytes. Raises FileExistsError if the folder is there.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    pixels = np.clip(bunch.images * (255 / 16), 0, 255).astype(np.uint8)
    random = np.random.default_rng(seed)
    order = random.permutation(len(pixels))
    unseen = order[: int(len(order) * _HELD_OUT_DIGITS)]
    seen = order[len(unseen) :]
    combinations = np.array(list(itertools.product(range(10), repeat=3)))
    random.shuffle(combinations)
    made = DigitStrips(folder / "training", folder / "held-out", folder / "captions.txt")
    folder.mkdir(parents=True)
    made.captions.write_text("".join(f"{_caption(c)}\n" for c in itertools.product(range(10), repeat=3)))
    for place, count, own, digits in (
        (made.training, training, combinations[HELD_OUT_COMBINATIONS:], seen),
        (made.held_out, held_out, combinations[:HELD_OUT_COMBINATIONS], unseen),
    ):
        place.mkdir()
        of_digit = [digits[bunch.target[digits] == digit] for digit in range(10)]
        for number in range(count):
            combination = own[number % len(own)]
            strip = np.concatenate([pixels[random.choice(of_digit[digit])] for digit in combination], axis=1)
            _write(place / f"{number:06d}", strip, _caption(combination))
    return made


def _caption(combination: NDArray[np.int64] | tuple[int, ...]) -> str:
    return " ".join(NAMES[digit] for digit in combination)


def _write(path: Path, strip: NDArray[np.uint8], caption: str) -> None:
    picture = np.zeros((SIZE, SIZE), dtype=np.uint8)
    top = (SIZE - strip.shape[0]) // 2
    picture[top : top + strip.shape[0]] = strip
    written, data = cv2.imencode(".png", picture)
    assert written
    path.with_suffix(".png").write_bytes(data.tobytes())
    path.with_suffix(".txt").write_text(caption + "\n")


if __name__ == "__main__":
    print(write_strips(Path(sys.argv[1]), training=TRAINING_STRIPS, held_out=HELD_OUT_STRIPS))
