"""Shapes that ship: the eight models of Brown et al. 2020, table 2.1, and a Llama-like one."""

from __future__ import annotations

from typing import Any

# Table 2.1 of "Language Models are Few-Shot Learners". It contradicts itself twice, and a choice had to be made:
#   1.3B: d_model 2048 with 24 heads of 128 (= 3072): 16 heads of 128, so that heads x width = 2048;
#   13B:  d_model 5140 with 40 heads of 128 (= 5120): d_model 5120, which also gives the 12,850 M of table D.1.
# The vocabulary is GPT-2's 50,257 (section 2.1), the context 2,048 (table 2.1's caption).
_GPT3: dict[str, tuple[int, int, int]] = {  # layers, width, heads
    "gpt3-125m": (12, 768, 12),
    "gpt3-350m": (24, 1024, 16),
    "gpt3-760m": (24, 1536, 16),
    "gpt3-1.3b": (24, 2048, 16),
    "gpt3-2.7b": (32, 2560, 32),
    "gpt3-6.7b": (32, 4096, 32),
    "gpt3-13b": (40, 5120, 40),
    "gpt3-175b": (96, 12288, 96),
}

# Touvron et al. 2023 (arXiv:2302.13971) describes the family; this small member has grouped-query attention as well.
_LLAMA_160M: dict[str, Any] = {
    "num_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_query_groups": 4,
    "ffn_hidden_size": 2048,
    "sequence_length": 2048,
    "vocab_size": 32000,
    "tie_embeddings": False,
    "positions": "rotary",
    "normalization": "rmsnorm",
    "activation": "swiglu",
    "biases": False,
}

PRESETS: dict[str, dict[str, Any]] = {
    name: {
        "num_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "sequence_length": 2048,
        "vocab_size": 50257,
    }
    for name, (layers, width, heads) in _GPT3.items()
} | {"llama-160m": _LLAMA_160M}
