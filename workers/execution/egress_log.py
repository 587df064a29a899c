"""Egress log: records each request to a cloud before it is sent, in its own transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool

from inference.errors import CallCancelled, InferenceError
from inference.remote.egress import Recorder
from workers.db import session

RECORD_TIMEOUT_S = 20.0
"""Longest wait for a record to be written."""
NO_RUNNING_JOB_SQLSTATE = "VY008"
"""No job of the request is running any more; raised by `vestry.record_egress_v1`."""


class NotRecorded(InferenceError):
    """The egress record of a cloud request could not be committed."""

    default_message = "The request to a cloud could not be recorded, and was not sent."
    code = "not_recorded"
    retryable = True


def recorder(pool: ConnectionPool[psycopg.Connection[Any]]) -> Recorder:
    """The recorder of a cloud worker's backends.

    Args:
        pool: connections of the role vestry_cloud, the only one that may write records.
    """

    def record(backend: str, size: int, jobs: Sequence[UUID]) -> None:
        try:
            with session(pool, RECORD_TIMEOUT_S) as conn:
                conn.execute(
                    "SELECT vestry.record_egress_v1(%s, %s, %s::uuid[])",
                    [backend, size, list(jobs)],
                    prepare=True,
                )
        except psycopg.Error as error:
            # The jobs were cancelled or lost meanwhile: the call is cancelled too.
            raise (
                CallCancelled if error.sqlstate == NO_RUNNING_JOB_SQLSTATE else NotRecorded
            ) from None

    return record
