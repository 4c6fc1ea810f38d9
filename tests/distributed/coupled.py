"""Gradients of a coupled batch on the ranks of a launch, beside autograd through the whole batch in one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from modeling import groups, megatron_bridge
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.registry import family
from training.engine.coupled import coupled_backward, micro_batch_seed

SHAPE: dict[str, Any] = {
    "embed_dim": 16,
    "image_size": 32,
    "patch_size": 8,
    "vision_layers": 2,
    "vision_width": 32,
    "vision_heads": 2,
    "context_length": 8,
    "vocab_size": 50,
    "text_layers": 2,
    "text_width": 32,
    "text_heads": 2,
    "loss_tile": 3,  # divides no batch that is used here
}
SEED = 99


def pairs(size: int, seed: int = 3) -> dict[str, torch.Tensor]:
    """A batch of pictures and captions, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 48, (size, 8), generator=generator)
    tokens[:, 0], tokens[:, 6], tokens[:, 7] = 48, 49, 0
    return {"images": images, "tokens": tokens}


def aligned(size: int) -> dict[str, torch.Tensor]:
    """Few distinct pairs among many: what a towers' similarity of 1 does to a softmax at scale 100 is in the losses'
    own tests; here equal pairs must share their gradient.
    """
    batch = pairs(size)
    return {key: value[torch.arange(size) % 5] for key, value in batch.items()}


def reference(model: Any, config: Any, micro_batches: list[dict[str, torch.Tensor]]) -> tuple[float, list[Any]]:
    """The loss and every parameter's gradient by autograd through all micro-batches at once, in one process."""
    images, texts = [], []
    log_scale = bias = None
    for number, micro_batch in enumerate(micro_batches):
        megatron_bridge.seed_dropout(micro_batch_seed(SEED, number), 0)
        image, text, log_scale, bias = model(micro_batch["images"], micro_batch["tokens"])
        images.append(image)
        texts.append(text)
    assert log_scale is not None
    loss = whole_loss(torch.cat(images), torch.cat(texts), log_scale, bias, config.loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return float(loss), list(torch.autograd.grad(loss, parameters))


def whole_loss(
    image: torch.Tensor, text: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor | None, kind: str
) -> torch.Tensor:
    """The losses written down once more, without tiles or ranks; the diagonal is left out of the softmax."""
    n = len(image)
    if kind == "nt_xent":
        both = torch.cat([image, text])
        scores = log_scale.exp() * both @ both.T
        partner = (torch.arange(2 * n) + n) % (2 * n)
        positive = scores[torch.arange(2 * n), partner]
        others = torch.ones(2 * n, 2 * n, dtype=torch.bool).fill_diagonal_(False)
        others[torch.arange(2 * n), partner] = False
        margin = (scores - positive[:, None]).masked_fill(~others, -torch.inf)
        return softplus(torch.logsumexp(margin, 1)).mean()
    scores = log_scale.exp() * image @ text.T
    if kind == "sigmoid":
        assert bias is not None
        signs = 2 * torch.eye(n, dtype=scores.dtype) - 1
        return softplus(-signs * (scores + bias)).sum() / n
    diagonal = torch.eye(n, dtype=torch.bool)
    right = scores.diagonal()
    e = torch.logsumexp((scores - right[:, None]).masked_fill(diagonal, -torch.inf), 1)
    f = torch.logsumexp((scores - right[None, :]).masked_fill(diagonal, -torch.inf), 0)
    return (softplus(e) + softplus(f)).mean() / 2


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)), also above 20, where torch's own returns x."""
    return torch.logaddexp(x, torch.zeros_like(x))


def build(case: dict[str, Any]) -> tuple[Any, Any, Any]:
    chosen = family("clip")
    config = chosen.config(**SHAPE, **case["model"])
    (model,) = chosen.implementation.build(config, Execution(seed=5))
    if case["dtype"] == "fp64":
        model.double()
    if "scale" in case:
        with torch.no_grad():
            model.log_scale.fill_(torch.tensor(case["scale"]).log())
    return chosen, config, model


def gradients(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each case {model, dtype, sizes: micro-batch sizes of each rank}: the worst error of the mean gradient over
    ranks relative to the largest element of the reference's, of the loss, of the norm.
    """
    groups.start_groups(Layout())
    rank, world = dist.get_rank(), dist.get_world_size()
    results = []
    for case in cases:
        chosen, config, model = build(case)
        sizes: list[list[int]] = case["sizes"]
        total = sum(map(sum, sizes))
        batch = aligned(total) if case.get("aligned") else pairs(total)
        flat = [size for one in sizes for size in one]
        parts = [
            dict(zip(batch, cut, strict=True)) for cut in zip(*(v.split(flat) for v in batch.values()), strict=True)
        ]
        before = [len(one) for one in sizes]
        first = sum(before[:rank])

        def seed(number: int, first: int) -> None:
            megatron_bridge.seed_dropout(micro_batch_seed(SEED, first + number), 0)

        mine = parts[first : first + before[rank]]
        figures = coupled_backward(chosen, config, model, mine, dist.group.WORLD, before=partial(seed, first=first))
        loss = torch.stack([f["sample_losses"].sum().double() for f in figures]).sum()
        dist.all_reduce(loss)
        learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in learned.values():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
        norm = torch.stack([p.grad.double().norm() ** 2 for p in learned.values()]).sum().sqrt()  # type: ignore[union-attr]
        if rank == 0:
            wanted, exact = reference(model, config, parts)
            largest = max(float(g.abs().max()) for g in exact)
            errors = {
                name: float((p.grad - g).abs().max()) / largest  # type: ignore[operator]
                for (name, p), g in zip(learned.items(), exact, strict=True)
            }
            worst = max(errors, key=lambda name: errors[name])
            exact_norm = float(torch.stack([g.double().norm() ** 2 for g in exact]).sum().sqrt())
            scale = float((learned["log_scale"].grad - exact[list(learned).index("log_scale")]).abs().max())  # type: ignore[operator]
            results.append(
                {
                    "case": case,
                    "worst": [worst, errors[worst]],
                    "scale": scale / max(float(exact[list(learned).index("log_scale")].abs().max()), largest),
                    "loss": abs(float(loss) / total - wanted) / max(abs(wanted), 1e-30),
                    "norm": abs(float(norm) - exact_norm) / exact_norm,
                    "clipped": float(norm),
                }
            )
    groups.stop_groups()
    return results
