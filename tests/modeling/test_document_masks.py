"""Documents of a packed sample know nothing of one another: each gets what it would get alone, from our model and from
transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.document_masks import document_numbers, predicted_targets
from data_pipeline.stream import Batch
from modeling import document_masks
from modeling.blockwise_attention import BLOCK, blockwise_causal_attention
from modeling.gpt import network
from modeling.gpt.config import GPTConfig
from modeling.gpt.huggingface import export_tensors
from tests.modeling.test_huggingface import exported
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, build, global_gradient, perturb
from training.batches import LocalBatch, split
from training.figures import Tally

EOD = 3
LONG = {"sequence_length": 24}
CONFIGS = {
    "gpt2": replace(GPT2_LIKE, **LONG),
    "gpt2-grouped": replace(GPT2_LIKE, num_query_groups=2, tie_embeddings=False, **LONG),
    "llama-grouped": replace(LLAMA_LIKE, **LONG),
    "llama-mha": replace(LLAMA_LIKE, num_query_groups=None, **LONG),
    "gpt2-banded": replace(GPT2_LIKE, attention="alternating", attention_band=4, **LONG),
    "llama-banded": replace(LLAMA_LIKE, attention="alternating", attention_band=3, **LONG),
}
ALL = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
HUGGING_FACE = pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "llama-mha"])
# Ends of documents in rows of 25 tokens: in the middle, one after another, first and last of inputs and of targets.
ENDS = [[6, 14], [0, 1, 9, 10, 11, 23], [24], [], [12, 24], [3, 4, 22]]


def packed(seed: int = 1) -> torch.Tensor:
    """Tokens `[6, 25]`, with EOD at ENDS and nowhere else."""
    tokens = torch.randint(
        EOD + 1, GPT2_LIKE.vocabulary, (len(ENDS), 25), generator=torch.Generator().manual_seed(seed)
    )
    for row, ends in zip(tokens, ENDS, strict=True):
        row[ends] = EOD
    return tokens


def micro_batch(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """As the training makes it of a packed batch."""
    (one,) = split(Batch(tokens.numpy(), np.zeros(len(tokens), np.int64)), len(tokens), torch.device("cpu"), EOD)
    return one


def documents_of(row: list[int]) -> Iterator[tuple[int, list[int]]]:
    """(place of its first token, tokens) of each document, the slow way."""
    first = 0
    for place, token in enumerate(row):
        if token == EOD or place == len(row) - 1:
            yield first, row[first : place + 1]
            first = place + 1


def token_losses(model: network.GPT, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[b, s]` with a graph, targets that do not count included."""
    return network.forward_step(batch, model)[0]


