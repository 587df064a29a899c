"""The private stack needs no network: every kind of job is done where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.privacy.lab import may_make_networks
from tests.temp_stack_dir import temporary_home

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not may_make_networks(), reason="only root puts a process into a network of its own"
)
def test_every_kind_is_done_with_loopback_only() -> None:
    with temporary_home() as home:
        done = subprocess.run(
            ["unshare", "-n", sys.executable, "-m", "tests.privacy.offline", str(home)], cwd=ROOT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["interfaces"] == ["lo"]
    assert told["outside"] == "Network is unreachable"
    assert set(told["jobs"]) == {
        "embedding", "index", "classification", "rerank", "generation", "ocr",
    }  # fmt: skip
    assert told["hits"] == 1
    assert told["localities"] == ["local"]
