"""OCR of images and PDFs by Tesseract, pdfium and Pillow, in child processes of the worker."""

from __future__ import annotations

import atexit
import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inference.catalogue.schema import Locality, ModelEntry
from inference.device.threads import default_threads
from inference.errors import (
    BackendUnavailable,
    BadRequest,
    EncryptedFile,
    FileTooLarge,
    InferenceError,
    ModelMissing,
    UnreadableFile,
)
from inference.ocr import tessdata
from inference.ocr.config import MEGABYTE, OcrLimits, WorkerSetup
from inference.ocr.document_reader import DocumentReader, ReadRequest
from inference.ocr.errors import PageError
from inference.ocr.ipc import ConnectionClosed, ReplyTimeout
from inference.ocr.protocol import OcrRequest
from inference.ocr.tessdata import Installation
from inference.ocr.worker_pool import WORKER_COMMAND, OcrWorker, OcrWorkerPool
from inference.protocol import BackendConfig, BackendProbe, Cancelled, not_cancelled
from inference.temp_dir import TempDir, TempDirError, default_parent
from vestry.jobs.ocr import READ_KINDS, OcrResult, file_kind

DEFAULT_LANGUAGES: Final = ("eng",)
MAX_PROCESSES: Final = 64
"""Most OCR processes, on any number of cores."""

_FILE_ERRORS: Final[dict[str, type[InferenceError]]] = {
    "encrypted_file": EncryptedFile,
    "file_too_large": FileTooLarge,
    "no_such_page": BadRequest,
    "page_too_large": FileTooLarge,
    "too_many_pages": FileTooLarge,
}
"""Errors of a whole file, by code; all others are `UnreadableFile`."""


@dataclass(frozen=True, slots=True)
class TesseractOptions:
    """The backend's options in the catalogue, validated.

    Attributes:
        languages: of files whose job names none, the main one first.
        tessdata: a directory of traineddata that takes precedence over the packaged data.
        processes: pages read in parallel; by default `default_threads()`.
        limits: see `inference.ocr.config.OcrLimits`, whose fields are options too.
    """

    languages: tuple[str, ...]
    tessdata: Path | None
    processes: int
    limits: OcrLimits

    @classmethod
    def of(cls, config: BackendConfig) -> TesseractOptions:
        """From a configuration.

        Raises:
            ModelMissing: an option is unknown or invalid.
        """
        options = dict(config.options)
        fields: dict[str, Any] = {"page_s": config.timeout_s}
        defaults = dataclasses.asdict(OcrLimits())
        tessdata = options.pop("tessdata", None)
        option = "languages"
        try:
            languages = language_names(options.pop(option, None) or DEFAULT_LANGUAGES)
            option = "processes"
            processes = int(options.pop(option, None) or config.threads or default_threads())
            for option in [name for name in defaults if name in options]:
                fields[option] = type(defaults[option])(options.pop(option))
        except (TypeError, ValueError):
            raise ModelMissing(
                f"backend {config.name}: the value of option {option} has the wrong type; "
                "see docs/ocr.md"
            ) from None
        limits = OcrLimits(**fields)
        if options:
            valid = ", ".join(["languages", "tessdata", "processes", *defaults])
            raise ModelMissing(
                f"backend {config.name}: unknown option {min(options)}; the options are {valid}"
            )
        if min(processes, *dataclasses.astuple(limits)) <= 0:
            raise ModelMissing(
                f"backend {config.name}: limits and processes must be greater than 0"
            )
        path = Path(tessdata).expanduser() if tessdata else None
        return cls(languages, path, min(processes, MAX_PROCESSES), limits)


