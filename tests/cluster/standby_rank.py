"""`rank.py` that knows how to be a standby, with imports of its own that may go wrong:
`python standby_rank.py BEHAVIOUR [IMPORTS]`.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from training import standby


def load(arguments: list[str]) -> None:
    """What the test asked for."""
    kind = arguments[1] if len(arguments) > 1 else "fast"
    print("standby imports", flush=True)
    if kind == "broken":
        raise ImportError("no module named so")
    if kind == "hanging":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "thread":
        threading.Thread(target=time.sleep, args=(600,), name="helper", daemon=True).start()


if __name__ == "__main__":
    standby.become_rank_if_standby(load)
    runpy.run_path(str(Path(__file__).with_name("rank.py")), run_name="__main__")
