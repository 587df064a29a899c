"""What kind a file is, told by its first bytes and never by its name. Decodes nothing."""

from __future__ import annotations

from typing import Final, Literal

FileKind = Literal["png", "jpeg", "tiff", "webp", "pdf"]

READ_KINDS: Final = "PNG, JPEG, TIFF, WebP or PDF"
"""The kinds that pages are read from, for messages."""

_MAGIC: Final[tuple[tuple[bytes, FileKind], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # with 64-bit offsets
    (b"MM\0+", "tiff"),
)
_PDF_WITHIN: Final = 1024
"""Bytes among which a PDF may say that it is one; readers have always been that patient."""


def file_kind(content: bytes) -> FileKind | None:
    """The kind of a file; None for any that pages cannot be read from."""
    for magic, kind in _MAGIC:
        if content.startswith(magic):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if b"%PDF-" in content[:_PDF_WITHIN]:
        return "pdf"
    return None