def language_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Language names from `eng+deu`, `eng,deu` or a list of them."""
    names = value.replace(",", "+").split("+") if isinstance(value, str) else value
    return tuple(name.strip() for name in names)


class TesseractBackend:
    """Tesseract in OCR processes. See `inference.protocol.Backend`.

    Args:
        config: `temp_dir` should be in memory, such as on a tmpfs.
        command: command line of an OCR process; replaced by tests of faults.
    """

    locality: Locality = "local"

    def __init__(self, config: BackendConfig, command: Sequence[str] = WORKER_COMMAND) -> None:
        self.name = config.name
        self.options = TesseractOptions.of(config)
        self._config = config
        self._command = command
        self._lock = threading.Lock()
        self._installation: Installation | None = None
        self._temp_dir: TempDir | None = None
        self._workers: OcrWorkerPool | None = None

    def load(self, model: ModelEntry) -> TesseractModel:
        """A model: a set of languages, from the model's options or else the backend's.

        Raises:
            ModelMissing: Tesseract or its language data is missing; the message says what to do.
        """
        names = model.options.get("languages")
        languages = language_names(names) if names else self.options.languages
        missing = set(languages) - self.installation().languages
        if missing:
            hint = f": {model.get}" if model.get else ""
            raise ModelMissing(f"there is no {min(missing)}.traineddata for {model.name}{hint}")
        return TesseractModel(self, languages)

    def probe(self) -> BackendProbe:
        """Version and languages of the installed Tesseract."""
        try:
            installation = self.installation()
            program = tessdata.version(installation.program)
        except ModelMissing as error:
            return BackendProbe(reachable=False, models=None, detail=str(error))
        except OSError:
            return BackendProbe(
                reachable=False, models=None, detail="Tesseract is installed but does not run"
            )
        languages = ", ".join(sorted(installation.languages)) or "no language"
        osd = "" if tessdata.ORIENTATION in installation.files else "; no osd: pip install tessdata"
        return BackendProbe(
            reachable=bool(installation.languages),
            models=installation.languages,
            detail=f"Tesseract {program}: {languages}{osd}",
        )

    def close(self) -> None:
        """End the OCR processes, busy ones too, and remove the temporary directory."""
        atexit.unregister(self.close)
        with self._lock:
            workers, self._workers = self._workers, None
            temp_dir, self._temp_dir = self._temp_dir, None
        if workers is not None:
            workers.close()
        if temp_dir is not None:
            temp_dir.close()

    def installation(self) -> Installation:
        """Program and language data.

        Raises:
            ModelMissing: they are not installed.
        """
        with self._lock:
            if self._installation is None:
                self._installation = tessdata.find(self.options.tessdata)
            return self._installation

    def running(self) -> tuple[TempDir, OcrWorkerPool]:
        """Temporary directory and worker pool, created at the first call.

        Raises:
            ModelMissing: Tesseract is not installed.
            BackendUnavailable: there is no temporary directory.
        """
        installation = self.installation()
        with self._lock:
            if self._temp_dir is None or self._workers is None:
                temp_dir = self._temp_dir = self._new_temp_dir()
                atexit.register(self.close)
                tessdata = temp_dir.new_directory()
                installation.assemble(tessdata)
                setup = WorkerSetup(
                    tesseract=installation.program,
                    tessdata=str(tessdata),
                    nice=self._config.nice,
                    limits=self.options.limits,
                )
                self._workers = OcrWorkerPool(
                    lambda: OcrWorker(self._command, setup, temp_dir.new_directory()),
                    self.options.processes,
                )
            return self._temp_dir, self._workers

    def _new_temp_dir(self) -> TempDir:
        try:
            return TempDir(self._config.temp_dir or default_parent(), "pages")
        except TempDirError:
            raise BackendUnavailable(
                "the worker's temporary directory cannot be used; set VESTRY_TEMP_DIR to another"
            ) from None


class TesseractModel:
    """Tesseract with some languages. See `inference.ocr.protocol.OcrModel`.

    Args:
        backend: runs the OCR processes.
        languages: of files whose job names none.
    """

    def __init__(self, backend: TesseractBackend, languages: tuple[str, ...]) -> None:
        self._backend = backend
        self._languages = languages

    def read(
        self,
        file: bytes,
        request: OcrRequest,
        *,
        urgent: bool = False,
        cancelled: Cancelled = not_cancelled,
    ) -> OcrResult:
        """See `OcrModel.read`."""
        limits = self._backend.options.limits
        kind = file_kind(file)
        if kind is None:
            raise UnreadableFile(f"the file is not a {READ_KINDS} file")
        languages = request.languages or self._languages
        if not set(languages) <= (installed := self._backend.installation().languages):
            # The requested name is the caller's text and stays out of the message.
            raise BadRequest(
                f"a requested language is not installed; there is: {', '.join(sorted(installed))}"
            )
        temp_dir, workers = self._backend.running()
        try:
            if len(file) > limits.megabytes * MEGABYTE:
                limit = limits.megabytes * MEGABYTE
                raise PageError("file_too_large", bytes=len(file), limit=limit)  # noqa: TRY301
            with temp_dir.file(file) as path:
                read_request = ReadRequest(
                    path=str(path),
                    kind=kind,
                    languages="+".join(languages),
                    pages=request.pages,
                    dpi=request.dpi,
                    words=request.word_boxes,
                    urgent=urgent,
                )
                return DocumentReader(read_request, workers, limits, cancelled).read()
        except PageError as error:
            raise _FILE_ERRORS.get(error.code, UnreadableFile)(error.message) from None
        except OSError as error:
            cause = type(error).__name__
            message = f"the temporary directory cannot be used ({cause}); set VESTRY_TEMP_DIR"
            raise BackendUnavailable(message) from None

    def warm_up(self) -> None:
        """Start an OCR process, and have it load the language data."""
        _, workers = self._backend.running()
        request = {"do": "warm", "languages": "+".join(self._languages)}
        try:
            reply = workers.call(request, self._backend.options.limits.page_s)
        except (ConnectionClosed, ReplyTimeout):
            raise BackendUnavailable("the OCR process does not reply") from None
        if "error" in reply:
            raise ModelMissing("Tesseract cannot read its language data; install or copy it again")


def connect(config: BackendConfig) -> TesseractBackend:
    """The backend; no process is started."""
    return TesseractBackend(config)
