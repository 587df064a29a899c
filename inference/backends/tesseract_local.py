"""Tesseract, pdfium and Pillow in child processes of the worker: pages of images and PDFs as text."""

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
from inference.ocr.config import MEGABYTE, OcrLimits, Setup
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
MAX_PARALLEL_FILES: Final = 64
"""Children, however many cores there are."""

_FILE_ERRORS: Final[dict[str, type[InferenceError]]] = {
    "encrypted_file": EncryptedFile,
    "file_too_large": FileTooLarge,
    "no_such_page": BadRequest,
    "page_too_large": FileTooLarge,
    "too_many_pages": FileTooLarge,
}
"""Faults of a whole file; the others are `UnreadableFile`."""


@dataclass(frozen=True, slots=True)
class TesseractOptions:
    """The backend's options in the catalogue, checked.

    Attributes:
        languages: what files are written in that do not say so, the main one first.
        tessdata: a directory of traineddata that goes before the packaged.
        processes: pages read at a time; by default the cores.
        limits: see `inference.ocr.config.Limits`, whose fields are options too.
    """

    languages: tuple[str, ...]
    tessdata: Path | None
    processes: int
    limits: OcrLimits

    @classmethod
    def of(cls, config: BackendConfig) -> TesseractOptions:
        """From a configuration.

        Raises:
            ModelMissing: an option is unknown, or not what it should be.
        """
        given = dict(config.options)
        bounds: dict[str, Any] = {"page_s": config.timeout_s}
        try:
            languages = language_names(given.pop("languages", None) or DEFAULT_LANGUAGES)
            tessdata = given.pop("tessdata", None)
            processes = int(given.pop("processes", None) or config.threads or default_threads())
            for name, usual in dataclasses.asdict(OcrLimits()).items():
                if name in given:
                    bounds[name] = type(usual)(given.pop(name))
            limits = OcrLimits(**bounds)
        except (TypeError, ValueError):
            raise ModelMissing(f"backend {config.name}: an option is not of its kind") from None
        if given:
            raise ModelMissing(f"backend {config.name}: unknown option {min(given)}")
        if min(processes, *dataclasses.astuple(limits)) <= 0:
            raise ModelMissing(f"backend {config.name}: limits and processes are more than 0")
        path = Path(tessdata).expanduser() if tessdata else None
        return cls(languages, path, min(processes, MAX_PARALLEL_FILES), limits)


def language_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """`eng+deu`, `eng,deu` or a list of them."""
    names = given.replace(",", "+").split("+") if isinstance(given, str) else given
    return tuple(name.strip() for name in names)


class TesseractBackend:
    """The processes that read pages. See `inference.protocol.Backend`.

    Args:
        config: `temp_dir` should be in memory, such as on a tmpfs.
        command: what the children run; tests bring one with faults.
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
        self._children: OcrWorkerPool | None = None

    def load(self, model: ModelEntry) -> TesseractModel:
        """A model: a set of languages, of the model's own options or else the backend's.

        Raises:
            ModelMissing: no Tesseract, or not the language data; the message says what to do.
        """
        wanted = model.options.get("languages")
        languages = language_names(wanted) if wanted else self.options.languages
        missing = set(languages) - self.installation().languages
        if missing:
            hint = f": {model.get}" if model.get else ""
            raise ModelMissing(f"there is no {min(missing)}.traineddata for {model.name}{hint}")
        return TesseractModel(self, languages)

    def probe(self) -> BackendProbe:
        """Which Tesseract there is, and the languages it reads."""
        try:
            found = self.installation()
            program = tessdata.version(found.program)
        except ModelMissing as error:
            return BackendProbe(reachable=False, models=None, detail=str(error))
        except OSError:
            return BackendProbe(
                reachable=False, models=None, detail="Tesseract is here and does not run"
            )
        languages = ", ".join(sorted(found.languages)) or "no language"
        turned = "" if tessdata.ORIENTATION in found.files else "; no osd: pip install tessdata"
        return BackendProbe(
            reachable=bool(found.languages),
            models=found.languages,
            detail=f"Tesseract {program}: {languages}{turned}",
        )

    def close(self) -> None:
        """End the worker processes, in the middle of a page too, and remove the temporary directory."""
        atexit.unregister(self.close)
        with self._lock:
            children, self._children = self._children, None
            temp_dir, self._temp_dir = self._temp_dir, None
        if children is not None:
            children.close()
        if temp_dir is not None:
            temp_dir.close()

    def installation(self) -> Installation:
        """Program and language data.

        Raises:
            ModelMissing: they are not here.
        """
        with self._lock:
            if self._installation is None:
                self._installation = tessdata.find(self.options.tessdata)
            return self._installation

    def running(self) -> tuple[TempDir, OcrWorkerPool]:
        """Temporary directory and worker pool, made at the first call.

        Raises:
            ModelMissing: there is no Tesseract.
        """
        installation = self.installation()
        with self._lock:
            if self._temp_dir is None or self._children is None:
                temp_dir = self._temp_dir = self._new_temp_dir()
                atexit.register(self.close)
                tessdata = temp_dir.new_directory()
                installation.assemble(tessdata)
                setup = Setup(
                    tesseract=installation.program,
                    tessdata=str(tessdata),
                    nice=self._config.nice,
                    limits=self.options.limits,
                )
                self._children = OcrWorkerPool(
                    lambda: OcrWorker(self._command, setup, temp_dir.new_directory()),
                    self.options.processes,
                )
            return self._temp_dir, self._children

    def _new_temp_dir(self) -> TempDir:
        try:
            return TempDir(self._config.temp_dir or default_parent(), "pages")
        except TempDirError:
            raise BackendUnavailable(
                "the worker's temporary directory cannot be used; VESTRY_TEMP_DIR names another"
            ) from None


class TesseractModel:
    """Tesseract with some languages. See `inference.ocr.protocol.OcrModel`.

    Args:
        backend: whose processes read.
        languages: of files that do not say theirs.
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
        if not set(languages) <= (here := self._backend.installation().languages):
            # What was asked for is the caller's word and stays out of the message.
            raise BadRequest(
                f"a language asked for is not here; there is: {', '.join(sorted(here))}"
            )
        temp_dir, children = self._backend.running()
        try:
            if len(file) > limits.megabytes * MEGABYTE:
                most = limits.megabytes * MEGABYTE
                raise PageError("file_too_large", bytes=len(file), limit=most)  # noqa: TRY301
            with temp_dir.file(file) as path:
                order = ReadRequest(
                    path=str(path),
                    kind=kind,
                    languages="+".join(languages),
                    pages=request.pages,
                    dpi=request.dpi,
                    words=request.word_boxes,
                    urgent=urgent,
                )
                return DocumentReader(order, children, limits, cancelled).read()
        except PageError as fault:
            raise _FILE_ERRORS.get(fault.code, UnreadableFile)(fault.message) from None
        except OSError as error:
            message = f"the temporary directory cannot be used ({type(error).__name__})"
            raise BackendUnavailable(message) from None

    def warm_up(self) -> None:
        """Start a child, and have it load the language data."""
        _, children = self._backend.running()
        request = {"do": "warm", "languages": "+".join(self._languages)}
        try:
            answer = children.ask(request, self._backend.options.limits.page_s)
        except (ConnectionClosed, ReplyTimeout):
            raise BackendUnavailable("the process that reads pages does not answer") from None
        if "fault" in answer:
            raise ModelMissing("Tesseract cannot use its language data; install or copy it again")


def connect(config: BackendConfig) -> TesseractBackend:
    """The backend; nothing is started."""
    return TesseractBackend(config)
