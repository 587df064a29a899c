"""Contents of the wheel, imports of the packages, and the files of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import inference
import models
import tasks
import vestry
import workers

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    "vestry", "tasks", "inference", "models", "workers", "migrations", "tests", "benchmarks",
    "samples", "docs", "tools", ".ci", ".gitignore", "pyproject.toml", "constraints.txt", "Makefile",
    "compose.yaml", "Dockerfile", ".dockerignore", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
    "LICENSE",
}  # fmt: skip


def tracked_files() -> list[Path]:
    """The files of the project: those git tracks, or all that are not ignored in an archive."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
        ignored = {line.rstrip("/") for line in lines}
        files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        return [ROOT / path for path in files if ignored.isdisjoint(path.parts)]
    listed = subprocess.run(
        [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
    return zipfile.ZipFile(built)


def test_wheel_holds_only_vestry(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vestry"}


def test_wheel_holds_all_of_vestry(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if name.startswith("vestry/")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vestry").rglob("*.py")}
    assert modules <= shipped
    assert "vestry/py.typed" in shipped


def test_wheel_requires_no_worker_packages(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    lines = wheel.read(metadata).decode().splitlines()
    required = [
        line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    names = {
        re.split(r"[\s\[<>=!~;]", line.removeprefix("Requires-Dist: "))[0] for line in required
    }
    assert names == {"psycopg", "cryptography", "typer", "rich"}


@pytest.mark.parametrize("package", [vestry, tasks, inference, models, workers])
def test_packages_are_the_checkouts_own(package: object) -> None:
    file = getattr(package, "__file__", None)
    assert file is not None
    assert Path(file).resolve().is_relative_to(ROOT)


def test_packages_are_the_checkouts_own_from_another_directory(tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", "import models; print(models.__file__)"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert Path(printed.strip()).resolve() == (ROOT / "models" / "__init__.py").resolve()


def test_producer_library_imports_without_the_workers_packages() -> None:
    program = (
        "import sys\n"
        "for name in ('celery', 'kombu', 'redis', 'sqlalchemy', 'torch', 'numpy', 'workers',"
        " 'models', 'tasks', 'inference'):\n"
        "    sys.modules[name] = None\n"
        "import vestry, vestry.cli\n"
        "print(vestry.Vestry.__name__, vestry.AsyncVestry.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["Vestry", "AsyncVestry"]), done.stderr


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    printed = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT, check=True, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"]},
    ).stdout  # fmt: skip
    listed = re.findall(r"^\s+make (\S+) +\S", printed, re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
    assert {"help", "setup", "run", "up", "down", "test", "check", "bench", "clean"} <= set(listed)


def test_top_level_has_only_known_entries() -> None:
    tops = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert tops <= TOP_LEVEL


def test_constraints_pin_every_requirement_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {canonical(re.split(r"[\s\[<>=!~;]", requirement)[0]) for requirement in required}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pinned = {canonical(pin.split("==")[0]) for pin in pins}
    assert names <= pinned
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "local versions or ranges"
    assert not {
        name for name in pinned if name.startswith(("nvidia-", "triton")) or name == "vestry"
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_names_a_path_of_one_machine() -> None:
    # A home directory, or the directory of this checkout.
    absolute = re.compile(rb"/(?:home|Users|root)/\w|" + re.escape(os.fsencode(ROOT)) + rb"/")
    matches = [
        path.relative_to(ROOT).as_posix()
        for path in tracked_files()
        if absolute.search(path.read_bytes())
    ]
    assert not matches
