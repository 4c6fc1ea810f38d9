"""Generation with a key-value cache: equal to a full forward each time, to transformers', and to itself."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext

from modeling.errors import ModelError
from modeling.gpt.config import GPTConfig
from modeling.gpt.generation import draw, generate, generate_batch, keep_top_k, keep_top_p, next_logits
from modeling.gpt.network import GPT
from tests.modeling.test_huggingface import exported
from tests.modeling.worlds import GPT2_LIKE, LLAMA_LIKE, build, logits, loss_and_gradients, perturb, sample

pytestmark = pytest.mark.usefixtures("single_process")

CONFIGS = {
    "learned": GPT2_LIKE,
    "rotary-gqa": LLAMA_LIKE,
    "banded": replace(GPT2_LIKE, attention="alternating", attention_band=4),
    "banded-rotary": replace(LLAMA_LIKE, attention="alternating", attention_band=5),
}
PROMPT = [17, 3, 99, 4, 42]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request: pytest.FixtureRequest) -> GPT:
    return perturbed(request.param)


def perturbed(config: GPTConfig, **execution: Any) -> GPT:
    model = build(config, **execution)
    perturb(model)
    return model


def greedy_without_cache(model: GPT, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(model, torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_with_the_cache_is_greedy_without(model: GPT) -> None:
    perturb(model, scale=0.3)  # far enough from tied embeddings that repeat the last token
    expected = greedy_without_cache(model, PROMPT, 11)
    assert len(set(expected)) > 2
    assert list(generate(model, PROMPT, max_new_tokens=11, temperature=0)) == expected
    assert list(generate(model, PROMPT[:1], max_new_tokens=15, temperature=0)) == greedy_without_cache(
        model, PROMPT[:1], 15
    )


def test_logits_behind_the_cache_are_those_of_a_full_forward(model: GPT) -> None:
    tokens = sample(model.gpt, batch=3)[:, :-1]
    full = logits(model, tokens)
    cache = StaticInferenceContext(3, tokens.shape[1])
    for prefix in (tokens[:, :6], *tokens[:, 6:].split(1, dim=1)):
        ours = next_logits(model, prefix, cache)
        torch.testing.assert_close(ours, full[:, cache.sequence_len_offset - 1], rtol=1e-5, atol=1e-5)
    assert cache.sequence_len_offset == tokens.shape[1]


def test_bf16_behind_the_cache_agrees_with_a_full_forward() -> None:
    model = perturbed(LLAMA_LIKE, precision="bf16")
    tokens = sample(model.gpt)[:, :-1]
    full = logits(model, tokens).float()
    cache = StaticInferenceContext(2, tokens.shape[1])
    for prefix in (tokens[:, :6], *tokens[:, 6:].split(1, dim=1)):
        ours = next_logits(model, prefix, cache)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, full[:, cache.sequence_len_offset - 1], rtol=5e-2, atol=5e-2)


def test_prefill_computes_the_last_positions_logits_alone(model: GPT) -> None:
    tokens = sample(model.gpt)[:, :-1]
    model.eval()
    with torch.no_grad():
        context = StaticInferenceContext(2, tokens.shape[1])
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        assert model(tokens, positions, None, inference_context=context).shape == (2, 1, model.gpt.vocabulary)


@pytest.mark.parametrize("config", [GPT2_LIKE, LLAMA_LIKE], ids=["gpt2", "llama"])
def test_greedy_is_transformers_greedy(config: GPTConfig) -> None:
    model = perturbed(config)
    theirs = exported(model)
    prompts = torch.tensor([PROMPT, PROMPT[::-1]])
    expected = theirs.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=11,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )[:, len(PROMPT) :]
    ours = torch.stack(list(generate_batch(model, prompts, max_new_tokens=11, temperature=0)), dim=1)
    assert torch.equal(ours, expected)


def test_seeded_sampling_is_reproducible_and_depends_on_the_seed(model: GPT) -> None:
    def run(seed: int) -> list[int]:
        return list(generate(model, PROMPT, max_new_tokens=11, temperature=1.5, top_k=50, top_p=0.95, seed=seed))

    torch.manual_seed(0)
    first = run(1)
    torch.manual_seed(99)  # the global generator has no say
    assert run(1) == first
    assert run(2) != first


def test_global_generators_are_left_alone() -> None:
    model = perturbed(GPT2_LIKE)
    before = torch.get_rng_state()
    list(generate(model, PROMPT, max_new_tokens=3, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(generate(perturbed(LLAMA_LIKE, recompute="selective"), PROMPT, max_new_tokens=3))


@pytest.mark.parametrize(
    "execution", [{}, {"recompute": "selective"}, {"recompute": "full"}, {"compile": True}], ids=str
)
def test_a_model_in_training_stays_as_it_was(execution: dict[str, Any]) -> None:
    model = perturbed(LLAMA_LIKE, **execution)
    model.train()
    if not execution.get("compile"):
        before = loss_and_gradients(model, sample(model.gpt))[0]
    tokens = list(generate(model, PROMPT, max_new_tokens=11, temperature=0))
    assert tokens == list(generate(perturbed(LLAMA_LIKE), PROMPT, max_new_tokens=11, temperature=0))
    assert model.training and all(module.training for module in model.modules())
    if not execution.get("compile"):  # that compiled layers are not compiled again for each length is seen in the time
        assert loss_and_gradients(model, sample(model.gpt))[0] == before


def test_generation_stops_before_the_end_token() -> None:
    model = perturbed(GPT2_LIKE)
    tokens = greedy_without_cache(model, PROMPT, 11)
    end = tokens[6]
    expected = tokens[: tokens.index(end)]
    assert list(generate(model, PROMPT, max_new_tokens=11, temperature=0, eod_id=end)) == expected


def test_a_batch_goes_on_until_every_row_has_ended() -> None:
    model = perturbed(GPT2_LIKE)
    prompts = [PROMPT, PROMPT[::-1]]
    alone = [greedy_without_cache(model, prompt, 11) for prompt in prompts]
    end = alone[0][2]
    steps = list(generate_batch(model, torch.tensor(prompts), max_new_tokens=11, temperature=0, eod_id=end))
    for row, tokens in enumerate(alone):
        length = tokens.index(end) if end in tokens else 11
        assert [int(step[row]) for step in steps[:length]] == tokens[:length]
        assert all(int(step[row]) == end for step in steps[length:])


def test_the_first_token_comes_before_the_last_is_computed() -> None:
    model = perturbed(GPT2_LIKE)
    calls: list[int] = []
    handle = model.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    stream = generate(model, PROMPT, max_new_tokens=5, temperature=0)
    assert not calls
    next(stream)
    assert len(calls) == 1
    list(stream)
    assert len(calls) == 5
    handle.remove()


# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 in another order.
LOGITS = torch.log(torch.tensor([[0.0625, 0.5, 0.125, 0.25, 0.0625]], dtype=torch.float64))


def kept(filtered: torch.Tensor) -> list[int]:
    return filtered.isfinite()[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("k", "tokens"),
    [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (None, [0, 1, 2, 3, 4])],
)
def test_top_k_keeps_the_k_most_likely_and_ties(k: int | None, tokens: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == tokens


@pytest.mark.parametrize(
    ("p", "tokens"),
    [(0.01, [1]), (0.49, [1]), (0.51, [1, 3]), (0.74, [1, 3]), (0.76, [1, 2, 3]), (1.0, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, tokens: list[int]) -> None:
    assert kept(keep_top_p(LOGITS, p)) == tokens


def test_draws_follow_the_filtered_and_tempered_distribution() -> None:
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = draw(LOGITS.expand(n, -1), temperature=0.5, top_k=3, top_p=1.0, generator=generator)
    # Squared and renormalised over the three that are left: 16, 4 and 1 parts of 21.
    frequencies = torch.bincount(drawn, minlength=5) / n
    expected = torch.tensor([0, 16, 1, 4, 0]) / 21
    assert (frequencies - expected).abs().max() < 5 * 0.5 / n**0.5
    assert not frequencies[0] and not frequencies[4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_new_tokens": 12}, "at most 11 new tokens fit"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_k": 0}, "top_k 0"),
        ({"tokens": []}, "the prompt is empty"),
        ({"tokens": [100]}, "vocabulary has 100 tokens"),
        ({"tokens": [-1]}, "from -1"),
        ({"tokens": list(range(16))}, "at most 0 new tokens fit"),
    ],
)
def test_impossible_requests_are_refused_at_the_call(arguments: dict[str, Any], said: str) -> None:
    model = build(GPT2_LIKE)
    given = {"tokens": PROMPT, "max_new_tokens": 3} | arguments
    with pytest.raises(ModelError, match=r"\A[^\n]*\Z") as error:
        generate(model, **given)
    assert said in str(error.value) and error.value.exit_code == 2
