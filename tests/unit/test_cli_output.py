"""Formatting of the command line's output: control characters, snippets, durations and rates."""

from __future__ import annotations

from vestry.cli.index.progress import format_rate
from vestry.cli.output import duration, printable
from vestry.cli.search import snippet


def test_printable_blanks_control_and_bidirectional_characters() -> None:
    assert "\x1b" not in printable("a\x1b[2Jb\x9b31mc")
    controls = "".join(map(chr, (0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2069)))
    assert printable(f"a{controls}b") == f"a{' ' * len(controls)}b"
    joined = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER} \N{ZERO WIDTH NON-JOINER}"
    assert printable(joined) == joined


def test_snippet_is_one_short_paragraph() -> None:
    assert snippet("one\n\ntwo") == "one two"
    assert len(snippet("word " * 500)) <= 402


def test_durations_and_rates_are_rounded() -> None:
    assert [duration(s) for s in (0.04, 1.44, 12.4, 185, 7800, None)] == [
        "40 ms",
        "1.4 s",
        "12 s",
        "3 min 05 s",
        "2 h 10 min",
        "-",
    ]
    assert format_rate(12.34, 125) == "12.3/s, 10 s left"
    assert format_rate(None, 5) == "rate not known yet"
