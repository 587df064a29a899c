"""`make run` and every kind of private job need no network; under root the test isolates them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.privacy.lab import may_create_networks
from tests.temp_stack_dir import temporary_home
from workers.home import CHECKOUT

SHOWN = (
    "Indexed", "a sermon heard in church", "A scanned page, read, indexed and classified",
    "worship", "1 Cor 13:4-7", "valid", "Reranked for", "What did I do on Sundays?", "passage 1",
    "Its receipts", "SmolLM2-135M-Instruct", "private.bulk.cpu", "private.interactive.gpu",
)  # fmt: skip
"""Some of each part of the demonstration's output."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_and_every_private_kind_run_on_real_models_with_loopback_only() -> None:
    isolated = may_create_networks()
    command = [sys.executable, "-m", "tests.privacy.offline"]
    with temporary_home() as home:
        done = subprocess.run(
            ["unshare", "-n", *command, str(home), "--without-network"] if isolated
            else [*command, str(home)],
            cwd=CHECKOUT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    demo = report["demo"]
    assert report["status"] == 0, demo[-2000:]
    assert "Traceback" not in demo
    assert [line for line in SHOWN if line not in demo] == []
    assert set(report["jobs"]) == {
        "embedding", "index", "classification", "rerank", "generation", "ocr",
    }  # fmt: skip
    assert report["hits"] == 1
    assert report["localities"] == ["local"]
    if isolated:
        assert report["interfaces"] == ["lo"]
        assert report["outside"] == "Network is unreachable"
