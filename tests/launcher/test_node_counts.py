"""On how many nodes a recipe can go on when some are lost."""

from __future__ import annotations

import pytest

from cluster.config import ClusterConfig
from launcher.job import job_of
from launcher.supervise import node_counts

MODEL = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "sequence_length": 32, "vocab_size": 256}


@pytest.mark.parametrize(
    ("nodes", "ranks_per_node", "parallel", "batch", "counts"),
    [
        (4, 2, {}, {"global_batch_size": 16, "micro_batch_size": 2}, [2, 1]),
        (4, 2, {}, {"global_batch_size": 48, "micro_batch_size": 2}, [3, 2, 1]),
        (4, 2, {"tensor": 2}, {"global_batch_size": 12, "micro_batch_size": 1}, [3, 2, 1]),
        (4, 2, {"tensor": 2, "pipeline": 2}, {"global_batch_size": 16, "micro_batch_size": 2}, [2]),
        (1, 2, {}, {"global_batch_size": 16, "micro_batch_size": 2}, []),
        # 8, 16, 24 samples in turn: three ranks divide the last alone
        (
            3,
            1,
            {},
            {"global_batch_size": 24, "micro_batch_size": 1, "ramp": {"start": 8, "increment": 8, "over": "8k tokens"}},
            [2, 1],
        ),
    ],
)
def test_layout_and_every_batch_of_a_ramp_must_divide(
    nodes: int, ranks_per_node: int, parallel: dict[str, int], batch: dict[str, object], counts: list[int]
) -> None:
    job = job_of({"model": MODEL, "batch": batch, "parallel": parallel})
    job.cluster = ClusterConfig(address="h:1", nodes=nodes, ranks_per_node=ranks_per_node)
    assert node_counts(job) == counts
