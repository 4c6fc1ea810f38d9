"""CLIP beside transformers' CLIPModel, and its weights in the two formats of others, there and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig as TheirConfig
from transformers import CLIPModel

from modeling.clip import huggingface, network, openclip
from modeling.clip.config import CLIPConfig
from modeling.clip.conversion import fitted_positions
from modeling.errors import ModelError
from tests.modeling.clip_worlds import GELU, RESNET, TINY, build, pairs, perturb

pytestmark = pytest.mark.usefixtures("single_process")

Read = Callable[[str], torch.Tensor]


def tensors_of(model: network.CLIP) -> Read:
    return {name: p.detach() for name, p in model.named_parameters()}.__getitem__


def load(model: network.CLIP, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(tensors)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def theirs_with_random_weights(hidden_act: str) -> CLIPModel:
    """A CLIPModel as transformers makes it, with gains and biases that are not ones and zeros."""
    torch.manual_seed(0)
    common = {"hidden_act": hidden_act, "attn_implementation": "eager"}
    text = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 11, "eos_token_id": 49, "bos_token_id": 48}
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    model = CLIPModel(TheirConfig(text_config=common | text, vision_config=common | vision, projection_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def embeddings(model: CLIPModel, config: CLIPConfig) -> tuple[torch.Tensor, torch.Tensor]:
    images, tokens = pairs(config)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=(images / 255.0 - mean) / std)
    return out.image_embeds, out.text_embeds


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_embeddings_are_those_of_the_clip_model_that_was_imported(hidden_act: str) -> None:
    theirs = theirs_with_random_weights(hidden_act)
    config = huggingface.from_hf_config(theirs.config.to_dict())
    model = build(config).eval()
    state = theirs.state_dict()
    load(model, dict(huggingface.import_tensors(config, state.__getitem__)))
    with torch.no_grad():
        image, text, log_scale, bias = model(*pairs(config))
    for ours, expected in zip((image, text), embeddings(theirs, config), strict=True):
        assert ours is not None
        assert (ours - expected).abs().max() < 1e-4
    assert log_scale.item() == pytest.approx(theirs.logit_scale.item(), abs=1e-6) and bias is None
    back = dict(huggingface.export_tensors(config, tensors_of(model)))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_exported_model_is_one_that_transformers_builds_and_that_computes_the_same() -> None:
    config = replace(TINY, text_layers=1)
    model = build(config).eval()
    perturb(model)
    theirs = CLIPModel(TheirConfig.from_dict(huggingface.to_hf_config(config))).eval()
    theirs.load_state_dict(dict(huggingface.export_tensors(config, tensors_of(model))))
    with torch.no_grad():
        image, text, log_scale, _ = model(*pairs(config))
    for ours, expected in zip((image, text), embeddings(theirs, config), strict=True):
        assert ours is not None
        assert (ours - expected).abs().max() < 1e-4
    assert log_scale.item() == pytest.approx(theirs.logit_scale.item(), abs=1e-6)


@pytest.mark.parametrize("config", [TINY, replace(GELU, loss="clip", norm_epsilon=1e-6)], ids=["quickgelu", "gelu"])
def test_transformers_config_comes_back_as_it_was(config: CLIPConfig) -> None:
    assert huggingface.from_hf_config(huggingface.to_hf_config(config)) == config


@pytest.mark.parametrize(
    "config", [TINY, replace(GELU, norm_epsilon=1e-6, patch_dropout=0.5), RESNET], ids=["quickgelu", "gelu", "resnet50"]
)
def test_open_clip_format_comes_back_as_it_was(config: CLIPConfig) -> None:
    assert openclip.from_hf_config(openclip.to_hf_config(config)) == config
    model = build(config)
    perturb(model)
    there = dict(openclip.export_tensors(config, tensors_of(model)))
    back = dict(openclip.import_tensors(config, there.__getitem__))
    ours = dict(model.named_parameters())
    assert set(back) == set(ours)
    assert all(torch.equal(back[name], p) for name, p in ours.items())


def test_open_clips_attention_is_torchs_multi_head_attention() -> None:
    model = build(TINY)
    perturb(model)
    state = dict(openclip.export_tensors(TINY, tensors_of(model)))
    theirs = torch.nn.MultiheadAttention(TINY.text_width, TINY.text_heads)
    prefix = "transformer.resblocks.1.attn."
    theirs.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    x = torch.randn(5, 2, TINY.text_width, generator=torch.Generator().manual_seed(3))
    causal = torch.full((5, 5), -torch.inf).triu(1)
    with torch.no_grad():
        out, bias = model.text.transformer.layers[1].self_attention(x, None)
        assert torch.allclose(out + bias, theirs(x, x, x, attn_mask=causal)[0], atol=1e-5)


def test_positions_of_another_image_size_are_interpolated_only_when_asked() -> None:
    config = replace(TINY, image_size=48)
    state = dict(huggingface.export_tensors(TINY, tensors_of(build(TINY))))
    with pytest.raises(ModelError, match=r"32 x 32 pixels, but model.image_size is 48; set model.interpolate_pos"):
        dict(huggingface.import_tensors(config, state.__getitem__))
    asked = replace(config, interpolate_positions=True)
    tensors = dict(huggingface.import_tensors(asked, state.__getitem__))
    old, new = (t["vision.position_embedding"] for t in (dict(build(TINY).named_parameters()), tensors))
    assert new.shape == (37, 32)
    assert torch.equal(new[0], old[0])
    square = old[1:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(square, size=(6, 6), mode="bicubic", antialias=True, align_corners=False)
    assert torch.equal(new[1:], expected[0].reshape(32, 36).T)


def test_table_of_the_right_size_is_left_alone() -> None:
    table = torch.randn(17, 4)
    assert fitted_positions(table, TINY) is table


def test_sigmoid_bias_starts_where_the_config_says_if_the_import_has_none() -> None:
    state = dict(openclip.export_tensors(TINY, tensors_of(build(TINY))))
    config = replace(TINY, loss="sigmoid", initial_bias=-7.5)
    for module in (openclip, huggingface):
        given = state if module is openclip else dict(huggingface.export_tensors(TINY, tensors_of(build(TINY))))
        tensors = dict(module.import_tensors(config, given.__getitem__))
        assert tensors["logit_bias"].tolist() == [-7.5]


def test_what_is_missing_or_cannot_be_computed_is_refused_by_name() -> None:
    state = dict(huggingface.export_tensors(TINY, tensors_of(build(TINY))))
    del state["vision_model.post_layernorm.bias"]
    with pytest.raises(ModelError, match=r"no tensor vision_model.post_layernorm.bias"):
        dict(huggingface.import_tensors(TINY, state.__getitem__))
    with pytest.raises(ModelError, match=r"CLIPModel has no resnet50 image tower"):
        huggingface.to_hf_config(RESNET)
    theirs = huggingface.to_hf_config(TINY)
    theirs["vision_config"]["intermediate_size"] = 100
    with pytest.raises(ModelError, match=r"vision_config.intermediate_size 100 cannot be imported; 128 would fit"):
        huggingface.from_hf_config(theirs)
    other = openclip.to_hf_config(TINY)
    other["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base"
    with pytest.raises(ModelError, match=r"vision_cfg.timm_model_name 'vit_base' cannot be imported"):
        openclip.from_hf_config(other)


def test_temperature_is_carried_over() -> None:
    state = dict(openclip.export_tensors(TINY, tensors_of(build(TINY))))
    assert state["logit_scale"].shape == ()
    assert state["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
