"""Agreement with transformers' GPT-2 and Llama, which are not ours: logits, loss, gradients, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from modeling.errors import ModelError
from modeling.gpt import network
from modeling.gpt.huggingface import export_tensors, from_hf_config, import_tensors, to_hf_config
from tests.modeling.worlds import (
    GPT2_LIKE,
    LLAMA_LIKE,
    build,
    global_gradient,
    global_tensor,
    logits,
    loss_and_gradients,
    perturb,
    sample,
)

pytestmark = pytest.mark.usefixtures("single_process")

CONFIGS = {
    "gpt2-tied": GPT2_LIKE,
    "gpt2-untied": replace(GPT2_LIKE, tie_embeddings=False),
    "gpt2-one-head": replace(GPT2_LIKE, num_attention_heads=1, ffn_hidden_size=40, norm_epsilon=1e-3),
    "gpt2-many-heads": replace(GPT2_LIKE, num_attention_heads=16, num_layers=1),
    "llama-gqa": LLAMA_LIKE,
    "llama-tied": replace(LLAMA_LIKE, tie_embeddings=True),
    "llama-mqa": replace(LLAMA_LIKE, num_query_groups=1, rotary_base=500_000, norm_epsilon=1e-3),
    "llama-mha": replace(LLAMA_LIKE, num_attention_heads=8, num_query_groups=None),
    "llama-biases": replace(LLAMA_LIKE, biases=True),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def pair(request: pytest.FixtureRequest) -> tuple[network.GPT, Any]:
    """A model of ours with values of its own everywhere, and transformers' with what was exported from it."""
    ours = build(request.param)
    perturb(ours)
    return ours, exported(ours)


def exported(ours: network.GPT) -> Any:
    config = to_hf_config(ours.gpt)
    theirs = getattr(transformers, config["architectures"][0])(_hf_config(config))
    state = dict(export_tensors(ours.gpt, lambda name: global_tensor(ours, name)))
    load_strictly(theirs, state)
    return theirs.eval()


def _hf_config(config: dict[str, Any]) -> Any:
    kind = {"gpt2": transformers.GPT2Config, "llama": transformers.LlamaConfig}[config["model_type"]]
    return kind(**config, attn_implementation="eager")


def load_strictly(theirs: Any, state: dict[str, torch.Tensor]) -> None:
    result = theirs.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    allowed = {"lm_head.weight"} if theirs.config.tie_word_embeddings else set()
    assert set(result.missing_keys) <= allowed
    theirs.tie_weights()


def test_logits_agree(pair: tuple[network.GPT, Any]) -> None:
    ours, theirs = pair
    tokens = sample(ours.gpt)[:, :-1]
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(ours, tokens), expected, rtol=1e-4, atol=1e-4)


def test_loss_and_every_gradient_agree(pair: tuple[network.GPT, Any]) -> None:
    ours, theirs = pair
    tokens = sample(ours.gpt)
    loss, gradients = loss_and_gradients(ours, tokens)
    # transformers' own loss shifts labels itself; with one token fewer it is asked for the last one's successor too.
    output = theirs(tokens[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(output.flatten(0, 1), tokens[:, 1:].flatten())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    parameters = dict(theirs.named_parameters())
    compared = set()
    for name, gradient in export_tensors(ours.gpt, lambda name: global_gradient(ours, gradients, name)):
        theirs_gradient = parameters[name].grad
        scale = theirs_gradient.abs().max()
        assert scale > 0, f"{name} has no gradient to compare"
        assert (gradient - theirs_gradient).abs().max() <= 1e-4 * scale, name
        compared.add(name)
    assert compared == set(parameters)


def test_transformers_own_loss_is_the_runs_loss(pair: tuple[network.GPT, Any]) -> None:
    ours, theirs = pair
    tokens = sample(ours.gpt)[:, :-1]
    with torch.no_grad():
        expected = theirs(tokens, labels=tokens).loss
    ours.eval()
    with torch.no_grad():
        output, loss = network.forward_step({"tokens": tokens}, ours)
    assert loss(output)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_import_gives_back_every_bit_and_the_config(pair: tuple[network.GPT, Any]) -> None:
    ours, theirs = pair
    state = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    config = from_hf_config(to_hf_config(ours.gpt))
    assert to_hf_config(config) == to_hf_config(ours.gpt)
    for field in ("query_groups", "ffn_size", "norm_epsilon", "positions", "rotary_base", "biases", "tie_embeddings"):
        assert getattr(config, field) == getattr(ours.gpt, field)
    imported = dict(import_tensors(config, state.__getitem__))
    assert set(imported) == {shard.name for shard in network.describe(ours).values()}
    for name, tensor in imported.items():
        assert torch.equal(tensor, global_tensor(ours, name)), name


def test_exported_directory_loads_with_from_pretrained(pair: tuple[network.GPT, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    ours, _ = pair
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(ours.gpt, eod_id=3)))
    tensors = dict(export_tensors(ours.gpt, lambda name: global_tensor(ours, name)))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, local_files_only=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.eos_token_id == 3
    tokens = sample(ours.gpt)[:, :-1]
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, tokens), theirs.eval()(tokens).logits, rtol=1e-4, atol=1e-4)
    # And what transformers writes itself is read again.
    theirs.save_pretrained(tmp_path / "again")
    again = from_hf_config(json.loads((tmp_path / "again" / "config.json").read_text()))
    assert to_hf_config(again) == to_hf_config(ours.gpt)


