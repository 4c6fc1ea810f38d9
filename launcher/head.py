"""The cluster that `submit`, `jobs`, `logs` and `stop` speak to: the options that say where it is and who we are."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from launcher.arguments import Parser

if TYPE_CHECKING:
    from cluster.jobs import ClusterJob, Jobs

ADDRESS = "http://127.0.0.1:8265"


def add_head(parser: Parser) -> None:
    """The options themselves."""
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", ADDRESS),
        help=f"the head's dashboard, through a tunnel as a rule (RAY_API_SERVER_ADDRESS, else {ADDRESS})",
    )
    parser.add_argument(
        "--token-file",
        help="a file, mode 0600, with the head's token (else RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token)",
    )
    parser.add_argument(
        "--allow-open-head",
        action="store_true",
        help="speak to a head that lets in everybody without a token, and where anybody can thus run any command",
    )


def jobs_of(arguments: argparse.Namespace) -> Jobs:
    """The jobs of the head that these options name. Raises ClusterError and UserError of the room `cluster`."""
    from cluster.jobs import connect

    return connect(
        arguments.address,
        token_file=arguments.token_file,
        allow_open=arguments.allow_open_head,
        before_clear_token=_warn,
    )


def _warn(address: str) -> None:
    print(
        f"trestle: the token goes to {address} unencrypted; a tunnel would hide it: "
        f"ssh -N -L 8265:127.0.0.1:8265 {host_of(address)}",
        file=sys.stderr,
        flush=True,
    )


def host_of(address: str) -> str:
    """The head as SSH would be told of it: the address's host, or HEAD where that is a tunnel's end."""
    host = urlsplit(address).hostname or "HEAD"
    return "HEAD" if host in ("127.0.0.1", "localhost", "::1") else host


def follow(jobs: Jobs, job: ClusterJob) -> int:
    """Show what a job prints until it has ended; its exit code."""
    ended = jobs.follow(job, lambda text: print(text, end="", flush=True))
    if ended.status in ("failed", "killed", "stopped"):
        print(f"trestle: {job.name} {ended.status}: {' '.join(ended.message.split())[:300]}", file=sys.stderr)
    return 1 if ended.exit_code is None else ended.exit_code
