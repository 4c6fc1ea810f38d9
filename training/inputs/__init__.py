"""What differs between runs that read text and runs that read image-text pairs: the stream, a rank's micro-batches, and
what is looked at between steps. The loop asks here and knows no kind.

`base` says what a kind offers, `text` and `pairs` are the two.
"""

from __future__ import annotations

from modeling.registry import family
from training.inputs.base import Inputs, Looking, Seen
from training.recipe import Recipe

__all__ = ["Inputs", "Looking", "Seen", "inputs_of"]


def inputs_of(recipe: Recipe) -> Inputs:
    """The kind of data that the recipe's model family reads."""
    if family(recipe.model.family).reads == "pairs":
        from training.inputs.pairs import PairInputs  # OpenCV and scikit-learn take a while, and text does without

        return PairInputs(recipe)
    from training.inputs.text import TextInputs

    return TextInputs(recipe)
