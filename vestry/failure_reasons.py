"""Reasons for dead jobs: each error code belongs to one of a few that an operator can act on.

Codes are many and grow with the backends; reasons are few and stable. docs/guarantees.md says how long
a dead job and its payload are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Reason for a dead job; `advice` says what to do about it."""

    POISON = "poison"
    """It crashed its worker process in two exclusive runs."""
    TIMED_OUT = "timed_out"
    """Every attempt exceeded the longest run time."""
    REFUSED = "refused"
    """The model or its provider refused it."""
    BAD_INPUT = "bad_input"
    """Its input cannot be processed."""
    BAD_OUTPUT = "bad_output"
    """The model's output is malformed, or cannot be stored."""
    OUT_OF_ATTEMPTS = "out_of_attempts"
    """Every attempt failed with an error that may be temporary."""
    NO_MODEL = "no_model"
    """No enabled model is good enough for it, or the model it names is not installed."""
    UNREADABLE = "unreadable"
    """Its payload is gone, or sealed with a key that the workers lack."""
    PARENT_FAILED = "parent_failed"
    """It waited for a job that failed, and never ran."""
    OTHER = "other"
    """An error code that this version of the library does not list."""

    @property
    def advice(self) -> str:
        """One clause: whether and when a replay helps."""
        return _ADVICE[self]


REASONS: Final[Mapping[str, Reason]] = {
    "crashed": Reason.POISON,
    "timed_out": Reason.TIMED_OUT,
    "backend_refused": Reason.REFUSED,
    "bad_request": Reason.BAD_INPUT,
    "bad_payload": Reason.BAD_INPUT,
    "too_long": Reason.BAD_INPUT,
    "bad_text": Reason.BAD_INPUT,
    "bad_document": Reason.BAD_INPUT,
    "empty_text": Reason.BAD_INPUT,
    "unreadable_file": Reason.BAD_INPUT,
    "encrypted_file": Reason.BAD_INPUT,
    "file_too_large": Reason.BAD_INPUT,
    "no_label": Reason.BAD_OUTPUT,
    "no_labels": Reason.BAD_INPUT,
    "no_passages": Reason.BAD_INPUT,
    "no_upstream_text": Reason.BAD_INPUT,
    "bad_vector": Reason.BAD_OUTPUT,
    "bad_answer": Reason.BAD_OUTPUT,
    "invalid_output": Reason.BAD_OUTPUT,
    "output_cut": Reason.BAD_OUTPUT,
    "not_storable": Reason.BAD_OUTPUT,
    "rate_limited": Reason.OUT_OF_ATTEMPTS,
    "over_limit": Reason.OUT_OF_ATTEMPTS,
    "backend_unavailable": Reason.OUT_OF_ATTEMPTS,
    "backend_unauthorised": Reason.OUT_OF_ATTEMPTS,
    "passed_over": Reason.OUT_OF_ATTEMPTS,
    "waits_for_backend": Reason.OUT_OF_ATTEMPTS,
    "inference_error": Reason.OUT_OF_ATTEMPTS,
    "inference_failed": Reason.OUT_OF_ATTEMPTS,
    "out_of_memory": Reason.OUT_OF_ATTEMPTS,
    "handler_error": Reason.OUT_OF_ATTEMPTS,
    "abandoned": Reason.OUT_OF_ATTEMPTS,
    "documents_locked": Reason.OUT_OF_ATTEMPTS,
    "not_recorded": Reason.OUT_OF_ATTEMPTS,
    "no_adequate_model": Reason.NO_MODEL,
    "unknown_model": Reason.NO_MODEL,
    "model_missing": Reason.NO_MODEL,
    "device_missing": Reason.NO_MODEL,
    "payload_missing": Reason.UNREADABLE,
    "unsealable": Reason.UNREADABLE,
    "parent_failed": Reason.PARENT_FAILED,
}
"""Every error code a dead job may carry, as stored in `jobs.error_code`."""

_ADVICE: Final[Mapping[Reason, str]] = {
    Reason.POISON: "find out what in it crashes the process before you replay it",
    Reason.TIMED_OUT: "split it into smaller jobs, or raise VESTRY_MAX_RUN_S and replay it",
    Reason.REFUSED: "a replay will be refused too unless another model serves it",
    Reason.BAD_INPUT: "a replay will fail too; correct the input and submit it again",
    Reason.BAD_OUTPUT: "replay it once the model or the database is repaired",
    Reason.OUT_OF_ATTEMPTS: "replay it once the failed component works again",
    Reason.NO_MODEL: "replay it once a model for it is enabled",
    Reason.UNREADABLE: "restore the key ring and replay it, or submit it again",
    Reason.PARENT_FAILED: "replay the job it waited for; that replays this one too",
    Reason.OTHER: "see its receipts",
}


def reason_of(code: str | None) -> Reason:
    """The reason that an error code belongs to."""
    return REASONS.get(code or "", Reason.OTHER)


def codes_of(reason: Reason) -> list[str]:
    """The codes that belong to a reason; none for `OTHER`, which covers all unlisted codes."""
    return [code for code, code_reason in REASONS.items() if code_reason is reason]
