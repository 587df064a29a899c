"""The checks of the database name the states of the library's `State`."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vestry import errors
from vestry.jobs.results import TERMINAL, State

CHECKS = """
SELECT pg_get_constraintdef(c.oid)
FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attname = 'state'
WHERE c.conrelid = 'vestry.jobs'::regclass AND c.contype = 'c'
  AND (SELECT array_agg(n.attname::text ORDER BY n.attname) FROM pg_attribute n
       WHERE n.attrelid = c.conrelid AND n.attnum = ANY (c.conkey)) = %s::text[]"""


@pytest.mark.parametrize(
    ("columns", "states"), [(["state"], frozenset(State)), (["finished_at", "state"], TERMINAL)]
)
def test_checks_of_jobs_name_exactly_the_states_of_the_library(
    root: Any, columns: list[str], states: frozenset[State]
) -> None:
    ((check,),) = root.execute(CHECKS, [columns]).fetchall()
    assert set(re.findall(r"'(\w+)'::text", check)) == {state.value for state in states}


def test_errors_of_ended_jobs_name_states_of_the_library() -> None:
    kinds = (errors.JobFailed, errors.JobCancelled, errors.JobExpired, errors.JobSuperseded)
    assert {kind.state for kind in kinds} == TERMINAL - {State.SUCCEEDED}
