"""Sampling from a decoder, token by token, with Megatron Core's static key-value cache.

The prompt goes through the model once; after that each step feeds one token and attends to the cache. Every rank of a
tensor-parallel group calls this alike and gets the same tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from modeling import groups
from modeling.errors import ModelError
from modeling.gpt.config import GPTConfig
from modeling.gpt.network import GPT

from megatron.core.inference.contexts import StaticInferenceContext  # isort: skip  (after the bridge, which keeps it quiet)


def generate(
    model: GPT,
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    eod_id: int | None = None,
) -> Iterator[int]:
    """Continue one prompt; yields each token as soon as it is drawn, and stops before `eod_id`.

    Arguments and errors as in `generate_batch`.
    """
    batch = generate_batch(
        model,
        torch.tensor([list(tokens)], dtype=torch.int64),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        eod_id=eod_id,
    )
    return (int(token) for token in _until(batch, eod_id))


def _until(batch: Iterator[Tensor], eod_id: int | None) -> Iterator[Tensor]:
    for token in batch:
        if eod_id is not None and int(token) == eod_id:
            return
        yield token


def generate_batch(
    model: GPT,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    eod_id: int | None = None,
) -> Iterator[Tensor]:
    """Continue several prompts of one length.

    Args:
        model: the whole decoder as one pipeline stage; its mode and sequence parallelism stay as they are.
        tokens: `[b, t]` token ids; t + `max_new_tokens` may be at most the model's sequence_length.
        max_new_tokens: tokens to draw for each prompt, at most.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw from the k most likely tokens only; None for all.
        top_p: draw from the fewest most likely tokens that reach p together (Holtzman et al. 2020, section 3.1).
        seed: of the draws; the same arguments give the same tokens.
        eod_id: a prompt whose continuation reached this token yields it from then on; when all have, generation ends.

    Yields:
        `[b]` int64 on the CPU, the next token of every prompt.

    Raises:
        ModelError: at the call, for an argument that is out of its range or a prompt that is too long.
    """
    gpt = model.gpt
    _check(gpt, model, tokens, max_new_tokens)
    if temperature < 0 or top_p <= 0 or top_p > 1 or (top_k is not None and top_k < 1):
        raise ModelError(
            f"temperature {temperature}, top_k {top_k} and top_p {top_p}: temperature must be at least 0, top_k at "
            "least 1, top_p above 0 and at most 1"
        )
    return _steps(model, tokens, max_new_tokens, temperature, top_k, top_p, seed, eod_id)


def _check(gpt: GPTConfig, model: GPT, tokens: Tensor, max_new_tokens: int) -> None:
    if not (model.pre_process and model.post_process):
        raise ModelError("generation needs the whole model on each rank; load the checkpoint with parallel.pipeline 1")
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ModelError("the prompt is empty; give at least one token, for example the end-of-document token")
    if int(tokens.min()) < 0 or int(tokens.max()) >= gpt.vocabulary:
        raise ModelError(
            f"the prompt has token ids from {int(tokens.min())} to {int(tokens.max())}, but the model's vocabulary has "
            f"{gpt.vocabulary} tokens; encode it with the model's own tokenizer"
        )
    length = tokens.shape[1]
    if length + max_new_tokens > gpt.sequence_length:
        raise ModelError(
            f"a prompt of {length} tokens and max_new_tokens {max_new_tokens} exceed model.sequence_length "
            f"{gpt.sequence_length}; at most {max(0, gpt.sequence_length - length)} new tokens fit"
        )


def _steps(
    model: GPT,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    seed: int,
    eod_id: int | None,
) -> Iterator[Tensor]:
    batch, length = tokens.shape
    cache = StaticInferenceContext(batch, length + max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    ended = torch.zeros(batch, dtype=torch.bool)
    step = tokens
    for _ in range(max_new_tokens):
        logits = next_logits(model, step, cache)
        token = draw(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        token = _agreed(token)
        if eod_id is not None:
            token = torch.where(ended, eod_id, token)
            ended |= token == eod_id
        yield token
        if bool(ended.all()):
            return
        step = token[:, None]


def next_logits(model: GPT, tokens: Tensor, cache: StaticInferenceContext) -> Tensor:
    """Logits `[b, vocab]` (fp32) after `tokens` `[b, n]`, which follow what `cache` holds and are added to it.

    n is 1 unless the cache is empty: Megatron Core sets no causal mask behind a cache.
    """
    start, count = cache.sequence_len_offset, tokens.shape[1]
    assert count == 1 or start == 0
    device = next(model.parameters()).device
    positions = torch.arange(start, start + count, device=device).expand_as(tokens)
    with _inference(model):
        logits = model(tokens.to(device), positions, None, inference_context=cache)
    cache.sequence_len_offset += count
    cache.enable_decode_mode()
    return logits[:, -1].float()


@contextlib.contextmanager
def _inference(model: GPT) -> Iterator[None]:
    """No dropout, no gradients, no sequence parallelism (one token cannot be divided), no graph for each length."""
    training = model.training
    parallel = [
        (owner, name)
        for owner in (model.config, *model.modules())
        for name in ("sequence_parallel", "reduce_scatter_embeddings")
        if getattr(owner, name, False)
    ]
    model.eval()
    for owner, name in parallel:
        setattr(owner, name, False)
    try:
        # Not inference_mode: Megatron Core caches rotary angles, and training could not differentiate through those.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for owner, name in parallel:
            setattr(owner, name, True)
        model.train(training)


def draw(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator) -> Tensor:
    """One token `[b]` (on the CPU) for each row of `logits` `[b, vocab]`; `generator` is the CPU's."""
    if temperature == 0:
        return logits.argmax(-1).cpu()
    kept = keep_top_p(keep_top_k(logits / temperature, top_k), top_p)
    return torch.multinomial(torch.softmax(kept.cpu(), -1), 1, generator=generator)[:, 0]


def keep_top_k(logits: Tensor, k: int | None) -> Tensor:
    """`logits` `[b, vocab]` with all but each row's k highest at minus infinity; equal ones at the border all stay."""
    if k is None or k >= logits.shape[-1]:
        return logits
    border = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < border, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """`logits` `[b, vocab]` with all but the nucleus at minus infinity: the fewest most likely tokens that reach p."""
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    # A token stays while those before it have not reached p, so that the one that crosses p is in.
    outside = probabilities.cumsum(-1) - probabilities >= p
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def _agreed(token: Tensor) -> Tensor:
    """The first tensor-parallel rank's draw: logits equal to the last bit are not promised across devices."""
    group = groups.tensor_group()
    if dist.get_world_size(group) == 1:
        return token
    shared = token.to(groups.device())
    dist.broadcast(shared, src=dist.get_global_rank(group, 0), group=group)
    return shared.cpu()
