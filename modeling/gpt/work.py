"""What a rank of a decoder computes in one micro-batch, by formula."""

from __future__ import annotations

from collections import Counter

from modeling.gpt.config import GPTConfig
from modeling.layout import Layout
from modeling.work import LayerShape, Product, Traffic, Work, together

_COMPILED_LOGIT_PASSES = 5.0
"""The same in one kernel: written, read twice, and softmax - onehot written and read."""
_LOGIT_PASSES = 22.0
"""Elements of bf16 that go over memory for each logit of `modeling.cross_entropy`, forward, beyond the product: written
and read once in bf16, then nine passes in fp32 (maximum, subtraction, exponential and division in place, sum).
"""


def work(config: GPTConfig, layout: Layout, stage: int, samples: int, recompute: str) -> Work:
    """Any rank of pipeline stage `stage` with `samples` sequences. Raises ModelError without a vocabulary."""
    layers = config.num_layers / layout.pipeline
    tokens, h = float(samples * config.sequence_length), config.hidden_size
    shape = LayerShape(
        hidden=h,
        heads=config.num_attention_heads,
        kv=config.query_groups * config.head_size,
        ffn=config.ffn_size,
        activation=config.activation,
    )
    shares = Counter(config.band_of_layer())
    parts = [
        shape.work(
            prefix="",
            layers=layers,
            samples=samples,
            positions=config.sequence_length,
            tensor=layout.tensor,
            sequence=layout.sequence,
            recompute=recompute,
            causal=True,
            bands=[(band, count / layout.pipeline) for band, count in shares.items()],
        )
    ]
    if stage == 0:
        parts.append(Work((), (), (Traffic("embedding", 4 * tokens * h, 4 * tokens * h, 3),)))
    if stage == layout.pipeline - 1:
        rows = config.multiplied_rows(layout.tensor)
        head = Product("logits", tokens, rows, h)
        parts.append(
            Work(
                (head,),
                (),
                (
                    Traffic(
                        "cross-entropy",
                        _LOGIT_PASSES * tokens * rows,
                        0.0,
                        tokens / 256 * 12,
                        compiled=_COMPILED_LOGIT_PASSES * tokens * rows if layout.tensor == 1 else None,
                    ),
                    Traffic("final norm", 4 * tokens * h, 6 * tokens * h, 2),
                ),
            )
        )
    return together(parts)
