"""The processes that read pages can be lost: one at a time, and with all that they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from inference.backends.tesseract_local import TesseractBackend, TesseractModel
from inference.catalogue.loader import load
from inference.errors import BackendUnavailable, CallCancelled
from inference.ocr.protocol import OcrRequest
from inference.protocol import BackendConfig
from tests import faulty_reader
from tests.page_files import pdf, text_page
from vestry.jobs.ocr import OcrResult

FAULTY = (sys.executable, faulty_reader.__file__)
PAGES = 6
FILE = pdf(*[text_page(f"This is page number {n}") for n in range(1, PAGES + 1)])
DPI = {fault.__name__: dpi for dpi, fault in faulty_reader.FAULTS.items()}


def backend(root: Path, **options: object) -> TesseractBackend:
    usual: dict[str, object] = {"processes": 2, "page_s": 60}
    config = BackendConfig("tesseract", "local", temp_dir=root, options={**usual, **options})
    return TesseractBackend(config, FAULTY)


def model(backend: TesseractBackend) -> TesseractModel:
    return backend.load(load().model("tesseract"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TesseractBackend]:
    made = backend(tmp_path_factory.mktemp("pages") / "scratch", memory_mb=768)
    yield made
    made.close()


def struck(model: TesseractModel, fault: str) -> OcrResult:
    return model.read(FILE, OcrRequest(dpi=DPI[fault]))


def errors(result: OcrResult) -> dict[int, str]:
    return {page.page: page.error[0] for page in result.pages if page.error is not None}


def neighbours(result: OcrResult) -> list[str]:
    return [page.text for page in result.pages if page.error is None]


ALL = [f"This is page number {n}" for n in range(1, PAGES + 1)]
ALL_BUT_THE_SECOND = [ALL[0], *ALL[2:]]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("crash", "reader_crashed"),
        ("killed", "reader_crashed"),
        ("babble", "reader_crashed"),
        ("eat_memory", "out_of_memory"),
    ],
)
def test_a_fault_takes_one_page_and_no_other(
    reading: TesseractBackend, fault: str, code: str
) -> None:
    result = struck(model(reading), fault)
    assert errors(result) == {2: code}
    assert neighbours(result) == ALL_BUT_THE_SECOND
    assert neighbours(model(reading).read(FILE, OcrRequest())) == ALL, "the next file is read"


def test_a_page_whose_child_died_is_tried_once_more(reading: TesseractBackend) -> None:
    result = struck(model(reading), "crash_once")
    assert errors(result) == {}
    assert neighbours(result) == ALL


def test_a_page_that_takes_too_long_is_killed_with_what_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.ocr.document_reader.REPLY_MARGIN_S", 1)
    made = backend(tmp_path / "scratch", page_s=4)
    temp_dir, _ = made.running()
    result = struck(model(made), "hang")
    assert errors(result) == {2: "time_limit"}
    assert neighbours(result) == ALL_BUT_THE_SECOND
    hung = (temp_dir.path / faulty_reader.STRUCK).read_text(encoding="ascii").split()
    assert len(hung) == 2
    assert_gone([int(pid) for pid in hung])
    made.close()
    assert not (tmp_path / "scratch").exists()


def test_computing_for_ever_is_ended_by_the_kernel_too(tmp_path: Path) -> None:
    made = backend(tmp_path / "scratch", page_s=0.5)
    _, children = made.running()
    children.call({"do": "warm", "languages": "eng"}, 60)
    [child] = children._idle
    request = {"do": "page", "page": 2, "dpi": DPI["burn"], "kind": "pdf", "languages": "eng"}
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            child.call(request, 60)
        except BaseException as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(90)  # a second or two of processor time, however long that takes
    assert [type(error).__name__ for error in ended] == ["ConnectionClosed"]
    assert child._process.wait() == -signal.SIGXCPU
    child.end()
    made.close()


def test_a_child_knows_no_login_and_no_key(
    reading: TesseractBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VESTRY_DATABASE_URL", "VESTRY_KEYRING_FILE", "OPENAI_API_KEY", "HOME"):
        monkeypatch.setenv(name, "sekrit")
    made = backend(reading.running()[0].path / "own")
    _, children = made.running()
    told = children.call({"do": "count", "kind": "png", "path": ""}, 60)
    assert "sekrit" not in str(told["environment"])
    assert set(told["environment"]) <= {
        "LANG", "PATH", "PYTHONPATH", "TMPDIR", "TESSDATA_PREFIX", "OMP_THREAD_LIMIT",
        "LD_LIBRARY_PATH", "LC_CTYPE",
    }  # fmt: skip
    loaded = {module.partition(".")[0] for module in told["modules"]}
    assert not loaded & {"vestry", "models", "workers", "tasks", "psycopg", "cryptography"}
    [child] = children._idle
    assert told["memory"] == [2048 * 1024 * 1024] * 2
    assert told["core"] == [0, 0]
    made.close()
    assert_gone([child.pid])


def test_children_have_the_priority_they_are_told(tmp_path: Path) -> None:
    config = BackendConfig("tesseract", "local", temp_dir=tmp_path / "scratch", nice=19)
    made = TesseractBackend(config)
    model(made).warm_up()
    [child] = made.running()[1]._idle
    assert psutil.Process(child.pid).nice() == 19
    made.close()


PARENT = """
import sys
from pathlib import Path
from tests.unit.test_page_children import backend, model, struck
made = backend(Path(sys.argv[1]))
print(made.running()[0].path, flush=True)
struck(model(made), "hang")
"""


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    root = tmp_path / "scratch"
    checkout = Path(__file__).parents[2]
    argv = [sys.executable, "-c", PARENT, str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=checkout) as parent:
        assert parent.stdout is not None
        mark = Path(parent.stdout.readline().strip()) / faulty_reader.STRUCK
        eventually(lambda: mark.exists() and len(mark.read_text(encoding="ascii").split()) == 2)
        hung = [int(pid) for pid in mark.read_text(encoding="ascii").split()]
        parent.kill()
    assert_gone(hung)
    assert list(root.iterdir()), "nobody was left to remove it"
    made = backend(root)
    model(made).warm_up()
    assert not mark.exists()
    made.close()
    assert not root.exists()


def test_a_file_that_nobody_wants_any_more_is_given_up_between_pages(tmp_path: Path) -> None:
    made = backend(tmp_path / "scratch", processes=1)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(CallCancelled):
        model(made).read(FILE, OcrRequest(), cancelled=cancelled)
    assert len(asked) == 3
    assert neighbours(model(made).read(FILE, OcrRequest())) == ALL
    made.close()


def test_closing_does_not_wait_for_a_page(tmp_path: Path) -> None:
    made = backend(tmp_path / "scratch")
    mark = made.running()[0].path / faulty_reader.STRUCK
    ended: list[BaseException] = []

    def read() -> None:
        try:
            struck(model(made), "hang")
        except BackendUnavailable as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    eventually(mark.exists)
    began = time.monotonic()
    made.close()
    reader.join(10)
    assert time.monotonic() - began < 5
    assert len(ended) == 1
    eventually(lambda: not (tmp_path / "scratch").exists())


def test_urgent_pages_go_before_those_that_wait_already(reading: TesseractBackend) -> None:
    _, children = reading.running()
    order: list[str] = []
    names = ["bulk", "bulk", "urgent"]

    def ask(name: str) -> None:
        with children._slot(urgent=name == "urgent"):
            order.append(name)

    with children._slot(urgent=False), children._slot(urgent=False):  # both children are busy
        waiting = [threading.Thread(target=ask, args=(name,)) for name in names]
        for number, thread in enumerate(waiting, 1):
            thread.start()
            eventually(lambda number=number: len(children._queue) == number)
    for thread in waiting:
        thread.join(10)
    assert order[0] == "urgent"


def test_a_program_that_does_not_start_is_told_from_a_page_that_crashes(tmp_path: Path) -> None:
    config = BackendConfig("tesseract", "local", temp_dir=tmp_path / "scratch")
    for command in ((sys.executable, "-c", "raise SystemExit"), ("/nowhere/python",)):
        made = TesseractBackend(config, command)
        with pytest.raises(BackendUnavailable):
            model(made).read(FILE, OcrRequest())
        made.close()


def test_a_child_is_replaced_after_many_pages(
    reading: TesseractBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.ocr.worker_pool.MAX_REQUESTS", 3)
    pids: set[int] = set()
    made = backend(reading.running()[0].path / "own", processes=1)
    for _ in range(2):
        assert neighbours(model(made).read(FILE, OcrRequest(pages=(1, 1)))) == ALL[:1]
        pids |= {child.pid for child in made.running()[1]._idle}
    assert len(pids) == 2
    made.close()


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def assert_gone(pids: list[int]) -> None:
    def gone(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    try:
        eventually(lambda: all(gone(pid) for pid in pids), 5)
    finally:
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
