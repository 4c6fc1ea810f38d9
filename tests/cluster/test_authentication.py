"""Heads that let in everybody are refused, by both of their doors, unless the user says otherwise."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import ClusterConfig, ClusterError, UserError, run
from cluster.authentication import check_dashboard, check_head, check_token_file, travels_in_clear
from cluster.errors import HeadUnreachable, OpenHead
from cluster.jobs import connect
from tests.launcher.head import ray_head


def test_a_head_without_a_token_is_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with ray_head(token=False, nodes=1) as head:
        with pytest.raises(OpenHead, match=r"answers without authentication: .* or say --allow-open-head") as raised:
            connect(head.dashboard)
        assert raised.value.exit_code == 2 and "\n" not in str(raised.value)
        assert connect(head.dashboard, allow_open=True).list() == []
        with pytest.raises(OpenHead, match=r"lets in everybody .* or set cluster.allow_open_head to true"):
            join(head.address, tmp_path)
        check_head(head.address, 60.0, allow_open=True)


def join(address: str, tmp_path: Path) -> None:
    config = ClusterConfig(address=address, connect_seconds=60.0)
    nothing = {"environment": {}, "log_directory": tmp_path, "on_event": print, "on_output": print}
    run(["true"], config, tensor_parallel=1, **nothing)  # type: ignore[arg-type]


@contextmanager
def answering(status: int, shown: list[str | None] | None = None) -> Iterator[str]:
    """A web server that is no dashboard; its address. `shown` gets the token of each request, or None."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if shown is not None:
                shown.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Location", "/login")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [302, 404, 500])
def test_what_is_no_dashboard_gets_no_token(status: int) -> None:
    with answering(status) as address, pytest.raises(HeadUnreachable, match=f"no Ray dashboard .HTTP {status}"):
        check_dashboard(address, allow_open=True)


def test_where_nothing_answers_a_tunnel_is_proposed() -> None:
    with answering(200) as address:
        pass
    with pytest.raises(HeadUnreachable, match=r"ssh -N -L 8265:127.0.0.1:8265 HEAD") as raised:
        check_dashboard(address, allow_open=False)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://head:10001", "http://me:word@head:8265", "http://"])
def test_an_address_that_is_no_dashboards_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"it must look like http://127.0.0.1:8265"):
        connect(address)


def test_token_file_must_be_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ClusterError, match="cannot be read: No such file"):
        check_token_file(path)
    path.write_text("")
    path.chmod(0o600)
    with pytest.raises(ClusterError, match="is empty"):
        check_token_file(path)
    path.write_text("0" * 64)
    check_token_file(path)
    path.chmod(0o640)
    with pytest.raises(UserError, match=r"can be read by others \(mode 0640\): chmod 600"):
        check_token_file(path)


def test_only_loopback_and_https_hide_the_token() -> None:
    assert travels_in_clear("http://head:8265") and travels_in_clear("http://10.0.0.1:8265")
    for named_like_loopback in ("127.evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[2001::1]"):
        assert travels_in_clear(f"http://{named_like_loopback}:8265")
    assert not travels_in_clear("https://head") and not travels_in_clear("http://127.0.0.1:8265")
    assert not travels_in_clear("http://[::1]:8265") and not travels_in_clear("http://localhost:8265")


class _Withheld(Exception):
    pass


def test_the_word_about_an_unencrypted_token_comes_before_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "before")  # and thus put back afterwards
        monkeypatch.delenv(name)
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    shown: list[str | None] = []
    told: list[str] = []

    def withhold(where: str) -> None:
        told.append(where)
        raise _Withheld

    with answering(401, shown) as address:
        address = address.replace("127.0.0.1", "127.1")  # the same place, but no name that we know to be loopback
        with pytest.raises(_Withheld):
            connect(address, token_file=str(token), before_clear_token=withhold)
    assert told == [address] and shown == [None]


def test_a_head_that_asks_for_no_token_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    shown: list[str | None] = []
    with answering(200, shown) as address, contextlib.suppress(HeadUnreachable):  # it is no dashboard
        connect(address, allow_open=True)
    assert len(shown) > 1 and set(shown) == {None}
