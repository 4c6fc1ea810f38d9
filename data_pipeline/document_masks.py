"""Where the documents of a packed sample begin and end, from its tokens alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def document_numbers(tokens: NDArray[np.integer[Any]], eod_id: int) -> NDArray[np.int32]:
    """Which document each token is of: 0 for a row's first, one more after each end-of-document token.

    tokens: [..., s + 1]; the result has their shape. An end-of-document token belongs to the document that it ends,
    so that one right after another is a document of its own. A row may begin in the middle of a document, and what is
    there of it counts as one.
    """
    ends = tokens == eod_id
    numbers: NDArray[np.int32] = np.cumsum(ends, axis=-1, dtype=np.int32) - ends
    return numbers


def predicted_targets(documents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """True where a target is of the document of its input: not the first token of the next one.

    documents: [..., s + 1], as `document_numbers` gives them; the result is [..., s].
    """
    same: NDArray[np.bool_] = documents[..., 1:] == documents[..., :-1]
    return same