def test_files_of_the_bare_gpt2_model_are_read(pair: tuple[network.GPT, Any]) -> None:
    ours, theirs = pair
    state = {name.removeprefix("transformer."): x.detach() for name, x in theirs.state_dict().items()}
    imported = dict(import_tensors(ours.gpt, state.__getitem__))
    assert all(torch.equal(tensor, global_tensor(ours, name)) for name, tensor in imported.items())


def test_tensors_come_one_at_a_time_and_own_their_memory() -> None:
    read: list[str] = []
    ours = build(LLAMA_LIKE)

    def reader(name: str) -> torch.Tensor:
        read.append(name)
        return global_tensor(ours, name)

    iterator = export_tensors(ours.gpt, reader)
    assert not read
    name, tensor = next(iterator)
    assert name == "model.embed_tokens.weight" and read == ["embedding.word_embeddings.weight"]
    assert (
        tensor.untyped_storage().nbytes() == tensor.nbytes
    )  # a view would make safetensors refuse it, or write it whole
    for _, tensor in iterator:
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"activation": "swiglu"}, ["model.activation swiglu", "model.positions learned"]),
        ({"attention": "alternating"}, ["model.attention alternating is not dense"]),
        ({"biases": False}, ["model.biases false is not true"]),
        ({"normalization": "rmsnorm"}, ["model.normalization rmsnorm"]),
        ({"num_query_groups": 2}, ["model.num_query_groups 2"]),
        (
            {"positions": "rotary"},
            ["model.positions rotary is not learned", "model.normalization layernorm is not rmsnorm"],
        ),
    ],
)
def test_what_neither_class_can_express_is_refused_by_its_keys(changes: dict[str, Any], keys: list[str]) -> None:
    config = replace(GPT2_LIKE, **changes)
    for refused in (
        lambda: to_hf_config(config),
        lambda: export_tensors(config, lambda name: torch.empty(0)),
        lambda: import_tensors(config, lambda name: torch.empty(0)),
    ):
        with pytest.raises(ModelError) as error:
            refused()
        assert error.value.exit_code == 2
        assert all(key in str(error.value) for key in keys) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "bloom"}, "model_type 'bloom'"),
        ({}, "model_type None"),
        ({"model_type": "gpt2", "activation_function": "relu"}, "activation_function 'relu'"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"model_type": "gpt2", "attn_pdrop": 0.5}, "embd_pdrop 0.1, resid_pdrop 0.1, attn_pdrop 0.5"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn'"),
        ({"model_type": "llama", "head_dim": 64}, "head_dim 64"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias True"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": "gpt2", "n_embd": 10, "n_head": 3}, "model.hidden_size 10"),
    ],
)
def test_a_config_that_is_not_ours_is_refused_by_its_keys(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=r"\A[^\n]*\Z") as error:
        from_hf_config(config)
    assert named in str(error.value)


def test_an_empty_config_has_transformers_defaults() -> None:
    for theirs in (transformers.GPT2Config(), transformers.LlamaConfig()):
        written = from_hf_config(theirs.to_dict())
        assert from_hf_config({"model_type": theirs.model_type}) == written


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    ours = build(GPT2_LIKE)
    state = dict(export_tensors(ours.gpt, lambda name: global_tensor(ours, name)))
    lacking = {name: x for name, x in state.items() if name != "transformer.h.1.ln_2.bias"}
    with pytest.raises(ModelError, match=r"no tensor transformer\.h\.1\.ln_2\.bias"):
        list(import_tensors(ours.gpt, lacking.__getitem__))
    misshapen = state | {"transformer.h.0.mlp.c_fc.weight": torch.zeros(128, 32)}
    with pytest.raises(ModelError, match=r"c_fc\.weight has shape \[128, 32\], but the config asks for \[32, 128\]"):
        list(import_tensors(ours.gpt, misshapen.__getitem__))
