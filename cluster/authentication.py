"""Who may use a head: the token that we show, and the refusal of heads that let everybody in.

A Ray head without a token runs any command that reaches its ports (CVE-2023-48022). So before anything is sent to one,
it is asked something harmless without a token; only a head that refuses is used, unless the user says otherwise.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import HeadUnreachable, OpenHead, UserError

PROBE_SECONDS = 10.0
MEND = "start it with RAY_AUTH_MODE=token and a token file"


def use_token_file(path: str | None) -> None:
    """Let Ray, in this process, show the token in `path`; None: in RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token if it
    is there. The token itself is never put into an environment or a command line.

    Raises `UserError` when the file cannot be read, is empty, or can be read by others.
    """
    if path is None:
        default = Path.home() / ".ray" / "auth_token"
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or (str(default) if default.is_file() else None)
    else:
        os.environ.pop("RAY_AUTH_TOKEN", None)  # it would go before the file
    if path is not None:
        check_token_file(Path(path))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(path).absolute())
    if path is not None or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ["RAY_AUTH_MODE"] = "token"


def use_no_token() -> None:
    """Let Ray, in this process, show none: the head has not asked for it."""
    os.environ["RAY_AUTH_MODE"] = "disabled"


def check_token_file(path: Path) -> None:
    """Raise `UserError` unless `path` holds a token that only its owner can read."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        empty = not path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"the token file {path} cannot be read: {why}; copy the head's to it") from error
    if mode & 0o077:
        raise UserError(f"the token file {path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    if empty:
        raise UserError(f"the token file {path} is empty: copy the head's token to it")


def check_dashboard(address: str, allow_open: bool) -> bool:
    """Refuse a dashboard that lists its jobs to somebody without a token. `address` is http://host:port.

    Returns whether it wants a token. Raises `OpenHead`, `HeadUnreachable`.
    """
    status = _status_without_token(f"{address}/api/jobs/")
    if status in (401, 403):
        return True
    if status != 200:
        raise HeadUnreachable(f"what answers at {address} is no Ray dashboard (HTTP {status})")
    if not allow_open:
        raise OpenHead(
            f"the Ray head at {address} answers without authentication: whoever reaches it can run any command there; "
            f"{MEND}, or say --allow-open-head"
        )
    return False


def _status_without_token(url: str) -> int:
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(url, timeout=PROBE_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError, http.client.HTTPException) as error:
        host = urlsplit(url).netloc
        reason = getattr(error, "reason", error)
        raise HeadUnreachable(
            f"no Ray dashboard answers at {host} ({reason}); it listens on the head's loopback: "
            "open a tunnel with `ssh -N -L 8265:127.0.0.1:8265 HEAD` and say --address http://127.0.0.1:8265"
        ) from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A page to log in at is not what was asked for."""


def travels_in_clear(address: str) -> bool:
    """Whether a token sent to this address can be read on the way."""
    parts = urlsplit(address)
    return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: 127.example.org is one
        return host == "localhost"


def check_head(address: str, seconds: float, allow_open: bool) -> None:
    """Raise `HeadUnreachable` unless a Ray head answers at host:port and lets us in; ray.init itself would try for
    minutes. Raise `OpenHead` if it lets in everybody. `seconds`: how long to try.
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    error = _ask(_channel_without_token(address), seconds)
    if error is None and not allow_open:
        raise OpenHead(
            f"the Ray head at {address} lets in everybody without a token: whoever reaches it can run any command "
            f"there; {MEND}, or set cluster.allow_open_head to true"
        )
    if error is None or error.code() in refusals:
        # Now with the token and TLS where RAY_AUTH_MODE and RAY_USE_TLS say so.
        error = _ask(init_grpc_channel(address), seconds)
    if error is None:
        return
    if error.code() in refusals:
        raise HeadUnreachable(
            f"the Ray head at {address} wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file "
            "that holds it"
        ) from error
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        raise HeadUnreachable(f"what answers at {address} is no Ray head") from error
    raise HeadUnreachable(
        f"no Ray head has answered at {address} for {seconds:g} s; start one with `ray start --head` (if it uses TLS, "
        "set RAY_USE_TLS=1 and its certificates here, too), or set cluster.address to null for a private Ray"
    ) from error


def _ask(channel: Any, seconds: float) -> Any:
    """The error of the cheapest call that a head knows, None where it is answered. Closes the channel."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    generated: Any = gcs_service_pb2
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        stub.CheckAlive(generated.CheckAliveRequest(), timeout=seconds, wait_for_ready=True)
    except grpc.RpcError as error:
        return error
    finally:
        channel.close()
    return None


def _channel_without_token(address: str) -> Any:
    """As Ray's `init_grpc_channel` (2.60), but for the token."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address)
    from ray._common.tls_utils import load_certs_from_env

    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(certificate_chain=chain, private_key=key, root_certificates=authority),
    )
