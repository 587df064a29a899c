"""Sub-batches hold every text once, within the budget, likes with likes."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from inference.device.batching import padded_tokens, sub_batches
from inference.device.threads import default_threads, set_threads


@given(st.lists(st.integers(0, 300), max_size=200), st.integers(1, 2_000))
def test_each_text_is_in_one_batch_within_the_budget(tokens: list[int], budget: int) -> None:
    batches = sub_batches(tokens, budget)
    assert sorted(place for batch in batches for place in batch) == list(range(len(tokens)))
    assert all(len(batch) == 1 or padded_tokens(tokens, batch) <= budget for batch in batches)
    lengths = [tokens[place] for batch in batches for place in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_batches_are_filled() -> None:
    assert [len(batch) for batch in sub_batches([10] * 25, 100)] == [10, 10, 5]
    assert sub_batches([500], 100) == [[0]]
    assert sub_batches([], 100) == []


def test_threads_are_what_was_set_else_cores_this_process_may_use() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
    before = dict(os.environ)
    try:
        assert set_threads(3) == 3
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
        assert set_threads(None) == default_threads()
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_affinity_bounds_the_threads() -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from inference.device.threads import default_threads as d; print(d())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "1"
