"""Which nodes a run would get if it started now, without starting it."""

from __future__ import annotations

from cluster.config import ClusterConfig
from cluster.errors import ClusterError
from cluster.placement import address_order, fit, living_nodes
from cluster.session import open_session


def nodes_now(config: ClusterConfig) -> list[str]:
    """Addresses of the nodes at `config.address` that could carry the run, in the order of ranks.

    They may be more than `config.nodes`: Ray chooses among them when the run starts. Nothing is reserved or started.
    Raises HeadUnreachable, ImpossiblePlacement.
    """
    if config.address is None:
        raise ClusterError("a private Ray has no nodes before it is started")
    with open_session(config, 0, on_close=lambda: None):
        offers = living_nodes()
        bundle = fit(offers, config)
    able = [offer.address for offer in offers if offer.cpus >= bundle.cpus and offer.gpus >= bundle.gpus]
    return sorted(able, key=address_order)
