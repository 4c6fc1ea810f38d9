"""A Ray head with its dashboard, and a second node, as an administrator starts them: `ray start`, all on loopback."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.leftovers import end_all, holders_of
from cluster.local import write_private
from tests.distributed.launch import free_port

RAY = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
SMALL = ["--include-log-monitor=false", "--object-store-memory=80000000", "--dashboard-agent-listen-port=0"]
HEAD, OTHER = "127.0.0.2", "127.0.0.3"
PATIENCE = 300.0


@dataclass
class Head:
    """`root` holds the token, and a directory of Ray's own for each node, at another path on each."""

    root: Path
    with_token: bool
    port: int  # of the dashboard
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def token_file(self) -> Path:
        return self.root / "token"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """Of the head itself."""
        [port] = self.root.glob("head/session_2*/gcs_server_port_*")
        return f"{HEAD}:{port.read_text().strip()}"

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        return inherited | (mode if self.with_token else {"RAY_AUTH_MODE": "disabled"})

    def start(self, *options: str) -> None:
        log = (self.root / f"start-{len(self.processes)}").open("wb")
        command = [*RAY, *SMALL, *options]
        environment = self.environment()
        self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.root))

    def said(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.root.glob("start-*"))

    def wait_for_dashboard(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert all(process.poll() is None for process in self.processes), self.said()
            if self._answers():
                return
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)  # `ray start` tells nobody

    def _answers(self) -> bool:
        """Whether a dashboard does, rather than whatever else may listen there."""
        try:
            with urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=30) as answer:
                return b"ray_version" in answer.read()
        except urllib.error.HTTPError as error:
            return self.with_token and error.code == 401
        except (OSError, ValueError, http.client.HTTPException):
            return False

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        end_all(holders_of(str(self.root)), time.monotonic() + 3.0)
        for process in self.processes:
            process.kill()
            process.wait()
        subprocess.run(["rm", "-rf", str(self.root)], check=True)


@contextlib.contextmanager
def ray_head(*, token: bool, nodes: int) -> Iterator[Head]:
    """One or two nodes of one core each; everything is gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="th-", dir="/tmp"))  # short: Ray's sockets are in it
    head = Head(root, token, free_port())
    try:
        write_private(head.token_file, secrets.token_hex(32))
        dashboard = ["--dashboard-host=127.0.0.1", f"--dashboard-port={head.port}", "--port=0"]
        head.start("--head", f"--node-ip-address={HEAD}", "--num-cpus=1", f"--temp-dir={head.root}/head", *dashboard)
        head.wait_for_dashboard()
        if nodes == 2:
            where = [f"--node-ip-address={OTHER}", f"--temp-dir={head.root}/other"]
            head.start(f"--address={head.address}", "--num-cpus=1", *where)
        yield head
    finally:
        head.close()
