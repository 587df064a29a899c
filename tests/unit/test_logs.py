"""What a careless library would log of a message or a row is cut before it is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from workers import logs
from workers.celery_tasks import JobDead

SECRET = "dear diary"

pytestmark = pytest.mark.usefixtures("root_logger")


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def careless(name: str) -> None:
    log = logging.getLogger(name)
    try:
        int(SECRET)
    except ValueError as error:
        log.exception("it broke")
        caused = RuntimeError("outer")
        caused.__cause__ = error
        log.warning("and again\n%s", SECRET, exc_info=caused)


@pytest.mark.parametrize("name", ["somebody.else", "celery.worker.consumer.consumer", "kombu"])
def test_of_an_exception_its_type_alone_is_logged(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    logs.configure("DEBUG")
    careless(name)
    said = capsys.readouterr().err
    assert SECRET not in said
    assert "it broke [ValueError]" in said
    assert "and again [RuntimeError]" in said


def test_of_a_message_that_cannot_be_read_its_first_line_alone_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("DEBUG")
    logging.getLogger("celery.worker.consumer.consumer").critical(
        "Can't decode message body: %r [type:%r]\n\nbody: %s", "bad", "json", SECRET
    )
    logging.getLogger("kombu.transport").warning("%s %s", "x" * 200, SECRET)
    said = capsys.readouterr().err
    assert SECRET not in said
    assert "Can't decode message body: 'bad' [type:'json']" in said


def test_other_lines_are_logged_whole(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO")
    logging.getLogger("workers.runtime").info("claimed %d of\n%s", 3, "lane")
    assert "INFO workers.runtime: claimed 3 of\nlane" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError(SECRET), JobDead("too_long")])
def test_of_a_task_that_raised_celery_does_not_log_the_message(
    capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    logs.configure("INFO")
    context = {"id": "some-id", "name": "embedding", "description": "raised", "exc": repr(error)}
    logging.getLogger("celery.app.trace").error(
        "Task %(name)s[%(id)s] %(description)s: %(exc)s", context, exc_info=error
    )
    said = capsys.readouterr().err
    assert SECRET not in said
    assert "embedding[some-id]" in said
    assert ("too_long" in said) is isinstance(error, JobDead)
