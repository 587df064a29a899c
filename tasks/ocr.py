"""The `ocr` kind: the text of an image or a PDF, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from inference.errors import InferenceError
from inference.ocr.protocol import OcrModel, OcrRequest
from inference.routing.policy import Candidate
from inference.routing.router import RerouteRequired, Router
from tasks.protocol import (
    BadPayload,
    Context,
    Failed,
    Job,
    Outcome,
    Succeeded,
    outcome_of_error,
    served_of,
)
from vestry.jobs.ocr import FILE, OcrResult
from vestry.lanes import Latency

MAX_PARALLEL_FILES: Final = 8
"""Files of a batch read in parallel: a file of a single page would leave the other cores idle. The
backend limits the pages read in parallel."""


class OcrHandler:
    """Runs batches of OCR jobs. Safe to call from several threads."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def __call__(self, batch: Sequence[Job], context: Context) -> Sequence[Outcome]:
        """One outcome per job, in the batch's order."""
        with ThreadPoolExecutor(min(len(batch), MAX_PARALLEL_FILES) or 1, "ocr-file") as pool:
            return list(pool.map(lambda job: self._run(job, context), batch))

    def _run(self, job: Job, context: Context) -> Outcome:
        try:
            request, file = request_of(job)
        except BadPayload as error:
            return Failed("bad_payload", str(error))
        cancelled = partial(context.cancellation.is_lost, job.id)

        def call(model: OcrModel, _: Candidate) -> OcrResult:
            urgent = job.latency == Latency.INTERACTIVE
            return model.read(file, request, urgent=urgent, cancelled=cancelled)

        try:
            result = self._router.serve(job.routing_request, call)
        except (InferenceError, RerouteRequired) as error:
            return outcome_of_error(error)
        served = served_of(result)
        pages = result.value.pages
        errors = [page.error for page in pages if page.error is not None]
        if errors and len(errors) == len(pages):
            code, message = errors[0]
            if len(errors) > 1:
                message = f"none of {len(errors)} pages could be read, the first: {message}"
            return Failed(code, message, served=served)
        return Succeeded(result.value.to_json(), served=served)


def request_of(job: Job) -> tuple[OcrRequest, bytes]:
    """Read a job's payload, as `vestry.jobs.ocr.Ocr` writes it, and its file.

    Raises:
        BadPayload: it is malformed.
    """
    payload = job.payload
    file = job.blobs.get(FILE)
    if not file:
        raise BadPayload("the job has no file")
    languages = payload.get("languages")
    if languages is not None and not (
        isinstance(languages, list) and languages and all(isinstance(one, str) for one in languages)
    ):
        raise BadPayload("languages is not a list of names")
    dpi, boxes = payload.get("dpi"), payload.get("word_boxes", False)
    if dpi is not None and not _is_count(dpi):
        raise BadPayload("dpi is not a positive whole number")
    if not isinstance(boxes, bool):
        raise BadPayload("word_boxes is neither true nor false")
    request = OcrRequest(
        languages=None if languages is None else tuple(languages),
        pages=_pages(payload.get("pages")),
        dpi=dpi,
        word_boxes=boxes,
    )
    return request, file


def _pages(value: Any) -> tuple[int, int] | None:
    match value:
        case None:
            return None
        case [first, last] if _is_count(first) and _is_count(last) and first <= last:
            return first, last
    raise BadPayload("pages is not a pair of first and last page number")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
