"""The echo backend with faults on request: a runtime for test stacks (`VESTRY_EMBEDDING_BACKEND`).

A word that begins with `echo!`, anywhere in a text, requests a fault; see `FAULTS`.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from inference.backends.echo import EchoBackend, EchoModel
from inference.errors import (
    BackendUnavailable,
    BadRequest,
    CallCancelled,
    InferenceError,
    OutOfMemory,
    RateLimited,
    Refused,
)
from inference.protocol import (
    BackendConfig,
    Cancelled,
    Generated,
    GenerationRequest,
    InputType,
    not_cancelled,
)

if TYPE_CHECKING:
    from inference.catalogue.schema import ModelEntry
    from inference.protocol import Vectors

RUNTIME: Final = __name__
_FAULT = re.compile(r"echo!(?P<fault>[a-z-]+)(?:=(?P<value>[0-9.]+))?")
_ERRORS: Final[dict[str, type[InferenceError]]] = {
    "bad-request": BadRequest,
    "out-of-memory": OutOfMemory,
    "rate-limited": RateLimited,
    "refused": Refused,
    "unavailable": BackendUnavailable,
}
FAULTS: Final = (
    "nan", "zero", "wrong-dimension", "raise", "sleep", "exit", "segfault", "memory", *_ERRORS
)  # fmt: skip
"""`echo!nan` and `echo!zero` corrupt the vector of that text, `echo!wrong-dimension` all vectors of the
call. `echo!sleep=1.5` takes 1.5 s. `echo!raise` raises an error that is not an `InferenceError`.
`echo!exit` ends the process at once, `echo!segfault` with SIGSEGV, as a crash in native code does.
`echo!memory=512` allocates 512 MiB, or up to the process's limit, and raises MemoryError.
`echo!rate-limited=7` raises RateLimited with a wait of 7 s; the other names raise the error of that
name."""
_MIB: Final = 1024 * 1024


class FaultyEchoBackend(EchoBackend):
    def load(self, model: ModelEntry) -> FaultyEchoModel:
        return FaultyEchoModel(model.served_name, self.name)


def connect(config: BackendConfig) -> FaultyEchoBackend:
    return FaultyEchoBackend(config)


class FaultyEchoModel(EchoModel):
    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's
        *,
        urgent: bool = False,
    ) -> Vectors:
        vectors = super().embed(texts, input, urgent=urgent)
        for index, text in enumerate(texts):
            for match in _FAULT.finditer(text):
                vectors = _with_fault(vectors, index, match["fault"], float(match["value"] or 1))
        return vectors

    def generate(
        self, request: GenerationRequest, cancelled: Cancelled = not_cancelled
    ) -> Generated:
        for match in _FAULT.finditer(request.messages[-1].content):
            _raise_or_wait(match["fault"], float(match["value"] or 1), cancelled)
        return super().generate(request, cancelled)


def _with_fault(vectors: Vectors, index: int, fault: str, value: float) -> Vectors:
    _raise_or_wait(fault, value)
    if fault == "nan":
        vectors[index, 0] = np.nan
    elif fault == "zero":
        vectors[index] = 0
    elif fault == "wrong-dimension":
        return vectors[:, 1:]
    return vectors


def _raise_or_wait(fault: str, value: float, cancelled: Cancelled = not_cancelled) -> None:
    if fault in _ERRORS:
        raise _ERRORS[fault](retry_after=value if fault == "rate-limited" else None)
    if fault == "raise":
        raise RuntimeError("requested by the text")
    if fault == "exit":
        os._exit(70)  # sysexits.h EX_SOFTWARE
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "memory":
        blocks = [bytearray(16 * _MIB) for _ in range(int(value) // 16)]
        raise MemoryError(len(blocks))
    if fault == "sleep":
        until = time.monotonic() + value
        while (remaining := until - time.monotonic()) > 0:
            if cancelled():
                raise CallCancelled
            time.sleep(min(remaining, 0.1))