def gradients(model: network.GPT, compute: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    compute().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def masked_loss(model: network.GPT, tokens: torch.Tensor) -> torch.Tensor:
    output, loss = network.forward_step(micro_batch(tokens), model)
    return loss(output)[0]


def one_by_one(tokens: torch.Tensor, losses_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The rule, written out: the sum of the losses of every document run alone, over the number of positions."""
    total = torch.zeros(())
    for row in tokens.tolist():
        for _, document in documents_of(row):
            if len(document) > 1:
                total = total + losses_of(torch.tensor([document])).sum()
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def alone(model: network.GPT) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda document: token_losses(model, {"tokens": document})


def made(config: GPTConfig, **execution: Any) -> network.GPT:
    model = build(config, **execution)
    perturb(model)
    return model


# -- where documents are ----------------------------------------------------------------------------------------------


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1, max_size=3)
    )
)
def test_document_numbers_are_those_of_cutting_rows_after_each_end(rows: list[list[int]]) -> None:
    tokens = np.array(rows, dtype=np.int64)
    numbers = document_numbers(tokens, EOD)
    assert numbers.shape == tokens.shape
    # A small dtype, as shards have it, and one row alone give the same.
    assert np.array_equal(document_numbers(tokens.astype(np.uint16), EOD), numbers)
    places = document_masks.positions(torch.from_numpy(numbers))
    counted = predicted_targets(numbers)
    assert np.array_equal(document_masks.predicted(torch.from_numpy(numbers)).numpy(), counted)
    for row, ours, where, targets in zip(rows, numbers, places.tolist(), counted, strict=True):
        assert np.array_equal(document_numbers(np.array(row), EOD), ours)
        expected = [(n, i) for n, (_, document) in enumerate(documents_of(row)) for i in range(len(document))]
        assert list(zip(ours.tolist(), where, strict=True)) == expected
        # A target is left out exactly where its input is an end.
        assert targets.tolist() == [token != EOD for token in row[:-1]]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 8))
def test_mask_shows_what_a_loop_over_positions_shows(row: list[int], band: int) -> None:
    numbers = document_numbers(np.array([row]), EOD)
    mask = document_masks.attention_mask(torch.from_numpy(numbers), band, torch.float32)
    assert mask.shape == (1, 2, len(row), len(row))
    for i in range(len(row)):
        for j in range(len(row)):
            seen = j <= i and EOD not in row[j:i]
            assert mask[0, 0, i, j] == (0.0 if seen else -torch.inf)
            assert mask[0, 1, i, j] == (0.0 if seen and i - j < band else -torch.inf)
    dense = document_masks.attention_mask(torch.from_numpy(numbers), None, torch.float32)
    assert torch.equal(dense, mask[:, :1])


# -- what the model makes of them -------------------------------------------------------------------------------------


def disagreement(model: network.GPT, tokens: torch.Tensor) -> float:
    """How far packed losses, their mean and the figures are from those of each document run alone, at most."""
    output, loss = network.forward_step(micro_batch(tokens), model)
    value, figures = loss(output)
    found, total = [], 0.0
    for row, losses, mean, number in zip(
        tokens.tolist(), output, figures["sample_losses"], figures["sample_tokens"], strict=True
    ):
        mine, count = 0.0, 0
        for first, document in documents_of(row):
            if len(document) > 1:
                expected = alone(model)(torch.tensor([document]))[0]
                found.append(((losses[first : first + len(expected)] - expected) / expected).abs().max().item())
                mine, count = mine + expected.sum().item(), count + len(expected)
        found += [abs(number.item() - count), abs(mean.item() * count / mine - 1)]
        total += mine
    return max(*found, abs(value.item() * output.numel() / total - 1))


@ALL
@pytest.mark.usefixtures("single_process")
def test_packed_losses_and_gradients_are_those_of_each_document_alone(config: GPTConfig) -> None:
    model, tokens = made(config), packed()
    assert disagreement(model, tokens) < 1e-5
    together = gradients(model, lambda: masked_loss(model, tokens))
    apart = gradients(model, lambda: one_by_one(tokens, alone(model)))
    assert together.keys() == apart.keys()
    for name, expected in apart.items():
        assert (together[name] - expected).abs().max() <= 1e-5 * max(expected.abs().max(), 1e-3), name


@HUGGING_FACE
@pytest.mark.usefixtures("single_process")
def test_packed_logits_and_gradients_are_those_of_transformers_document_by_document(name: str) -> None:
    model, tokens = made(CONFIGS[name]), packed()
    theirs = exported(model)
    batch = micro_batch(tokens)
    own = batch["documents"][:, :-1]
    with torch.no_grad():
        logits = model(tokens[:, :-1], document_masks.positions(own), None, documents=own)
        for row, ours in zip(tokens[:, :-1].tolist(), logits, strict=True):
            for first, document in documents_of(row):
                expected = theirs(torch.tensor([document])).logits[0]
                torch.testing.assert_close(ours[first : first + len(expected)], expected, rtol=1e-5, atol=1e-5)

    def their_losses(document: torch.Tensor) -> torch.Tensor:
        output = theirs(document[:, :-1]).logits
        return F.cross_entropy(output.flatten(0, 1), document[:, 1:].flatten(), reduction="none")

    one_by_one(tokens, their_losses).backward()
    parameters = dict(theirs.named_parameters())
    found = gradients(model, lambda: masked_loss(model, tokens))
    for key, gradient in export_tensors(model.gpt, lambda name: global_gradient(model, found, name)):
        expected = parameters[key].grad
        assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max(), key


PLANTED: dict[str, tuple[str, Any]] = {
    "no attention mask": ("attention_mask", lambda documents, *rest: None),
    "positions go on": (
        "positions",
        lambda documents: torch.arange(documents.shape[1]).expand_as(documents),
    ),
    "all targets count": ("predicted", lambda documents: torch.ones_like(documents[:, 1:], dtype=torch.bool)),
}


@pytest.mark.parametrize("error", PLANTED)
@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "gpt2-banded"])
@pytest.mark.usefixtures("single_process")
def test_planted_errors_are_found(name: str, error: str) -> None:
    """Each part of the masking is needed; rotary angles are relative, so that where they begin makes no difference."""
    model = made(CONFIGS[name])
    with mock.patch.object(document_masks, *PLANTED[error]):
        found = disagreement(model, packed())
    if name == "llama-grouped" and error == "positions go on":
        assert found < 1e-5
    else:
        assert found > 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "gpt2-banded"])
@pytest.mark.usefixtures("single_process")
def test_other_documents_change_no_bit(name: str, precision: str) -> None:
    model, tokens = made(CONFIGS[name], precision=precision), packed()
    other = tokens.clone()
    other[0, :6] = 50  # the first document, all but its end
    changed = (tokens != other)[:1]
    assert changed.any()
    before, after = (token_losses(model, micro_batch(x))[0] for x in (tokens, other))
    assert torch.equal(before[7:], after[7:]) and not torch.equal(before[:6], after[:6])


# -- however it is run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["llama-grouped", "gpt2-banded"])
@pytest.mark.usefixtures("single_process")
def test_recomputation_changes_no_bit(name: str, dropout: float, recompute: str) -> None:
    from modeling.megatron_bridge import seed_dropout

    found = []
    for way in ("none", recompute):
        model = made(replace(CONFIGS[name], dropout=dropout), recompute=way)
        seed_dropout(5, 0)
        found.append(gradients(model, lambda model=model: masked_loss(model, packed())))
    assert all(torch.equal(gradient, found[1][key]) for key, gradient in found[0].items())


@pytest.mark.parametrize(
    ("name", "precision", "recompute", "tolerance"),
    [("llama-banded", "fp32", "full", 1e-5), ("gpt2-banded", "bf16", "none", 5e-2)],
)
@pytest.mark.usefixtures("single_process")
def test_compiled_layers_compute_the_same_in_one_graph_each(
    name: str, precision: str, recompute: str, tolerance: float
) -> None:
    torch.compiler.reset()
    model = made(CONFIGS[name], precision=precision)
    plain = gradients(model, lambda: masked_loss(model, packed()))
    torch._dynamo.utils.counters.clear()
    compiled = made(CONFIGS[name], precision=precision, compile=True, recompute=recompute)
    found = gradients(compiled, lambda: masked_loss(compiled, packed()))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 2 and not torch._dynamo.utils.counters["graph_break"]
    for key, gradient in plain.items():
        assert (found[key] - gradient).float().norm() <= tolerance * gradient.float().norm(), key
    masked_loss(compiled, packed(seed=2)).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "another batch was compiled again"


@pytest.mark.usefixtures("single_process")
def test_band_mask_of_whole_samples_is_made_once_for_all_layers_and_steps() -> None:
    model, tokens = made(replace(CONFIGS["gpt2-banded"], num_layers=4, attention_band=7)), packed()
    with mock.patch.object(document_masks, "_within", side_effect=document_masks._within) as made_of:
        for _ in range(2):
            gradients(model, lambda: network.forward_step({"tokens": tokens}, model)[0].mean())
        assert made_of.call_count == 1
        gradients(model, lambda: masked_loss(model, tokens))
        assert made_of.call_count == 3  # of documents, for both kinds of layer


@pytest.mark.parametrize("band", [None, 5, 200])
@pytest.mark.parametrize("s", [24, BLOCK, 2 * BLOCK + 44])
def test_attention_in_blocks_takes_the_mask(s: int, band: int | None) -> None:
    generator = torch.Generator().manual_seed(s)
    q, k, v = (torch.randn(s, 2, 3, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    ends = torch.rand(2, s, generator=generator) < 0.02
    documents = ends.cumsum(1)
    assert documents[:, -1].max() > 0 or s == 24
    mask = document_masks.attention_mask(documents, band, torch.float64)[:, -1:]

    def by_torch(*tensors: torch.Tensor) -> torch.Tensor:
        out = F.scaled_dot_product_attention(*(x.permute(1, 2, 0, 3) for x in tensors), attn_mask=mask)
        return out.permute(2, 0, 1, 3).reshape(s, 2, -1)

    results = []
    for attend in (by_torch, lambda *tensors: blockwise_causal_attention(*tensors, mask, band)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        (out**2).sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# -- what is averaged -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("single_process")
def test_every_token_weighs_the_same_in_micro_batches_of_any_size() -> None:
    """Rows have from 17 to 24 targets that count; dividing by those, as is often done, would make it differ."""
    model, tokens = made(CONFIGS["gpt2"]), packed()

    def accumulated(size: int) -> tuple[dict[str, torch.Tensor], float]:
        parts = tokens.split(size)

        def mean() -> torch.Tensor:
            return torch.stack([masked_loss(model, part) for part in parts]).mean()

        tally = Tally(["all"], torch.device("cpu"))
        figures = []
        for part in parts:
            output, loss = network.forward_step(micro_batch(part), model)
            figures.append(loss(output)[1])
        tally.add(LocalBatch([], torch.zeros(len(tokens), dtype=torch.int64), len(tokens)), figures)
        return gradients(model, mean), tally.step_loss()

    whole, reported = accumulated(len(tokens))
    unmasked = token_losses(model, micro_batch(tokens))[tokens[:, :-1] != EOD]
    assert reported == pytest.approx(unmasked.mean().item(), rel=1e-6)
    for size in (1, 2, 3):
        parts, also_reported = accumulated(size)
        assert also_reported == pytest.approx(reported, rel=1e-6)
        for name, gradient in whole.items():
            assert (parts[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.usefixtures("single_process")
def test_sample_of_nothing_but_ends_weighs_nothing() -> None:
    model, tokens = made(CONFIGS["gpt2"]), packed()[:2]
    tokens[1] = EOD
    output, loss = network.forward_step(micro_batch(tokens), model)
    value, figures = loss(output)
    assert figures["sample_tokens"].tolist() == [22, 0] and figures["sample_losses"][1] == 0
    assert value.item() == pytest.approx(figures["sample_losses"][0].item() * 22 / 48, rel=1e-6)
