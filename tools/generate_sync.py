"""Generate the synchronous code of the library from the asynchronous code, as psycopg does.

`TARGETS` lists sources and targets: whole files, or the second half of one. The rules are few and
purely lexical: `async` and `await` are dropped, `AsyncName` becomes `Name`, `name_async` becomes
`name`; `NAMES`, `UNWRAPPED`, `REPLACED` and `Target.texts` hold the exceptions. Comments and layout are
kept; ruff removes unused imports and formats the result.

    python tools/generate_sync.py            write the targets
    python tools/generate_sync.py --check    exit with status 1 if one of them is stale
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import COMMENT, NAME, NEWLINE, NL, OP, STRING, TokenInfo
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
TOOL: Final = "tools/generate_sync.py"

NAMES: Final[Mapping[str, str]] = {
    "asynccontextmanager": "contextmanager",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
}
"""Names that the general rules do not cover."""
UNWRAPPED: Final = ("Awaitable", "asyncio.shield")
"""Names dropped together with the brackets around their one argument: `Awaitable[T]` becomes `T`."""
REPLACED: Final[Mapping[str, str]] = {"asyncio.CancelledError": "KeyboardInterrupt"}
"""Dotted names with another name in synchronous code."""


@dataclass(frozen=True, slots=True)
class Target:
    """Generated code.

    Attributes:
        source: the file with the asynchronous code.
        path: the generated file; the source itself if only its second half is generated.
        begin: the line in a file of two halves after which its asynchronous half begins.
        end: the line after which its generated half begins.
        texts: sentences of docstrings that differ.
    """

    source: str
    path: str
    begin: str | None = None
    end: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)


TARGETS: Final = (
    Target(
        "vestry/aio.py",
        "vestry/client.py",
        texts={
            "The asyncio client.": "The synchronous client.",
            "It belongs to the event loop that first uses it.": (
                "Threads may share one; each process must create its own."
            ),
        },
    ),
    Target(
        "vestry/db/operations.py",
        "vestry/db/operations.py",
        begin="# -- asynchronous execution",
        end="# -- synchronous execution",
    ),
)


def generate(target: Target) -> str:
    """The current text of a target's file, from its source."""
    source = (ROOT / target.source).read_text(encoding="utf-8")
    if target.begin is None or target.end is None:
        header = (
            f"# Generated from {target.source} by {TOOL}: edit that file, run `make generate`.\n"
        )
        text = header + synchronous(source, target.texts)
        return _formatted(_without_unused_imports(text, target.path), target.path)
    lines = source.splitlines(keepends=True)
    begin, end = (_line_of(lines, marker) for marker in (target.begin, target.end))
    half = synchronous("".join(lines[begin + 1 : end]), target.texts)
    return _formatted("".join(lines[: end + 1]) + half, target.path)


def synchronous(source: str, texts: Mapping[str, str] | None = None) -> str:
    """Asynchronous Python code as synchronous code.

    Raises:
        ValueError: a sentence of `texts` does not occur.
    """
    for before, after in (texts or {}).items():
        if before not in source:
            raise ValueError(f"not in the source any more: {before!r}")
        source = source.replace(before, after)
    lines = source.splitlines(keepends=True)
    parts: list[str] = []
    position = (1, 0)
    for token, text in _translated(list(tokenize.generate_tokens(io.StringIO(source).readline))):
        if text is not None:
            parts += _between(lines, position, token.start), text
        elif token.type == COMMENT:
            parts.append(_between(lines, position, token.start).rstrip(" "))
        else:
            parts.append(_between(lines, position, token.start))
        position = token.end
        if text is None and token.string in {"async", "await"}:
            position = (token.end[0], token.end[1] + 1)
    return "".join(parts)


def _translated(tokens: list[TokenInfo]) -> Iterator[tuple[TokenInfo, str | None]]:
    """Each token with its new text; None for a dropped one."""
    dropped: set[int] = set()
    for index, token in enumerate(tokens):
        dotted = _dotted(tokens, index)
        if index in dropped:
            yield token, None
        elif dotted in UNWRAPPED and tokens[index + dotted.count(".") * 2 + 1].string in "[(":
            opening = index + dotted.count(".") * 2 + 1
            dropped |= {*range(index + 1, opening + 1), _closing(tokens, opening)}
            yield token, None
        elif dotted in REPLACED:
            dropped |= set(range(index + 1, index + 1 + dotted.count(".") * 2))
            yield token, REPLACED[dotted]
        elif token.type == NAME:
            yield token, None if token.string in {"async", "await"} else _renamed(token.string)
        elif token.type == COMMENT and token.string.startswith("# noqa: ASYNC"):
            yield token, None
        elif token.type in {STRING, COMMENT}:
            yield token, _prose(token.string)
        elif token.type in {NEWLINE, NL, OP} or token.string:
            yield token, token.string


def _renamed(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    return re.sub(r"^Async(?=[A-Z])", "", name).removesuffix("_async")


def _prose(text: str) -> str:
    """A docstring, string or comment: names are renamed, and code in backticks is translated."""
    text = re.sub(r"`(?:async|await) ", "`", text)
    return re.sub(r"\bAsync[A-Z]\w*|\b[a-z]\w*_async\b", lambda match: _renamed(match[0]), text)


def _dotted(tokens: list[TokenInfo], index: int) -> str:
    """The name at a token, with its attribute if `UNWRAPPED` or `REPLACED` has the pair."""
    if tokens[index].type != NAME or (index and tokens[index - 1].string == "."):
        return ""
    pair = "".join(token.string for token in tokens[index : index + 3])
    return pair if pair in {*UNWRAPPED, *REPLACED} else tokens[index].string


def _closing(tokens: list[TokenInfo], opening: int) -> int:
    depth = 0
    for index in range(opening, len(tokens)):
        if tokens[index].type == OP:
            depth += (tokens[index].string in "([{") - (tokens[index].string in ")]}")
        if depth == 0:
            return index
    raise ValueError("unbalanced brackets")


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The source from one position to another: the white space between two tokens."""
    if start >= end:
        return ""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    first = lines[start[0] - 1][start[1] :] if start[0] <= len(lines) else ""
    last = lines[end[0] - 1][: end[1]] if end[0] <= len(lines) else ""
    return first + "".join(lines[start[0] : end[0] - 1]) + last


def _line_of(lines: list[str], marker: str) -> int:
    (position,) = [number for number, line in enumerate(lines) if line.startswith(marker)]
    return position


def _without_unused_imports(text: str, path: str) -> str:
    return _ruff(text, "check", "--fix", "--quiet", "--select=F401,I001", "--stdin-filename", path)


def _formatted(text: str, path: str) -> str:
    return _ruff(text, "format", "--quiet", "--stdin-filename", path)


def _ruff(text: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "-"]
    result = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=ROOT, check=True
    )
    return result.stdout


def main() -> int:
    """Write the targets, or check them."""
    parser = argparse.ArgumentParser(description="Generate the synchronous half of the library.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    check = parser.parse_args().check
    stale = 0
    for target in TARGETS:
        path, text = ROOT / target.path, generate(target)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(
                f"{target.path} is stale: it is generated from the asynchronous code in "
                f"{target.source}; run `make generate`.",
                file=sys.stderr,
            )
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {target.path}", file=sys.stderr)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
