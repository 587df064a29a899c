"""Hostile files for OCR, and unusual files that must be readable.

Each file that can contain text contains MARK, which no error may repeat.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.page_files import Page, assemble, drawn, encoded, pdf, scanned_page, text_page

MARK = "sekrit-7f3a"
LINE = "The quick brown dog jumped over the lazy fox."

_PNG = b"\x89PNG\r\n\x1a\n"


def drawn_line() -> Image.Image:
    """The page that the unusual images show."""
    return drawn(LINE, size=(1200, 400))


def hostile() -> Iterator[tuple[str, bytes]]:
    """Name and content of files that cannot be read."""
    yield from _wrong_formats()
    yield from _truncated()
    yield from _bad_png()
    yield from _bad_jpeg()
    yield from _bad_tiff()
    yield from _bad_webp()
    yield from _bad_pdf()


def unusual_images() -> Iterator[tuple[str, bytes]]:
    """Name and content of unusual image files that show `drawn_line()`."""
    page = drawn_line()
    grey = np.asarray(page)
    ink = Image.merge("RGBA", [Image.new("L", page.size)] * 3 + [page.point(lambda v: 255 - v)])
    yield "1 bit, palette", encoded(page.convert("1").convert("P"), "PNG")
    yield "transparent paper", encoded(ink, "PNG")
    yield "transparent grey", encoded(ink.convert("LA"), "PNG")
    yield "16 bits", encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    yield "12 bits in 16", encoded(Image.fromarray(grey.astype(np.uint16) * 16), "PNG")
    yield "floating point", encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF")
    yield "CMYK", encoded(page.convert("CMYK"), "JPEG")
    yield "CMYK, TIFF", encoded(page.convert("CMYK"), "TIFF", compression="tiff_deflate")
    yield "JPEG in a TIFF", encoded(page.convert("RGB"), "TIFF", compression="jpeg")
    yield "fax", encoded(page.convert("1"), "TIFF", compression="group4")
    yield "animated WebP", encoded(page, "WEBP", save_all=True, append_images=[page.rotate(180)])
    yield "lossless WebP", encoded(page, "WEBP", lossless=True)
    yield "animated PNG", encoded(page, "PNG", save_all=True, append_images=[page.rotate(180)])
    yield "progressive", encoded(page.convert("RGB"), "JPEG", progressive=True)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # displayed rotated clockwise by 90 degrees
    yield "rotated by its Exif", encoded(page.rotate(90, expand=True), "JPEG", exif=rotated)


def unusual_pdfs() -> Iterator[tuple[str, bytes]]:
    """Name and content of unusual PDFs whose page says LINE."""
    yield "bytes before a PDF", b"\n" * 500 + pdf(text_page(LINE))
    yield "wrong cross-references", pdf(text_page(LINE)).replace(b"0000000", b"0099999")
    yield "truncated after its trailer", pdf(text_page(LINE)).partition(b"startxref")[0]


def _wrong_formats() -> Iterator[tuple[str, bytes]]:
    zip_data = io.BytesIO()
    with zipfile.ZipFile(zip_data, "w") as archive:
        archive.writestr("page.png", MARK)
    mark = MARK.encode()
    yield "empty", b""
    yield "one byte", b"%"
    yield "NUL bytes", bytes(4096)
    yield "text", mark
    yield "ZIP", zip_data.getvalue()
    yield "EXE", b"MZ" + bytes(58) + mark
    yield "ELF", b"\x7fELF\x02\x01\x01" + bytes(64)
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><text>" + mark + b"</text></svg>"
    yield "HTML", b"<!doctype html><img src='file:///etc/passwd'>" + mark
    yield "PostScript", b"%!PS-Adobe-3.0\n(" + mark + b") show showpage"
    yield "GIF", encoded(drawn(MARK), "GIF")
    yield "BMP", encoded(Image.new("L", (8, 8)), "BMP")
    yield "sound", b"RIFF\x24\0\0\0WAVEfmt " + bytes(24)
    yield "gzip", zlib.compress(mark, wbits=31)
    yield "HTML with a PDF header", b"<html>%PDF-1.7 " + mark


def _truncated() -> Iterator[tuple[str, bytes]]:
    page = drawn(MARK, size=(600, 200))
    for kind, options in (
        ("PNG", {}), ("JPEG", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {}),
    ):  # fmt: skip
        whole = encoded(page, kind, **options)
        for length in (12, 40, len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10):
            yield f"{kind} of {length} bytes", whole[:length]
    whole = pdf(scanned_page(page))
    for length in (8, 30, 200):
        yield f"PDF of {length} bytes", whole[:length]


def _bad_png() -> Iterator[tuple[str, bytes]]:
    whole = encoded(drawn(MARK, size=(300, 100)), "PNG")
    bomb = b"zTXt" + MARK.encode() + b"\0\0" + zlib.compress(bytes(80_000_000), 9)
    yield "PNG: signature", _PNG
    yield "PNG: 60,000 a side", _png(60_000, 60_000)
    yield "PNG: 2,147,483,647 wide", _png(2**31 - 1, 1)
    yield "PNG: 40,000 wide", encoded(Image.new("1", (40_000, 50)), "PNG")
    yield "PNG: no width", _png(0, 100)
    yield "PNG: no pixel", _png(0, 0)
    yield "PNG: 3 bits", _png(8, 8, depth=3)
    yield "PNG: no data", _png(8, 8)
    yield "PNG: empty data", _png(300, 300, data=zlib.compress(b""))
    yield "PNG: data not compressed", _png(300, 300, data=MARK.encode())
    yield "PNG: bad check sum", whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]
    yield "PNG: text of 80 MB", whole[:33] + _chunk(bomb) + whole[33:]
    yield "PNG: chunk of 4 GB", whole[:33] + b"\xff\xff\xff\xffIDAT" + whole[41:]


def _png(width: int, height: int, *, depth: int = 8, data: bytes | None = None) -> bytes:
    head = _chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    body = b"" if data is None else _chunk(b"IDAT" + data)
    return _PNG + head + body + _chunk(b"IEND")


def _chunk(body: bytes) -> bytes:
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _bad_jpeg() -> Iterator[tuple[str, bytes]]:
    whole = encoded(drawn(MARK, size=(300, 100)), "JPEG")
    frame = whole.index(b"\xff\xc0") + 5
    yield "JPEG: signature", b"\xff\xd8\xff"
    yield "JPEG: 65,500 a side", _sized(whole, frame, 65_500, 65_500)
    yield "JPEG: 40,000 wide", _sized(whole, frame, 50, 40_000)
    yield "JPEG: no height", _sized(whole, frame, 0, 300)
    yield "JPEG: no width", _sized(whole, frame, 100, 0)
    yield "JPEG: markers only", whole[: whole.index(b"\xff\xda")] + b"\xff\xd9"
    yield "JPEG: no tables", b"\xff\xd8" + whole[whole.index(b"\xff\xc0") :]


def _sized(whole: bytes, offset: int, height: int, width: int) -> bytes:
    return whole[:offset] + struct.pack(">HH", height, width) + whole[offset + 4 :]


def _bad_tiff() -> Iterator[tuple[str, bytes]]:
    yield "TIFF: signature", b"II*\0"
    yield "TIFF: directory outside", b"II*\0" + struct.pack("<I", 2**31)
    yield "TIFF: directory of 65,535", b"II*\0\x08\0\0\0\xff\xff" + MARK.encode()
    yield "TIFF: 100,000 a side", _tiff(100_000, 100_000)
    yield "TIFF: 4,000,000,000 a side", _tiff(4_000_000_000, 4_000_000_000)
    yield "TIFF: 40,000 wide", encoded(Image.new("1", (40_000, 50)), "TIFF")
    yield "TIFF: no pixel", _tiff(0, 0)
    yield "TIFF: strip of 4 GB", _tiff(100, 100, count=2**32 - 1)
    yield "TIFF: strip outside", _tiff(100, 100, offset=2**31)
    yield "TIFF: unknown compression", _tiff(100, 100, compression=9999)
    yield "TIFF: 65,535 samples", _tiff(100, 100, samples=65_535)
    yield "TIFF: directory linked to itself", _tiff(0, 0, following=8)
    yield "BigTIFF: signature", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**60)


def _tiff(
    width: int,
    height: int,
    *,
    compression: int = 1,
    samples: int = 1,
    offset: int = 130,
    count: int = 11,
    following: int = 0,
) -> bytes:
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, 1), (259, 3, compression), (262, 3, 1),
        (273, 4, offset), (277, 3, samples), (278, 4, height), (279, 4, count),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    return head + entries + struct.pack("<I", following) + bytes(8) + MARK.encode()


def _bad_webp() -> Iterator[tuple[str, bytes]]:
    def riff(body: bytes) -> bytes:
        return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body

    largest = (2**24 - 1).to_bytes(3, "little")
    yield "WebP: signature", b"RIFF\0\0\0\0WEBP"
    yield "WebP: canvas of 16,777,216", riff(b"VP8X\x0a\0\0\0" + bytes(4) + largest + largest)
    yield "WebP: lossless, 16,384 a side", riff(b"VP8L\x05\0\0\0\x2f\xff\xff\xff\x0f\0")
    yield "WebP: lossy garbage", riff(b"VP8 \x20\0\0\0" + MARK.encode() * 3)
    yield "WebP: unknown chunk", riff(b"VP9 \x20\0\0\0" + bytes(32))


def _bad_pdf() -> Iterator[tuple[str, bytes]]:
    catalog = b"<< /Type /Catalog /Pages 2 0 R >>"
    page = text_page(MARK)
    yield "PDF: with a password", pdf(page, encrypted_with=b"secret")
    yield "PDF: signature", b"%PDF-1.7\n"
    yield "PDF: no page", pdf()
    yield "PDF: truncated before its table", pdf(page).partition(b"xref")[0]
    yield "PDF: no catalog", assemble([b"null"])
    yield "PDF: catalog is a string", assemble([b"(" + MARK.encode() + b")"])
    yield (
        "PDF: circular page tree",
        assemble([catalog, b"<< /Type /Pages /Count 1 /Kids [2 0 R] >>"]),
    )
    yield (
        "PDF: 10,000,000 pages declared",
        assemble([catalog, b"<< /Type /Pages /Count 10000000 /Kids [3 0 R] >>", b"null"]),
    )
    deep = [b"<< /Type /Pages /Count 1 /Kids [%d 0 R] >>" % (number + 3) for number in range(5000)]
    yield "PDF: page tree 5,000 deep", assemble([catalog, *deep, b"null"])
    yield "PDF: page of 400 km", pdf(Page(b"", size=(2_000_000_000, 2_000_000_000)))
    yield "PDF: objects cut out", pdf(page).replace(b"/Kids [4 0 R]", b"/Kids [9 0 R]")
    yield "PDF: 0xFF after its first twentieth", _overwritten(pdf(page))


def _overwritten(whole: bytes) -> bytes:
    kept = len(whole) // 20
    return whole[:kept] + b"\xff" * (len(whole) - kept)
