"""The demo of pictures and texts, `make demo-clip`: a CLIP that reads three digits, in the current directory.

Each step is the command that a user would type; it is shown before it runs.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from launcher import cli
from launcher.digits import HELD_OUT_STRIPS, TRAINING_STRIPS, write_strips
from launcher.run_folder import RunFolder
from launcher.supervise import closing_words

RUN = Path("runs/demo-clip")
STEPS: list[list[str]] = [["prepare", "demo-clip"], ["train", "demo-clip"], ["evaluate", str(RUN)]]


def main() -> int:
    """Run the steps; the exit code of the first that fails."""
    begun = time.monotonic()
    made = write_strips(Path("digits"), training=TRAINING_STRIPS, held_out=HELD_OUT_STRIPS)
    print(f"{TRAINING_STRIPS:,} strips of three digits in {made.training}")
    print(f"{HELD_OUT_STRIPS:,} strips of other digits, in other combinations, in {made.held_out}")
    for words in STEPS:
        print(f"\n$ trestle {shlex.join(words)}", flush=True)
        code = cli.main(words)
        if code:
            return code
    print(f"\nall of it took {time.monotonic() - begun:.0f} s, in {Path.cwd()}")
    print(closing_words(RunFolder.existing(str(RUN.absolute()))))
    (grid,) = RUN.absolute().glob("evaluation/*/retrieval-*text_to_image.png")
    print(f"look at   {grid}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
