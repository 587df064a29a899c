"""Every error code of a dead job has a reason, and every reason has advice."""

from __future__ import annotations

import re
from pathlib import Path

from inference import errors
from vestry.failure_reasons import REASONS, Reason, codes_of, reason_of

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"\bFailed\(\s*\"(\w+)\"|^    code = \"(\w+)\"$", re.MULTILINE)
NEVER_DEAD = frozenset({"expired", "cancelled", "superseded"})


def test_every_backend_error_has_a_reason() -> None:
    raised = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.InferenceError)
    }
    assert raised <= set(REASONS)


def test_every_error_code_of_workers_and_handlers_has_a_reason() -> None:
    named = {
        failed or error_class
        for folder in ("tasks", "workers")
        for path in (ROOT / folder).glob("**/*.py")
        for failed, error_class in NAMED.findall(path.read_text(encoding="utf-8"))
    }
    assert len(named) > 5
    assert named - NEVER_DEAD <= set(REASONS)


def test_reasons_and_codes_belong_together() -> None:
    for reason in Reason:
        assert reason.advice
        assert {reason_of(code) for code in codes_of(reason)} <= {reason}
    assert reason_of("something new") is reason_of(None) is Reason.OTHER
    assert sum(len(codes_of(reason)) for reason in Reason) == len(REASONS)
