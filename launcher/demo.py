"""The demo, `make demo`: every step of Trestle on text that this machine has, in the current directory.

Each step is the command that a user would type; it is shown before it runs.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from launcher import cli
from launcher.run_folder import RunFolder
from launcher.supervise import closing_words

RUN = Path("runs/demo")
PROMPT = "def __init__(self"
STEPS: list[list[str]] = [
    ["prepare", "demo"],
    ["train", "demo"],
    ["evaluate", str(RUN)],
    ["generate", str(RUN), "--prompt", PROMPT, "--max_new_tokens", "120", "--temperature", "0.7", "--top_p", "0.95"],
]


def main() -> int:
    """Run the steps; the exit code of the first that fails."""
    begun = time.monotonic()
    for words in STEPS:
        print(f"\n$ trestle {shlex.join(words)}", flush=True)
        code = cli.main(words)
        if code:
            return code
    print(f"\nall of it took {time.monotonic() - begun:.0f} s, in {Path.cwd()}")
    print(closing_words(RunFolder.existing(str(RUN.absolute()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
