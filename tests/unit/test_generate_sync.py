"""The synchronous half of the library is generated, and the committed code is current."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vestry import AsyncVestry, Vestry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_sync", ROOT / "tools" / "generate_sync.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_generated_code_is_current(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate_sync.py", "--check"])
    assert tool.main() == 0
    assert capsys.readouterr().err == ""


def test_stale_code_is_named_with_its_source_and_the_command(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate_sync.py", "--check"])
    monkeypatch.setattr(tool, "synchronous", lambda *_: "stale = True\n")
    assert tool.main() == 1
    printed = capsys.readouterr().err
    assert "vestry/client.py is stale: it is generated from the asynchronous code" in printed
    assert "in vestry/aio.py; run `make generate`." in printed


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("async def f_async(): return await g_async(1)", "def f(): return g(1)"),
        ("rows = [row async for row in AsyncCursor()]", "rows = [row for row in Cursor()]"),
        ("read: Callable[[], Awaitable[list[T]]]", "read: Callable[[], list[T]]"),
        ("await asyncio.shield(self.cancel(a[0]))", "self.cancel(a[0])"),
        ("except (E, asyncio.CancelledError):", "except (E, KeyboardInterrupt):"),
        ("timeout: float,  # noqa: ASYNC109", "timeout: float,"),
        ('"""As `async with AsyncVestry()`, …"""', '"""As `with Vestry()`, …"""'),
        ("x = 'an async job'  # asynchronous", "x = 'an async job'  # asynchronous"),
        ("async with a, \\\n    b: pass", "with a, \\\n    b: pass"),
    ],
)
def test_code_is_translated(tool: ModuleType, source: str, expected: str) -> None:
    assert tool.synchronous(source + "\n") == expected + "\n"


def test_sentence_missing_from_the_source_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="not in the source any more: 'gone'"):
        tool.synchronous("x = 1\n", {"gone": "other"})


def test_both_clients_have_the_same_methods_and_documentation() -> None:
    def public(client: type) -> dict[str, str | None]:
        members = inspect.getmembers(client, inspect.isfunction)
        return {name: inspect.getdoc(kind) for name, kind in members if not name.startswith("_")}

    sync, asynchronous = public(Vestry), public(AsyncVestry)
    assert sync.keys() == asynchronous.keys()
    assert all(sync.values())
    assert {name for name in sync if sync[name] != asynchronous[name]} == {"enqueue"}
