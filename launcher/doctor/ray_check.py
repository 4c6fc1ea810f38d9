"""A private Ray as `trestle train` starts it: does it come up, and can only this machine reach it.

As a program (`python -m launcher.doctor.ray_check`) it starts one, looks, ends it, and prints JSON.
"""

from __future__ import annotations

import json
import time
from typing import Any

from launcher.doctor.findings import Finding, Status

SECTION = "cluster"
DASHBOARD, HEAD = 8265, 6379


def look() -> dict[str, Any]:
    """Addresses on which the private Ray listens, and the seconds that its start took."""
    from cluster.config import ClusterConfig
    from cluster.leftovers import tree_of
    from cluster.listening import LOOPBACK, listening
    from cluster.session import open_session

    started = time.monotonic()
    with open_session(ClusterConfig(), 1, on_close=lambda: None) as session:
        seconds = time.monotonic() - started
        assert session.scratch is not None
        sockets = listening(tree_of(str(session.scratch.parent)))
        outside = [f"{address}:{port}" for address, port in sockets if not address.startswith(LOOPBACK)]
    return {"seconds": seconds, "sockets": len(sockets), "outside": outside}


def finding_of(told: dict[str, Any]) -> Finding:
    """The line of the screen for what `look` saw."""
    if told["outside"]:
        words = f"the private Ray listens on {', '.join(told['outside'])}, where others can reach it"
        return Finding(SECTION, "private Ray", Status.FAIL, words, "install the pinned Ray: see constraints.txt")
    words = f"started in {told['seconds']:.1f} s, all {told['sockets']} ports on loopback, token needed"
    return Finding(SECTION, "private Ray", Status.OK, words)


def check_open_ports(ports: set[int]) -> Finding | None:
    """A Ray that somebody else has started here and that all can reach; `ports`: open on other addresses."""
    found = sorted(ports & {DASHBOARD, HEAD})
    if not found:
        return None
    words = f"something listens for everybody on port {' and '.join(map(str, found))}, which are Ray's"
    mend = "if it is Ray: start it with RAY_AUTH_MODE=token, and `ray start --head --node-ip-address` a private address"
    return Finding(SECTION, "open ports", Status.WARN, words, mend)


if __name__ == "__main__":
    print(json.dumps(look()), flush=True)
