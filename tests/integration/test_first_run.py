"""What `make run` runs: every kind of job through real workers, on the real packaged models."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.temp_stack_dir import temporary_home
from workers.home import CHECKOUT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kind_end_to_end() -> None:
    with temporary_home() as home:
        environment = os.environ | {"VESTRY_HOME": str(home), "VESTRY_LLAMA": "auto"}
        done = subprocess.run(
            [sys.executable, "-m", "workers.demo"],
            cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=880,
        )  # fmt: skip
    told = done.stdout
    assert done.returncode == 0, told[-2000:] + done.stderr[-500:]
    assert "Traceback" not in told + done.stderr
    for line in (
        "Indexed", "a sermon heard in church", "A scanned page, read, indexed and classified",
        "worship", "1 Cor 13:4-7", "valid", "Reranked for", "What did I do on Sundays?", "passage 1",
        "Its receipts", "SmolLM2-135M-Instruct", "private.bulk.cpu", "private.interactive.gpu",
    ):  # fmt: skip
        assert line in told, line
