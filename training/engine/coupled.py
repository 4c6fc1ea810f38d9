"""The gradient of a loss that couples all samples of the global batch, in micro-batches: a gradient cache (Gao et al.
2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3).

    embed       every micro-batch forward without a graph; its random state is kept
    couple      one exact loss over the features of all ranks, and its gradient with respect to this rank's
    replay      every micro-batch once more, under its random state, with a graph; the features' gradients are fed back

Only features cross ranks: the communication is O(N d), whatever the number of micro-batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from modeling import megatron_bridge
from modeling.coupling import Embedded
from modeling.registry import Family

MicroBatch = dict[str, torch.Tensor]
Figures = dict[str, torch.Tensor]


def coupled_backward(
    family: Family,
    config: Any,
    model: Callable[..., Any],
    micro_batches: Sequence[MicroBatch],
    group: dist.ProcessGroup | None,
    *,
    shared: Sequence[torch.Tensor] | None = None,
    device: torch.device | None = None,
    before: Callable[[int], None] = lambda number: None,
) -> list[Figures]:
    """Accumulate the gradient of the family's loss over the global batch; the figures of each micro-batch.

    Ranks of `group` may have different numbers of samples and of micro-batches. Gradients come out such that their
    mean over `group` is the true one, as engines reduce them: features' gradients are multiplied by the group's size;
    the shared parameters' (the scale's) are complete on every rank already, and are not.

    shared: the shared scalars more exactly than the model gives them, for the loss.
    device: where micro-batches are taken to, one at a time, each time that they are embedded; None: they are there.
    before: called with a micro-batch's number before it is embedded: where its random state may be set.
    """
    implementation = family.implementation
    size = 1 if group is None else dist.get_world_size(group)
    if len(micro_batches) == 1:
        before(0)
        embedded = implementation.embed(_on(device, micro_batches[0]), model)
        coupling = implementation.couple([_known(embedded, shared)], config, group)
        _feed_back(embedded, coupling.gradients[0], coupling.shared, size, parts=1)
        return coupling.figures
    states, features = [], []
    with torch.no_grad():
        for number, micro_batch in enumerate(micro_batches):
            before(number)
            states.append(megatron_bridge.random_state())
            features.append(_known(implementation.embed(_on(device, micro_batch), model), shared))
    coupling = implementation.couple(features, config, group)
    del features
    after = megatron_bridge.random_state()
    for number, micro_batch in enumerate(micro_batches):
        megatron_bridge.set_random_state(states[number])
        embedded = implementation.embed(_on(device, micro_batch), model)
        _feed_back(embedded, coupling.gradients[number], coupling.shared, size, parts=len(micro_batches))
    megatron_bridge.set_random_state(after)
    return coupling.figures


def _on(device: torch.device | None, micro_batch: MicroBatch) -> MicroBatch:
    return micro_batch if device is None else {key: value.to(device) for key, value in micro_batch.items()}


def _known(embedded: Embedded, shared: Sequence[torch.Tensor] | None) -> Embedded:
    """What the loss is computed from, without a graph."""
    plain = embedded.detached()
    return plain if shared is None else Embedded(plain.features, tuple(shared))


def _feed_back(
    embedded: Embedded,
    gradients: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    size: int,
    *,
    parts: int,
) -> None:
    pairs = [(output, gradient * size) for output, gradient in zip(embedded.features, gradients, strict=True)]
    # Each replay passes through the shared parameters once more: a part of their gradient each time.
    pairs += [(output, gradient / parts) for output, gradient in zip(embedded.shared, shared, strict=True)]
    learned = [(output, gradient.to(output)) for output, gradient in pairs if output.requires_grad]
    if learned:  # a micro-batch of frozen towers has nothing to learn but the scale
        torch.autograd.backward([output for output, _ in learned], [gradient for _, gradient in learned])


def micro_batch_seed(base: int, number: int) -> int:
    """The seed of dropout in micro-batch `number` of a step, counted over all ranks: with the same micro-batch size
    masks do not depend on how many ranks share a batch.
    """
    digest = hashlib.blake2b(f"{base}:micro-batch:{number}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little")
