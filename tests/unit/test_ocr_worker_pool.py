"""OCR workers that crash or are killed are replaced, without effect on other pages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inference.backends.tesseract_local import TesseractBackend, TesseractModel
from inference.catalogue.loader import load
from inference.errors import BackendUnavailable, CallCancelled
from inference.ocr.protocol import OcrRequest
from inference.protocol import BackendConfig
from tests import faulty_ocr_worker
from tests.page_files import pdf, text_page
from tests.process_env import alive
from tests.waiting import eventually
from vestry.jobs.ocr import OcrResult

FAULTY = (sys.executable, faulty_ocr_worker.__file__)
PAGES = 6
FILE = pdf(*[text_page(f"This is page number {n}") for n in range(1, PAGES + 1)])
DPI = {fault.__name__: dpi for dpi, fault in faulty_ocr_worker.FAULTS.items()}


def backend(root: Path, **options: object) -> TesseractBackend:
    defaults: dict[str, object] = {"processes": 2, "page_s": 60}
    config = BackendConfig("tesseract", "local", temp_dir=root, options={**defaults, **options})
    return TesseractBackend(config, FAULTY)


def model(backend: TesseractBackend) -> TesseractModel:
    return backend.load(load().model("tesseract"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TesseractBackend]:
    ocr = backend(tmp_path_factory.mktemp("pages") / "parent", memory_mb=768)
    yield ocr
    ocr.close()


def read_with_fault(model: TesseractModel, fault: str) -> OcrResult:
    return model.read(FILE, OcrRequest(dpi=DPI[fault]))


def errors(result: OcrResult) -> dict[int, str]:
    return {page.page: page.error[0] for page in result.pages if page.error is not None}


def page_texts(result: OcrResult) -> list[str]:
    return [page.text for page in result.pages if page.error is None]


ALL = [f"This is page number {n}" for n in range(1, PAGES + 1)]
ALL_BUT_THE_SECOND = [ALL[0], *ALL[2:]]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("crash", "reader_crashed"),
        ("killed", "reader_crashed"),
        ("send_malformed_reply", "reader_crashed"),
        ("eat_memory", "out_of_memory"),
    ],
)
def test_worker_fault_fails_one_page_only(reading: TesseractBackend, fault: str, code: str) -> None:
    result = read_with_fault(model(reading), fault)
    assert errors(result) == {2: code}
    assert page_texts(result) == ALL_BUT_THE_SECOND
    assert page_texts(model(reading).read(FILE, OcrRequest())) == ALL, "the next file is read"


def test_page_of_dead_worker_is_retried_once(reading: TesseractBackend) -> None:
    result = read_with_fault(model(reading), "crash_once")
    assert errors(result) == {}
    assert page_texts(result) == ALL


def test_worker_over_time_limit_is_killed_with_its_child_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.ocr.document_reader.REPLY_MARGIN_S", 1)
    ocr = backend(tmp_path / "parent", page_s=4)
    temp_dir, _ = ocr.running()
    result = read_with_fault(model(ocr), "hang")
    assert errors(result) == {2: "time_limit"}
    assert page_texts(result) == ALL_BUT_THE_SECOND
    pids = (temp_dir.path / faulty_ocr_worker.FAULT_MARKER).read_text(encoding="ascii").split()
    assert len(pids) == 2
    assert_ended([int(pid) for pid in pids])
    ocr.close()
    assert not (tmp_path / "parent").exists()


def test_kernel_ends_worker_over_its_cpu_limit(tmp_path: Path) -> None:
    ocr = backend(tmp_path / "parent", page_s=0.5)
    _, workers = ocr.running()
    workers.call({"do": "warm", "languages": "eng"}, 60)
    [worker] = workers._idle
    request = {"do": "page", "page": 2, "dpi": DPI["busy_loop"], "kind": "pdf", "languages": "eng"}
    ended: list[BaseException] = []

    def call() -> None:
        try:
            worker.call(request, 60)
        except BaseException as error:
            ended.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    caller.join(90)  # one or two seconds of CPU time
    assert [type(error).__name__ for error in ended] == ["ConnectionClosed"]
    assert worker._process.wait() == -signal.SIGXCPU
    worker.end()
    ocr.close()


def test_worker_has_no_login_key_or_database_module(
    reading: TesseractBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VESTRY_DATABASE_URL", "VESTRY_KEYRING_FILE", "OPENAI_API_KEY", "HOME"):
        monkeypatch.setenv(name, "sekrit")
    ocr = backend(reading.running()[0].path / "own")
    _, workers = ocr.running()
    reply = workers.call({"do": "count", "kind": "png", "path": ""}, 60)
    assert "sekrit" not in str(reply["environment"])
    assert set(reply["environment"]) <= {
        "LANG", "PATH", "PYTHONPATH", "TMPDIR", "TESSDATA_PREFIX", "OMP_THREAD_LIMIT",
        "LD_LIBRARY_PATH", "LC_CTYPE",
    }  # fmt: skip
    loaded = {module.partition(".")[0] for module in reply["modules"]}
    assert not loaded & {"vestry", "models", "workers", "tasks", "psycopg", "cryptography"}
    [worker] = workers._idle
    assert reply["memory"] == [2048 * 1024 * 1024] * 2
    assert reply["core"] == [0, 0]
    ocr.close()
    assert_ended([worker.pid])


def test_workers_have_configured_priority(tmp_path: Path) -> None:
    config = BackendConfig("tesseract", "local", temp_dir=tmp_path / "parent", nice=19)
    ocr = TesseractBackend(config)
    model(ocr).warm_up()
    [worker] = ocr.running()[1]._idle
    assert psutil.Process(worker.pid).nice() == 19
    ocr.close()


PARENT = """
import sys
from pathlib import Path
from tests.unit.test_ocr_worker_pool import backend, model, read_with_fault
ocr = backend(Path(sys.argv[1]))
print(ocr.running()[0].path, flush=True)
read_with_fault(model(ocr), "hang")
"""


def test_workers_end_with_killed_parent(tmp_path: Path) -> None:
    root = tmp_path / "parent"
    checkout = Path(__file__).parents[2]
    argv = [sys.executable, "-c", PARENT, str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=checkout) as parent:
        assert parent.stdout is not None
        marker = Path(parent.stdout.readline().strip()) / faulty_ocr_worker.FAULT_MARKER
        eventually(lambda: marker.exists() and len(marker.read_text(encoding="ascii").split()) == 2)
        pids = [int(pid) for pid in marker.read_text(encoding="ascii").split()]
        parent.kill()
    assert_ended(pids)
    assert list(root.iterdir()), "a killed parent removes nothing"
    ocr = backend(root)
    model(ocr).warm_up()
    assert not marker.exists()
    ocr.close()
    assert not root.exists()


def test_cancelled_file_is_abandoned_between_pages(tmp_path: Path) -> None:
    ocr = backend(tmp_path / "parent", processes=1)
    polls: list[int] = []

    def cancelled() -> bool:
        polls.append(1)
        return len(polls) > 2

    with pytest.raises(CallCancelled):
        model(ocr).read(FILE, OcrRequest(), cancelled=cancelled)
    assert len(polls) == 3
    assert page_texts(model(ocr).read(FILE, OcrRequest())) == ALL
    ocr.close()


def test_close_does_not_wait_for_running_page(tmp_path: Path) -> None:
    ocr = backend(tmp_path / "parent")
    marker = ocr.running()[0].path / faulty_ocr_worker.FAULT_MARKER
    ended: list[BaseException] = []

    def read() -> None:
        try:
            read_with_fault(model(ocr), "hang")
        except BackendUnavailable as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    eventually(marker.exists)
    start = time.monotonic()
    ocr.close()
    reader.join(10)
    assert time.monotonic() - start < 5
    assert len(ended) == 1
    eventually(lambda: not (tmp_path / "parent").exists())


def test_urgent_requests_precede_queued_ones(reading: TesseractBackend) -> None:
    _, workers = reading.running()
    order: list[str] = []
    names = ["bulk", "bulk", "urgent"]

    def run(name: str) -> None:
        with workers._slot(urgent=name == "urgent"):
            order.append(name)

    with workers._slot(urgent=False), workers._slot(urgent=False):  # all workers are busy
        waiting = [threading.Thread(target=run, args=(name,)) for name in names]
        for number, thread in enumerate(waiting, 1):
            thread.start()
            eventually(lambda number=number: len(workers._queue) == number)
    for thread in waiting:
        thread.join(10)
    assert order[0] == "urgent"


def test_worker_that_does_not_start_is_unavailable(tmp_path: Path) -> None:
    config = BackendConfig("tesseract", "local", temp_dir=tmp_path / "parent")
    for command in ((sys.executable, "-c", "raise SystemExit"), ("/nowhere/python",)):
        ocr = TesseractBackend(config, command)
        with pytest.raises(BackendUnavailable):
            model(ocr).read(FILE, OcrRequest())
        ocr.close()


def test_worker_is_replaced_after_max_requests(
    reading: TesseractBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.ocr.worker_pool.MAX_REQUESTS", 3)
    pids: set[int] = set()
    ocr = backend(reading.running()[0].path / "own", processes=1)
    for _ in range(2):
        assert page_texts(model(ocr).read(FILE, OcrRequest(pages=(1, 1)))) == ALL[:1]
        pids |= {worker.pid for worker in ocr.running()[1]._idle}
    assert len(pids) == 2
    ocr.close()


def assert_ended(pids: list[int]) -> None:
    try:
        eventually(lambda: not any(alive(pid) for pid in pids), within=5)
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
