"""How much memory models have: the graphics card's where they run on one, else the machine's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil

OVERHEAD: Final = 1.2
"""What a loaded model takes for each byte of its weights: buffers, and a context of some thousand
tokens. A long context takes more."""
_PATIENCE_S: Final = 5.0
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in all, and those that are free now. `of` says of what."""

    of: str
    total: int
    free: int


def memory(device: str, cards: Callable[[], str | None] | None = None) -> Memory:
    """The memory of what models compute on.

    Args:
        device: VESTRY_DEVICE.
        cards: what `nvidia-smi` prints, a line a card; None where there is none.
    """
    told = (cards or _nvidia_cards)() if device == "auto" or device.startswith("cuda") else None
    if told:
        number = device.partition(":")[2]
        lines = told.strip().splitlines()
        line = lines[int(number)] if number.isdecimal() and int(number) < len(lines) else lines[0]
        try:
            total, free = (int(part) * _MIB for part in line.split(","))
        except ValueError:
            pass
        else:
            return Memory("graphics card", total, free)
    system = psutil.virtual_memory()
    return Memory("machine", system.total, system.available)


def _nvidia_cards() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
