"""Parameters and floating-point operations of a decoder, by formula."""

from __future__ import annotations

from modeling.gpt.config import GPTConfig


def parameter_count(config: GPTConfig) -> int:
    """Parameters of the model, padding rows of the vocabulary left out, tied embeddings counted once."""
    h, f, layers = config.hidden_size, config.ffn_size, config.num_layers
    kv = config.query_groups * config.head_size
    fc1 = 2 * f if config.activation == "swiglu" else f
    norm = 2 * h if config.normalization == "layernorm" else h
    bias = (h + 2 * kv) + h + fc1 + h if config.biases else 0
    per_layer = h * (h + 2 * kv) + h * h + h * fc1 + f * h + bias + 2 * norm
    embeddings = config.vocabulary * h * (1 if config.tie_embeddings else 2)
    positions = config.sequence_length * h if config.positions == "learned" else 0
    return layers * per_layer + norm + embeddings + positions


def attended_positions(config: GPTConfig, *, causal: bool) -> float:
    """Positions that a token attends to, summed over layers and averaged over the sequence.

    `causal` False counts each dense layer as attending to the whole sequence, the convention of llm-foundry and PaLM
    (Chowdhery et al. 2022, appendix B); a banded layer counts its band either way.
    """
    s = config.sequence_length
    total = 0.0
    for band in config.band_of_layer():
        width = min(band or s, s)
        # With a band, position i sees min(i + 1, width); without, i + 1 of s.
        seen = width - width * (width - 1) / (2 * s) if causal else width
        total += seen
    return total


def flops_per_token(config: GPTConfig, *, causal: bool = False) -> float:
    """Training FLOPs of one token, forward and backward: 6 N + 12 h x (attended positions).

    N counts tied embeddings once and untied input embeddings, which only look up, not at all for the multiplication;
    following the stated convention N is nevertheless the whole parameter count.
    """
    return 6.0 * parameter_count(config) + 12.0 * config.hidden_size * attended_positions(config, causal=causal)
