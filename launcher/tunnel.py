"""How to look at a run on another machine: TensorBoard listens on its loopback, and SSH leads there."""

from __future__ import annotations

import shlex
from pathlib import PurePath

PORT = 6006


def tunnel_words(run: PurePath, host: str) -> list[str]:
    """The two commands, for a run's folder on the machine `host`."""
    board = f"tensorboard --logdir {shlex.quote(f'{run}/tensorboard')} --host 127.0.0.1 --port {PORT}"
    return [
        f"  on {host}: {board}",
        f"  from afar: ssh -N -L {PORT}:127.0.0.1:{PORT} {host}    then open http://127.0.0.1:{PORT}",
    ]
