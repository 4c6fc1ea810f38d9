"""Groups of a process share one gloo device, and with it one thread that watches sockets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from modeling import gloo
from tests.modeling.worlds import world_of_one


def options_of(group: dist.ProcessGroup) -> Any:
    return group._get_backend(torch.device("cpu")).options


def test_all_groups_share_one_device_and_each_works_with_its_own_timeout() -> None:
    gloo.share_device()
    with world_of_one():
        assert dist.group.WORLD is not None
        (shared,) = options_of(dist.group.WORLD)._devices
        groups = [dist.new_group([0], timeout=timedelta(seconds=60 + i)) for i in range(3)]
        for i, group in enumerate(groups):
            assert options_of(group)._devices == [shared]
            assert options_of(group)._timeout == timedelta(seconds=60 + i)
            value = torch.tensor([3.0])
            dist.all_reduce(value, group=group)
            assert value.item() == 3.0
            dist.destroy_process_group(group)
