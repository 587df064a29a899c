"""Failpoints: the code passes each name once, and callbacks run only while they are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workers import failpoints
from workers.failpoints import failpoint

PRODUCT = Path(failpoints.__file__).parent


def test_each_name_is_passed_once() -> None:
    values = {k: v for k, v in vars(failpoints).items() if isinstance(v, str)}
    names = {name for name, value in values.items() if value in failpoints.NAMES}
    text = "".join(path.read_text(encoding="utf-8") for path in PRODUCT.rglob("*.py"))
    assert sorted(re.findall(r"failpoint\(failpoints\.(\w+)", text)) == sorted(names)
    assert len(names) == len(failpoints.NAMES)


def test_callback_gets_the_arguments_while_it_is_installed() -> None:
    calls: list[object] = []
    failpoint(failpoints.AFTER_CLAIM, "before")
    with failpoints.installed({failpoints.AFTER_CLAIM: calls.append}):
        failpoint(failpoints.AFTER_CLAIM, "lease")
        failpoint(failpoints.AFTER_INFERENCE, "other")
        with failpoints.installed({failpoints.AFTER_INFERENCE: calls.append}):
            failpoint(failpoints.AFTER_INFERENCE, "inner")
        failpoint(failpoints.AFTER_INFERENCE, "other")
        failpoint(failpoints.AFTER_CLAIM, "again")
    failpoint(failpoints.AFTER_CLAIM, "after")
    assert calls == ["lease", "inner", "again"]


def test_error_of_a_callback_reaches_the_code() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with failpoints.installed({failpoints.AFTER_FINISH: fail}), pytest.raises(ZeroDivisionError):
        failpoint(failpoints.AFTER_FINISH)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no failpoint 'nowhere'"):
        failpoints.install({"nowhere": print})
