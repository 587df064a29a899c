"""PDF and image files for OCR tests, written from scratch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
A4 = (595, 842)
PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
"""Padding of passwords in the PDF standard."""


@dataclass(frozen=True)
class Page:
    """A page of a PDF: its content stream and resources."""

    content: bytes
    image: bytes | None = None
    image_size: tuple[int, int] = (0, 0)
    rotate: int = 0
    size: tuple[int, int] = A4
    to_unicode: bytes | None = None


def text_page(*lines: str, rotate: int = 0, invisible: bool = False, size: int = 12) -> Page:
    """A page with a text layer and no image."""
    return Page(_text(lines, invisible=invisible, size=size), rotate=rotate)


def scanned_page(
    image: Image.Image,
    *stamp: str,
    rotate: int = 0,
    invisible: Sequence[str] = (),
    dpi: int = 150,
) -> Page:
    """An image over the whole page, with a visible stamp or invisible text of an OCR program."""
    data = io.BytesIO()
    image.convert("L").save(data, "JPEG", quality=85)
    width, height = (round(side * 72 / dpi) for side in image.size)
    content = f"q {width} 0 0 {height} 0 0 cm /Im0 Do Q\n".encode()
    if invisible:
        content += _text(invisible, invisible=True)
    if stamp:
        content += _text(stamp, size=8)
    return Page(content, data.getvalue(), image.size, rotate, (width, height))


def _text(lines: Sequence[str], *, invisible: bool = False, size: int = 12) -> bytes:
    shown = b"".join(b"<%s> Tj T*\n" % line.encode("cp1252").hex().encode() for line in lines)
    mode = 3 if invisible else 0
    return b"BT /F0 %d Tf %d Tr %d TL 72 770 Td\n%sET\n" % (size, mode, size + 4, shown)


def pdf(*pages: Page, encrypted_with: bytes | None = None) -> bytes:
    """A complete file, with its cross-reference table."""
    objects: list[bytes] = [b"", b""]  # the catalog and the page tree, filled in at the end
    kids = []
    for page in pages:
        resources = b"/Font << /F0 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica "
        if page.to_unicode is not None:
            objects.append(_stream(b"", page.to_unicode))
            resources += b"/ToUnicode %d 0 R " % len(objects)
        resources += b"/Encoding /WinAnsiEncoding >> >> "
        if page.image is not None:
            width, height = page.image_size
            head = b"/Type /XObject /Subtype /Image /Width %d /Height %d " % (width, height)
            head += b"/ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /DCTDecode"
            objects.append(_stream(head, page.image))
            resources += b"/XObject << /Im0 %d 0 R >> " % len(objects)
        objects.append(_stream(b"", page.content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Rotate %d /Contents %d 0 R "
            b"/Resources << %s >> >>" % (*page.size, page.rotate, len(objects), resources)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    trailer = b"/Root 1 0 R"
    if encrypted_with is not None:
        objects.append(_encryption(encrypted_with))
        trailer += b" /Encrypt %d 0 R /ID [<%s> <%s>]" % (len(objects), b"00" * 16, b"00" * 16)
    return assemble(objects, trailer)


def assemble(objects: Sequence[bytes], trailer: bytes = b"/Root 1 0 R") -> bytes:
    """A file of numbered objects with a table of their offsets."""
    out = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    out += b"trailer\n<< /Size %d %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, start)
    return bytes(out)


def _stream(head: bytes, data: bytes) -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (head, len(data), data)


def _encryption(password: bytes) -> bytes:
    """The standard security handler, revision 2: enough for a reader to require a password."""
    padded = (password + PAD)[:32]
    owner = _rc4(hashlib.md5(padded, usedforsecurity=False).digest()[:5], padded)
    permissions = -4
    bits = permissions.to_bytes(4, "little", signed=True)
    key = hashlib.md5(padded + owner + bits + bytes(16), usedforsecurity=False).digest()[:5]
    user = _rc4(key, PAD)
    return b"<< /Filter /Standard /V 1 /R 2 /Length 40 /P %d /O <%s> /U <%s> >>" % (
        permissions,
        owner.hex().encode(),
        user.hex().encode(),
    )


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def drawn(*lines: str, size: tuple[int, int] = (1240, 1754), height: int = 36) -> Image.Image:
    """Lines of text as in a scan at 150 dpi."""
    image = Image.new("L", size, 255)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(height)
    for number, line in enumerate(lines):
        pen.text((120, 120 + number * height * 1.5), line, fill=0, font=font)
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The content of an image file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def accuracy(read: str, gold: str) -> float:
    """1 minus the edit distance as a share of the characters, with white space collapsed."""
    read, gold = " ".join(read.split()), " ".join(gold.split())
    row = list(range(len(gold) + 1))
    for i, one in enumerate(read, 1):
        above, row = row, [i]
        for j, other in enumerate(gold, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return 1 - row[-1] / max(len(read), len(gold), 1)
