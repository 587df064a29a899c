"""Content that libraries log of a message or a row is redacted."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers import log_redaction
from workers.celery_integration.tasks import JobDead

SECRET = "dear diary"

pytestmark = pytest.mark.usefixtures("root_logger")


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def log_errors_with_secret(name: str) -> None:
    log = logging.getLogger(name)
    try:
        int(SECRET)
    except ValueError as error:
        log.exception("it broke")
        caused = RuntimeError("outer")
        caused.__cause__ = error
        log.warning("and again\n%s", SECRET, exc_info=caused)


@pytest.mark.parametrize("name", ["any.library", "celery.worker.consumer.consumer", "kombu"])
def test_exception_is_logged_only_by_its_type(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    log_redaction.configure("DEBUG")
    log_errors_with_secret(name)
    output = capsys.readouterr().err
    assert SECRET not in output
    assert "it broke [ValueError]" in output
    assert "and again [RuntimeError]" in output


JOB = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"


def test_undecodable_message_is_logged_without_its_content(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_redaction.configure("DEBUG")
    unreadable = UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET)
    logging.getLogger("celery.worker.consumer.consumer").critical(
        "Can't decode message body: %r [type:%r encoding:%r headers:%s]\n\nbody: %s",
        unreadable, "application/json", "utf-8", {"argsrepr": SECRET, "id": JOB}, SECRET,
    )  # fmt: skip
    output = capsys.readouterr().err
    assert SECRET not in output
    assert (
        "Can't decode message body: UnicodeDecodeError [type:application/json encoding:utf-8 headers:…]"
        in output
    )


@pytest.mark.parametrize(
    ("name", "form", "arguments", "expected"),
    [
        ("celery.pool", "TaskPool: Apply %s (args:%s kwargs:%s)", (SECRET, [SECRET], {}), "Apply …"),
        ("celery.worker.consumer.consumer", "Received unregistered task of type %s.\n%s",
         (SECRET, SECRET), "of type …."),
        ("celery.worker.strategy", "Couldn't convert ETA %r to timestamp: %r. Task: %r",
         (SECRET, ValueError(SECRET), {"x": SECRET}), "timestamp: ValueError."),
        ("kombu.pidbox", "pidbox received method %s [reply_to:%s ticket:%s]",
         (f"x(a={SECRET})", None, SECRET), "method … [reply_to:None"),
        ("celery.worker.request", "Task %s[%s] succeeded before the worker was lost: %r",
         ("embedding", JOB, SECRET), f"Task embedding[{JOB}] succeeded"),
        ("celery.worker.strategy", "Task %(name)s[%(id)s] received",
         ({"name": "ocr", "id": JOB, "args": SECRET},), f"Task ocr[{JOB}] received"),
        ("celery.worker.consumer.consumer", "consumer: Cannot connect to %s: %s.\n%s\n",
         ("redis://private:**@127.0.0.1:6379/0//"[:31] + "0/0//", OSError(SECRET), SECRET), "OSError"),
        ("celery.worker", "%d %s", (SECRET, 1), "%d %s"),
        ("sqlalchemy.pool", "error connecting in %r: %s", ("x", OSError(SECRET)), "in 'x': OSError"),
        ("py.warnings", "%s", (f"/a/b/model.py:7: UserWarning: {SECRET}\n  f({SECRET})\n",),
         "Python warning: model.py:7: UserWarning"),
    ],
)  # fmt: skip
def test_lines_of_libraries_are_redacted(
    capsys: pytest.CaptureFixture[str], name: str, form: str, arguments: Any, expected: str
) -> None:
    log_redaction.configure("DEBUG")
    logging.getLogger(name).error(form, *arguments)
    output = capsys.readouterr().err
    assert SECRET not in output
    assert expected in output
    assert output.count("\n") == 1


def test_uncaught_exception_is_logged_by_type_and_line() -> None:
    script = f"""
import sys, threading, warnings
from workers import log_redaction
log_redaction.configure("DEBUG")
log_redaction.own_process()
def fail():
    raise ValueError({SECRET!r})
class Heavy:
    def __del__(self):
        fail()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Heavy()
warnings.warn({SECRET!r})
import logging
logging.getLogger("x").error("%d", {SECRET!r})
fail()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert SECRET not in done.stderr
    assert done.stderr.count("ValueError at <string>:7") == 3
    assert "Python warning: <string>:15: UserWarning" in done.stderr


def test_other_lines_are_logged_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    log_redaction.configure("INFO")
    logging.getLogger("workers.execution.fetcher").info("claimed %d of\n%s", 3, "lane")
    assert "INFO workers.execution.fetcher: claimed 3 of\nlane" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError(SECRET), JobDead("too_long")])
def test_failed_task_is_logged_without_the_message_of_its_error(
    capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    log_redaction.configure("INFO")
    context = {"id": JOB, "name": "embedding", "description": "raised", "exc": repr(error)}
    logging.getLogger("celery.app.trace").error(
        "Task %(name)s[%(id)s] %(description)s: %(exc)s", context, exc_info=error
    )
    output = capsys.readouterr().err
    assert SECRET not in output
    assert f"embedding[{JOB}]" in output
    assert ("too_long" in output) is isinstance(error, JobDead)


@pytest.mark.parametrize(
    ("context", "outcome"),
    [
        ({"description": "ignored"}, "was ignored"),
        ({"return_value": SECRET, "runtime": 0.1}, "succeeded"),
    ],
)
def test_ended_task_is_logged_with_its_outcome_only(
    capsys: pytest.CaptureFixture[str], context: dict[str, object], outcome: str
) -> None:
    log_redaction.configure("INFO")
    logging.getLogger("celery.app.trace").warning(
        "Task %(name)s[%(id)s] ended", {"id": JOB, "name": "embedding", **context}
    )
    output = capsys.readouterr().err
    assert f"task embedding[{JOB}] {outcome}" in output
    assert SECRET not in output
