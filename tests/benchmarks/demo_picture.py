"""The picture of the demo's loss in the README: `python -m tests.benchmarks.demo_picture demo/runs/demo OUT.svg`.

Reads the run's metrics.jsonl and its shards; needs matplotlib (the `bench` extra).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from data_pipeline.baseline import unigram_cross_entropy
from training.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("out", type=Path, help="the .svg to write")
    arguments = parser.parse_args()
    run, out = arguments.run.resolve(), arguments.out.resolve()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recipe = load_recipe(run)
    unigram = unigram_cross_entropy(recipe.data.mix, recipe.data.validation)
    plot(lines, unigram, out)


def plot(lines: list[dict[str, float]], unigram: float, out: Path) -> None:
    """Training and held-out loss over tokens, and what token frequencies alone give."""
    plt.rcParams.update({"svg.hashsalt": "trestle", "font.family": "sans-serif", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 3.6))
    tokens = [line["tokens"] / 1e6 for line in lines]
    axes.plot(tokens, [line["loss"] for line in lines], color="#7aa6d6", linewidth=1.2, label="training (one batch)")
    held_out = [(line["tokens"] / 1e6, line["validation_loss"]) for line in lines if "validation_loss" in line]
    axes.plot(*zip(*held_out, strict=True), color="#c0392b", marker="o", linewidth=1.6, label="held out")
    axes.axhline(unigram, color="#555555", linestyle="--", linewidth=1, label="token frequencies (held out)")
    axes.axhline(0.8 * unigram, color="#999999", linestyle=":", linewidth=1, label="0.80 of them")
    axes.annotate(f"{held_out[-1][1]:.2f}", held_out[-1], textcoords="offset points", xytext=(4, 6), color="#c0392b")
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats per token)", xlim=(0, tokens[-1] * 1.03))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.62))
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
