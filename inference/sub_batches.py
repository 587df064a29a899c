"""Which texts are computed together. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence


def sub_batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Cut texts into batches of similar length, the longest first.

    A batch is padded to its longest text, so neighbours in length go together, and what a batch
    costs is its longest text times its number of texts.

    Args:
        tokens: of each text.
        budget: most padded tokens in a batch; a single text may exceed it.

    Returns:
        Places of the texts, each exactly once.
    """
    order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
    batches: list[list[int]] = []
    longest = 0
    for place in order:
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = max(1, tokens[place])
        batches[-1].append(place)
    return batches


def padded_tokens(tokens: Sequence[int], places: Sequence[int]) -> int:
    """What a batch of these places costs."""
    return len(places) * max((tokens[place] for place in places), default=0)
