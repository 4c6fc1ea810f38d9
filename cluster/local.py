"""A private Ray on this machine: loopback only, with a token, gone afterwards. All of Ray's internals that we touch.

Written against Ray 2.60. `ray.init()` alone cannot do this: it replaces 127.0.0.1 by the machine's outward address (and
then listens on all of them), opens its directory to everyone, and starts a dashboard, an autoscaler and a log monitor.
`tests/cluster/test_local_ray.py` fails when an upgrade changes any of it.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import RayStartError
from cluster.leftovers import Guard, end_all, tree_of

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # Ray's minimum is 75 MB; ranks never use it
LONGEST_TEMPORARY = 30  # characters; Ray's socket paths add 75 to it, and Linux allows 107


def quiet_environment() -> dict[str, str]:
    """What every Ray process that we start or join with should have in its environment."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning; CUDA_VISIBLE_DEVICES is ours to set
        "RAY_LOG_TO_DRIVER": "0",
    }


class LocalRay:
    """An embedded head. `start()`, then `address`; `stop()` in any case, also after a failed start.

    `root` is private (0700) and holds the token file (0600), Ray's own directory and the agents' heartbeat files.
    """

    def __init__(self) -> None:
        self.root = private_directory()
        self.token_file = self.root / "token"
        self._node: Any = None
        self._guard = Guard(self.root)
        write_private(self.token_file, secrets.token_hex(32))

    def environment(self) -> dict[str, str]:
        """Variables that must be set in this process before `start()`, and inherited by all that it starts."""
        return {
            **quiet_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_worker_niceness": "0",  # Ray's 15 would hold for the agent and every rank: anything else goes first
            "RAY_prestart_worker_first_driver": "0",  # or a big node starts one idle worker for each of its cores
            "RAY_memory_monitor_refresh_ms": "0",  # under memory pressure it would kill the agent, not a rank
        }

    @property
    def address(self) -> str:
        """`host:port` of the head."""
        return str(self._node.address)

    def start(self, cores: int) -> None:
        """Start the head in about 2 s. Must be called by a thread that lives as long as the head (PR_SET_PDEATHSIG).

        Raises `RayStartError`.
        """
        import ray._private.node
        import ray._private.parameter
        from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

        forget_cached_settings()
        ensure_token_if_auth_enabled(create_token_if_missing=False)

        class Head(ray._private.node.Node):  # type: ignore[misc]
            def start_api_server(self, **_: object) -> None:
                """No dashboard: nobody asks it anything, and it is one more thing that listens."""

        parameters_of: Any = ray._private.parameter.RayParams  # its annotations are not to be trusted
        parameters = parameters_of(
            node_ip_address=LOOPBACK,
            num_cpus=cores,
            object_store_memory=OBJECT_STORE_BYTES,
            temp_dir=str(self.root / "ray"),
            include_log_monitor=False,
            include_dashboard=False,
            no_monitor=True,
            dashboard_agent_listen_port=0,
        )
        logging.getLogger("ray").setLevel(logging.ERROR)
        for last_try in (False, True):
            try:
                self._node = Head(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True)
                return
            except Exception as error:  # Ray raises plain Exception when a part does not come up
                words = f"the embedded Ray did not start: {_one_line(error)}{self._last_words()}"
                end_all(tree_of(str(self.root)), time.monotonic())
                # Ray waits 30 s for its parts, which a busy machine may well exceed once.
                if last_try or "timed out" not in str(error):
                    raise RayStartError(words) from error

    def stop(self, disconnect: Callable[[], None]) -> None:
        """Call `disconnect`, end every process of this Ray and all their children, and remove its directory."""
        processes = tree_of(str(self.root))  # now, while every child still has its parent
        disconnect()
        if self._node is not None:
            self._node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            self._node = None
        end_all(processes, time.monotonic() + 0.5)
        self._guard.close()  # removes the directory

    def _last_words(self) -> str:
        for name in ("gcs_server.out", "gcs_server.err", "raylet.out", "raylet.err"):
            for log in (self.root / "ray").glob(f"session_2*/logs/{name}"):
                lines = log.read_text(errors="replace").strip().splitlines()
                if lines:
                    return f" ({name}: {lines[-1][:200]})"
        return ""


def forget_cached_settings() -> None:
    """Make Ray read RAY_AUTH_MODE and the token again: it may have been imported before they were set."""
    import ray

    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def use_loopback(on: bool) -> bool:
    """Let Ray take 127.0.0.1 for what it is, as it does on a Mac, instead of resolving it; returns what was set."""
    from ray._private import ray_constants

    before = not ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = not on
    return before


def draining_nodes() -> set[str]:
    """Ray's names of the nodes that are to go away: by `ray drain-node`, or an autoscaler told by the cloud."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def private_directory() -> Path:
    """A new directory that only this user can enter, with a path short enough for Ray's sockets."""
    base = tempfile.gettempdir()
    try:
        return Path(tempfile.mkdtemp(prefix="trestle-", dir=base if len(base) <= LONGEST_TEMPORARY else "/tmp"))
    except OSError as error:
        raise RayStartError(f"no place for Ray's files: {error}") from error


def write_private(path: Path, text: str) -> None:
    """Create a file that nobody else can read, at no moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
