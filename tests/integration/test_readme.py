"""The README's example as a script: it runs, and a rollback leaves no job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stacks import ECHO
from workers.stack.background import BackgroundStack

pytestmark = pytest.mark.stack(ECHO)

ROOT = Path(__file__).resolve().parents[2]
AFTER_ENQUEUE = '            privacy="private",\n        )\n'


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def run_script(code: str, up: BackgroundStack, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "example.py"
    file.write_text(code, encoding="utf-8")
    removed = {"VESTRY_DATABASE_URL", "VESTRY_KEYRING_FILE"}
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    return subprocess.run(
        [sys.executable, str(file)],
        cwd=folder, env={**environment, "VESTRY_HOME": str(up.home)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_readme_example_runs(up: BackgroundStack, tmp_path: Path) -> None:
    done = run_script(example(), up, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "documents=1" in done.stdout
    assert re.search(r"^-?\d\.\d{3}  1660-01-18  Up early", done.stdout, re.MULTILINE)


def test_readme_example_leaves_no_job_after_rollback(up: BackgroundStack, tmp_path: Path) -> None:
    code = example()
    assert code.count(AFTER_ENQUEUE) == 1
    rolled_back = code.replace(AFTER_ENQUEUE, f"{AFTER_ENQUEUE}        raise psycopg.Rollback\n")
    done = run_script(rolled_back, up, tmp_path)
    assert done.returncode != 0
    assert "vestry.errors.UnknownJob" in done.stderr


def test_readme_example_has_at_most_twenty_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 20
