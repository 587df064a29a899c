"""Checks of what a backend returned, the same for every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.errors import BadVectors

if TYPE_CHECKING:
    from inference.protocol import Vectors


def faulty_rows(vectors: Vectors, count: int, dimension: int) -> list[int]:
    """Places of the vectors that may not be stored: not finite, or all zeros.

    A zero vector has no direction, so its cosine similarity to anything is undefined.

    Args:
        vectors: what `embed` returned.
        count: how many texts were given.
        dimension: the space's.

    Raises:
        BadVectors: the whole array has another shape, so no row can be told good.
    """
    if vectors.shape != (count, dimension):
        raise BadVectors
    good = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    return [int(place) for place in np.flatnonzero(~good)]
