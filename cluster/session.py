"""A connection to Ray, private or joined, that leaves neither processes nor files nor settings behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.errors import HeadUnreachable, RayStartError
from cluster.local import LOOPBACK, LocalRay, forget_cached_settings, quiet_environment, use_loopback


@dataclass(frozen=True)
class Session:
    """An open connection. `scratch` is a private directory shared with the agents, None where they are elsewhere."""

    address: str
    scratch: Path | None


@contextmanager
def open_session(config: ClusterConfig, cores: int, on_close: Callable[[], None]) -> Iterator[Session]:
    """Start a private Ray offering `cores` CPUs, or join `config.address`, for the duration of the context.

    `on_close` is called before anything is taken down.
    Raises `RayStartError`, `HeadUnreachable`.
    """
    if config.address is None:
        with _private(cores, on_close) as session:
            yield session
    else:
        with _joined(config.address, config.node_address, config.connect_seconds, on_close) as session:
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
def _joined(address: str, node_address: str | None, seconds: float, on_close: Callable[[], None]) -> Iterator[Session]:
    with _environment(quiet_environment()):
        former = use_loopback(address.startswith((LOOPBACK, "localhost")))
        try:
            forget_cached_settings()
            _greet(address, seconds)
            _connect(address, node_address)
            yield Session(address, None)
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


def _disconnect() -> None:
    import ray

    ray.shutdown()


def _greet(address: str, seconds: float) -> None:
    """Raise `HeadUnreachable` unless a Ray head answers there and lets us in; ray.init itself would try for minutes."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    generated: Any = gcs_service_pb2
    channel = init_grpc_channel(address)  # with the token and TLS where RAY_AUTH_MODE and RAY_USE_TLS say so
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        stub.CheckAlive(generated.CheckAliveRequest(), timeout=seconds, wait_for_ready=True)
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise HeadUnreachable(
                f"the Ray head at {address} wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file "
                "that holds it"
            ) from error
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise HeadUnreachable(f"what answers at {address} is no Ray head") from error
        raise HeadUnreachable(
            f"no Ray head has answered at {address} for {seconds:g} s; start one with `ray start --head`, "
            "or set cluster.address to null for a private Ray"
        ) from error
    finally:
        channel.close()


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
