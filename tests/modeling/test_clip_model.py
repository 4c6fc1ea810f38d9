"""CLIP's towers on one rank: sizes of the paper, what features depend on, randomness, precision, locks, refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling.clip import flops, network
from modeling.clip.config import CLIPConfig
from modeling.clip.presets import PRESETS
from modeling.errors import ModelError
from modeling.execution import Execution
from modeling.layout import Layout
from modeling.megatron_bridge import on_meta_device, seed_dropout
from modeling.registry import FAMILIES, family_of_preset
from tests.modeling.clip_worlds import GELU, RESNET, TINY, build, loss_and_gradients, pairs, perturb
from training.config import ParallelConfig

pytestmark = pytest.mark.usefixtures("single_process")

# Millions of the image and of the text tower, each with its projection; the temperature is in neither.
SIZES = {
    "clip-vit-b-32": (87.85, 63.43),
    "clip-vit-b-16": (86.19, 63.43),
    "clip-vit-l-14": (303.97, 123.65),
    "clip-vit-l-14-336": (304.29, 123.65),
    "clip-rn50": (38.32, 63.69),  # without the 53,248 running means and variances
}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_towers_have_the_published_sizes(preset: str) -> None:
    assert family_of_preset(preset) is FAMILIES["clip"]
    config = CLIPConfig(**PRESETS[preset])
    with on_meta_device():
        model = build(config)
    image, text = (
        sum(p.numel() for p in tower.parameters() if p.requires_grad) for tower in (model.vision, model.text)
    )
    assert (round(image / 1e6, 2), round(text / 1e6, 2)) == SIZES[preset]
    described = network.describe(model)
    assert list(described) == [name for name, _ in model.named_parameters()]
    assert sum(shard.numel for shard in described.values()) == flops.parameter_count(config)


def test_training_operations_are_those_of_the_products() -> None:
    config = CLIPConfig(**PRESETS["clip-vit-b-32"])
    # open_clip's profile of ViT-B/32: 8.82 and 5.96 GFLOPs, at two a multiplication.
    assert flops.image_flops(config) == pytest.approx(8.82e9, rel=0.005)
    assert flops.text_flops(config) == pytest.approx(5.96e9, rel=0.005)
    assert flops.flops_per_token(config) * 77 == pytest.approx(
        3 * (flops.image_flops(config) + flops.text_flops(config))
    )
    locked = replace(config, lock_image=True)
    assert flops.flops_per_pair(locked) == flops.image_flops(config) + 3 * flops.text_flops(config)


@pytest.mark.parametrize("config", [TINY, RESNET], ids=["vit", "resnet50"])
def test_forward_operations_are_those_that_torch_counts(config: CLIPConfig) -> None:
    model = build(config).eval().requires_grad_(False)
    images, tokens = pairs(config, batch=1)
    # torch leaves the attention kernel of a CPU out.
    queries, positions, width, layers = (17, 17, 32, 2) if config is TINY else (1, 5, 128, 1)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() + 4 * queries * positions * width * layers == flops.image_flops(config)
    with FlopCounterMode(display=False) as counter:
        model(tokens=tokens)
    assert counter.get_total_flops() + 4 * 11 * 11 * 24 * 3 == flops.text_flops(config)


def test_features_have_length_one_and_the_temperature_starts_at_its_own() -> None:
    for config in (TINY, GELU, RESNET):
        image, text, log_scale, bias = build(config)(*pairs(config))
        assert image is not None and text is not None
        for features in (image, text):
            assert features.shape == (4, config.embed_dim) and features.dtype == torch.float32
            assert torch.allclose(features.norm(dim=1), torch.ones(4))
        assert log_scale.item() == pytest.approx(math.log(1 / 0.07)) and log_scale.shape == ()
        assert (bias is None) == (config.loss != "sigmoid")
        assert bias is None or bias.item() == -10.0


def test_one_tower_alone_gives_its_features() -> None:
    model = build(TINY).eval()
    images, tokens = pairs(TINY)
    both, alone = model(images, tokens), (model(images)[0], model(tokens=tokens)[1])
    assert torch.equal(both[0], alone[0]) and torch.equal(both[1], alone[1])
    assert model(images)[1] is None and model(tokens=tokens)[0] is None


def test_bytes_are_normalised_as_floats_are_given() -> None:
    model = build(TINY).eval()
    images, _ = pairs(TINY)
    mean, std = (torch.tensor(values)[:, None, None] for values in (TINY.image_mean, TINY.image_std))
    assert torch.allclose(model(images)[0], model((images / 255 - mean) / std)[0], atol=1e-6)


def test_what_follows_the_end_of_a_caption_does_not_matter_and_what_precedes_does() -> None:
    model = build(TINY).eval()
    perturb(model)
    _, tokens = pairs(TINY)
    other = tokens.clone()
    other[0, 3:] = 7  # the first caption ends at 2
    assert torch.allclose(model(tokens=other)[1], model(tokens=tokens)[1], atol=1e-6)
    other[0, 1] += 1
    assert not torch.allclose(model(tokens=other)[1][0], model(tokens=tokens)[1][0], atol=1e-3)


def test_every_patch_is_seen_wherever_it_is() -> None:
    model = build(TINY).eval()
    images, _ = pairs(TINY)
    before = model(images)[0]
    for row, column in ((0, 0), (31, 31)):
        changed = images.clone()
        changed[:, :, row, column] = 255 - changed[:, :, row, column]
        assert (model(changed)[0] - before).abs().max() > 1e-6


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_layers_give_the_same_gradients_under_dropout(recompute: str) -> None:
    config = replace(TINY, dropout=0.2, patch_dropout=0.5)
    expected, gradients = loss_and_gradients(build(config), *pairs(config))
    outputs, others = loss_and_gradients(build(config, recompute=recompute), *pairs(config))
    assert torch.equal(outputs["loss"], expected["loss"])
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, atol=1e-6), name


def test_dropped_patches_and_activations_follow_the_seed_and_leave_evaluation_alone() -> None:
    for config in (replace(TINY, patch_dropout=0.5), replace(TINY, dropout=0.3)):
        model = build(config)
        images, _ = pairs(config)

        def features(seed: int, model: network.CLIP = model, images: torch.Tensor = images) -> torch.Tensor:
            seed_dropout(seed, 0)
            image = model(images)[0]
            assert image is not None
            return image

        assert torch.equal(features(3), features(3))
        assert not torch.allclose(features(3), features(4), atol=1e-3)
        model.eval()
        assert torch.equal(features(3), features(4))


def test_patch_dropout_keeps_other_patches_of_each_picture_and_the_class_token() -> None:
    model = build(replace(TINY, patch_dropout=0.75))
    seen: list[torch.Tensor] = []
    model.vision.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, _ = pairs(TINY, batch=1)
    model(images.expand(3, -1, -1, -1))
    assert seen[0].shape[0] == 1 + 4
    assert torch.equal(seen[0][0, 0], seen[0][0, 1])
    assert not torch.equal(seen[0][1:, 0], seen[0][1:, 1])


def test_compiled_layers_compute_the_same() -> None:
    expected, gradients = loss_and_gradients(build(TINY), *pairs(TINY))
    outputs, others = loss_and_gradients(build(TINY, compile=True), *pairs(TINY))
    assert torch.allclose(outputs["loss"], expected["loss"], rtol=1e-5)
    assert all(torch.allclose(others[name], gradient, atol=1e-5) for name, gradient in gradients.items())


def test_bf16_is_close_to_fp32() -> None:
    images, tokens = pairs(TINY)
    exact, rounded = build(TINY).eval(), build(TINY, precision="bf16").eval()
    assert all(p.dtype == torch.bfloat16 for p in rounded.parameters())
    with torch.no_grad():
        for ours, expected in zip(rounded(images, tokens)[:2], exact(images, tokens)[:2], strict=True):
            assert ours is not None and expected is not None and ours.dtype == torch.float32
            assert (ours * expected).sum(dim=1).min() > 0.999


def test_fp64_stays_fp64() -> None:
    model = build(TINY).double()
    image, text, log_scale, _ = model(*pairs(TINY))
    assert image is not None and text is not None
    assert image.dtype == text.dtype == log_scale.dtype == torch.float64


def test_locked_tower_learns_nothing_and_drops_nothing() -> None:
    config = replace(TINY, lock_image=True, patch_dropout=0.5, dropout=0.3)
    model = build(config)
    assert not any(p.requires_grad for p in model.vision.parameters())
    assert all(p.requires_grad for p in model.text.parameters()) and model.log_scale.requires_grad
    images, tokens = pairs(config)
    seed_dropout(1, 0)
    first = model(images, tokens)
    seed_dropout(2, 0)
    second = model(images, tokens)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    assert not first[0].requires_grad and first[1].requires_grad
    assert not model(images[:1], tokens[:1])[0].requires_grad


def test_initial_deviations_are_openais_and_biases_zero() -> None:
    config = replace(TINY, text_width=128, text_heads=2, vocab_size=400)
    model = build(config)
    layer = model.text.transformer.layers[0]
    for parameter, deviation in (
        (model.text.token_embedding, 0.02),
        (model.text.position_embedding, 0.01),
        (model.text.projection, 128**-0.5),
        (layer.self_attention.linear_qkv.weight, 128**-0.5),
        (layer.self_attention.linear_proj.weight, 128**-0.5 * 6**-0.5),
        (layer.mlp.linear_fc1.weight, 256**-0.5),
        (layer.mlp.linear_fc2.weight, 128**-0.5 * 6**-0.5),
        (model.vision.patch_embedding.weight, (3 * 3 * 8 * 8) ** -0.5),
        (model.vision.position_embedding, 32**-0.5),
        (model.vision.projection, 32**-0.5),
    ):
        assert parameter.std().item() == pytest.approx(deviation, rel=0.1)
    assert not layer.self_attention.linear_qkv.bias.any() and not layer.mlp.linear_fc2.bias.any()
    assert (model.vision.norm_before.weight == 1).all() and model.vision.class_embedding.std() > 0.1


def test_only_matrices_decay_and_only_the_scale_is_bounded() -> None:
    shards = network.describe(build(GELU))
    undecayed = {name for name, shard in shards.items() if not shard.decay}
    assert {"log_scale", "logit_bias", "vision.class_embedding", "text.norm_after.weight"} <= undecayed
    assert {"vision.position_embedding", "text.token_embedding", "text.projection"}.isdisjoint(undecayed)
    assert {name: s.maximum for name, s in shards.items() if s.maximum is not None} == {
        "log_scale": pytest.approx(math.log(100.0))
    }
    unbounded = network.describe(build(replace(GELU, max_scale=None)))
    assert unbounded["log_scale"].maximum is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 7}, "model.image_size 32 is not a multiple of model.patch_size 7; 28 would fit"),
        ({"vision_heads": 5}, "width 32 is not divisible by model.vision_heads 5; 4 or 8 heads would fit"),
        ({"text_heads": 7}, "width 24 is not divisible by model.text_heads 7; 6 or 8 heads"),
        ({"context_length": 2}, "model.context_length is 2"),
        ({"embed_dim": 0}, "model.embed_dim is 0; it must be at least 1"),
        ({"patch_dropout": 1.0}, r"model.patch_dropout is 1.0; it must be in \[0, 1\)"),
        ({"initial_temperature": 0.001}, "a scale of 1000, above model.max_scale 100.0"),
        ({"lock_image": True, "lock_text": True}, "leave no tower to train"),
        ({"image_std": (0.1, 0.0, 0.1)}, "model.image_std"),
        ({"vision": "resnet50", "image_size": 40}, "not a multiple of 32, by which a resnet50 shrinks"),
        ({"vision": "resnet50", "patch_dropout": 0.5}, "a resnet50 has no patches"),
        ({"vocab_size": None}, "model.vocab_size is not known yet"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(replace(TINY, **change))  # type: ignore[arg-type]


def test_impossible_layouts_and_executions_are_refused() -> None:
    for config, layout, message in (
        (TINY, Layout(pipeline=2), "parallel.pipeline is 2"),
        (RESNET, Layout(tensor=2), "a resnet50 runs data-parallel only"),
        (TINY, Layout(tensor=4), "model.text_heads 2 is not divisible by parallel.tensor 4; 2 would fit"),
    ):
        with pytest.raises(ModelError, match=message):
            config.check_layout(layout)
    with pytest.raises(ModelError, match=r"zero_stage 3 keeps weights in parts between passes"):
        RESNET.check_layout(ParallelConfig(zero_stage=3))
    replace(RESNET, freeze_batch_norm=True).check_layout(ParallelConfig(zero_stage=3))
    with pytest.raises(ModelError, match=r"set model.dropout to 0, or training.compile to false"):
        build(replace(TINY, dropout=0.1), compile=True)
    with pytest.raises(ModelError, match=r"bf16 would round every small update of a resnet50's running statistics"):
        network.build(RESNET, Execution(precision="bf16"))
    build(replace(RESNET, freeze_batch_norm=True), precision="bf16")
