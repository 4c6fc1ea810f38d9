"""Where ranks run and how patient the supervisor is."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import UserError


@dataclass
class ClusterConfig:
    """Which nodes run the ranks, and when a run counts as failed. All times in seconds."""

    address: str | None = None
    """`host:port` of a Ray head to join (this machine must be one of its nodes); null starts a private Ray here."""
    node_address: str | None = None
    """This machine's own address in the joined cluster, where it has several; null lets Ray find it."""
    allow_open_head: bool = False
    """Join a head that lets in everybody without a token. Whoever reaches such a head can run any command there."""
    nodes: int = 1
    """Number of nodes; each gets the same number of ranks."""
    min_nodes: int | None = None
    """Go on with as few as this when nodes are lost; null: as few as the batch and the layout allow, once started on
    all; the same as `nodes`: never with fewer. Given as a number, a run also starts on so few."""
    grow: bool = True
    """Save and go on with more nodes, up to `nodes`, when lost ones have come back."""
    grow_seconds: float = 30.0
    """Not sooner than this after the number of nodes or the nodes at hand have changed; longer after a try failed."""
    ranks_per_node: int = 1
    """Ranks (processes) on each node. A multiple of the tensor-parallel size."""
    gpus_per_rank: int | None = None
    """GPUs reserved for each rank; null: one where the nodes have GPUs, else none; 0 hides them from the ranks."""
    max_restarts: int = 3
    """How often a failed run is started again without its step having grown in between."""
    heartbeat_seconds: float = 120.0
    """A rank without progress for this long counts as hung. Longer than the slowest step, validation batch or save."""
    start_seconds: float = 600.0
    """The same limit before a rank's first sign of life (imports, compilation)."""
    grace_seconds: float = 60.0
    """Time that ranks have to save and exit after SIGTERM; then they are killed. SIGTERM to `trestle` stops the run; to
    ranks of some of the nodes only (or `ray drain-node`), it says that those nodes go away: the run saves, and goes on
    with others or fewer."""
    teardown_seconds: float = 1.0
    """The same for the survivors of a failed attempt, which have nothing left to save: it delays every restart."""
    connect_seconds: float = 30.0
    """How long to try to reach a head, and to wait for the nodes asked for, at the start."""
    standby: bool | None = None
    """Keep a process on each node that has imported everything, for a restart in a second or two instead of some ten;
    it costs about 0.3 GB. null: where as much memory stays free as the ranks use; true: always; false: never."""
    node_return_seconds: float = 300.0
    """How long to wait for a lost node (or a spare one) before going on with fewer, or giving up."""
    agent_seconds: float = 30.0
    """A node whose agent has not answered for this long counts as lost."""

    def check(self, tensor_parallel: int) -> None:
        """Refuse what can never be placed. Raises `UserError`."""
        for name in ("nodes", "ranks_per_node"):
            if getattr(self, name) < 1:
                raise UserError(f"cluster.{name} is {getattr(self, name)}; it must be at least 1")
        if self.gpus_per_rank is not None and self.gpus_per_rank < 0:
            raise UserError(f"cluster.gpus_per_rank is {self.gpus_per_rank}; it must be null, 0 or more")
        if self.max_restarts < 0:
            raise UserError(f"cluster.max_restarts is {self.max_restarts}; it must be 0 or more")
        for name in ("heartbeat_seconds", "start_seconds", "connect_seconds", "agent_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"cluster.{name} is {getattr(self, name)}; it must be more than 0")
        if self.min_nodes is not None and not 1 <= self.min_nodes <= self.nodes:
            raise UserError(
                f"cluster.min_nodes is {self.min_nodes}; it must be from 1 to cluster.nodes ({self.nodes}), or null"
            )
        for name in ("grace_seconds", "teardown_seconds", "node_return_seconds", "grow_seconds"):
            if not getattr(self, name) >= 0:
                raise UserError(f"cluster.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.address is None and self.nodes > 1:
            raise UserError(
                f"cluster.nodes is {self.nodes}, but a private Ray has one node: set cluster.address to the head "
                "of a running cluster"
            )
        if self.address is not None and not _is_host_and_port(self.address):
            raise UserError(f"cluster.address is {self.address!r}; it must look like host:6379, or be null")
        if self.ranks_per_node % tensor_parallel:
            fits = -(-self.ranks_per_node // tensor_parallel) * tensor_parallel
            raise UserError(
                f"cluster.ranks_per_node {self.ranks_per_node} is no multiple of the tensor-parallel size "
                f"{tensor_parallel}, so a tensor-parallel group would cross nodes: use {fits} ranks per node"
            )


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 65536
