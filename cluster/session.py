"""A connection to Ray, private or joined, that leaves neither processes nor files nor settings behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.authentication import check_head
from cluster.config import ClusterConfig
from cluster.errors import HeadUnreachable, RayStartError
from cluster.local import LOOPBACK, LocalRay, forget_cached_settings, quiet_environment, use_loopback

PATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
"""After 60 s without a head Ray would end this process where it stands, before it could say what has happened."""


@dataclass(frozen=True)
class Session:
    """An open connection. `scratch` is a private directory shared with the agents, None where they are elsewhere.

    `shipped`: the code came with the job that this is, and Ray has unpacked it on every node, on each in another place;
    there it is the agents' working directory.
    """

    address: str
    scratch: Path | None
    shipped: bool = False


@contextmanager
def open_session(config: ClusterConfig, cores: int, on_close: Callable[[], None]) -> Iterator[Session]:
    """Start a private Ray offering `cores` CPUs, or join `config.address`, for the duration of the context.

    `on_close` is called before anything is taken down.
    Raises `RayStartError`, `HeadUnreachable`, `OpenHead`.
    """
    if config.address is None:
        with _private(cores, on_close) as session:
            yield session
    else:
        with _joined(config, on_close) as session:
            yield session


@contextmanager
def _private(cores: int, on_close: Callable[[], None]) -> Iterator[Session]:
    local = LocalRay()
    with _environment(local.environment()):
        former = use_loopback(True)
        try:
            local.start(cores)
            _connect(local.address, LOOPBACK)
            yield Session(local.address, local.root / "heartbeats")
        finally:
            on_close()
            local.stop(_disconnect)
            use_loopback(former)
    forget_cached_settings()


@contextmanager
def _joined(config: ClusterConfig, on_close: Callable[[], None]) -> Iterator[Session]:
    assert config.address is not None
    with _environment({**quiet_environment(), **PATIENT}):
        former = use_loopback(config.address.startswith((LOOPBACK, "localhost")))
        try:
            forget_cached_settings()
            check_head(config.address, config.connect_seconds, config.allow_open_head)
            _connect(config.address, config.node_address)
            yield Session(config.address, None, shipped=_code_was_shipped())
        finally:
            on_close()
            _disconnect()
            use_loopback(former)


def _connect(address: str, node_address: str | None) -> None:
    import ray

    if ray.is_initialized():
        raise RayStartError("this process is already connected to a Ray cluster; shut that connection down first")
    options: dict[str, Any] = {} if node_address is None else {"_node_ip_address": node_address}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False, **options)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, RayError, or plain Exception
        text = " ".join(str(error).split())[:300]
        raise HeadUnreachable(f"could not join the Ray head at {address}: {text}") from error


def _code_was_shipped() -> bool:
    import ray

    return "working_dir" in (ray.get_runtime_context().runtime_env or {})


def _disconnect() -> None:
    import ray

    ray.shutdown()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
