"""OCR jobs: validation, payload and result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vestry import InvalidInput, Ocr, OcrPage, OcrResult, OcrWord, PayloadTooLarge
from vestry.crypto.envelope import plain_digest
from vestry.jobs.base import Prepared
from vestry.jobs.ocr import FILE_LIMIT, file_kind
from vestry.jobs.results import parse_result
from vestry.lanes import KINDS, Pool

SECRET = "sekrit-token"
PNG = b"\x89PNG\r\n\x1a\n" + SECRET.encode()

BAD: list[tuple[str, Callable[[], object]]] = [
    ("file", lambda: Ocr(b"")),
    ("file", lambda: Ocr(SECRET.encode())),
    ("file", lambda: Ocr(f"/nowhere/{SECRET}.png")),
    ("file", lambda: Ocr(f"{SECRET}\0.png")),
    ("file", lambda: Ocr(Path(__file__).parent)),
    ("file", lambda: Ocr("/dev/null")),
    ("file", lambda: Ocr(Path(__file__))),
    ("file", lambda: Ocr(None)),  # type: ignore[arg-type]
    ("file", lambda: Ocr(PNG + bytes(FILE_LIMIT))),
    ("languages", lambda: Ocr(PNG, languages="eng")),
    ("languages", lambda: Ocr(PNG, languages=[])),
    ("languages", lambda: Ocr(PNG, languages=["eng"] * 9)),
    ("languages[1]", lambda: Ocr(PNG, languages=["eng", f"../{SECRET}"])),
    ("languages[0]", lambda: Ocr(PNG, languages=["--psm"])),
    ("languages[0]", lambda: Ocr(PNG, languages=[7])),  # type: ignore[list-item]
    ("pages", lambda: Ocr(PNG, pages=0)),
    ("pages", lambda: Ocr(PNG, pages=(3, 2))),
    ("pages", lambda: Ocr(PNG, pages=(1, 2, 3))),  # type: ignore[arg-type]
    ("pages", lambda: Ocr(PNG, pages=True)),
    ("dpi", lambda: Ocr(PNG, dpi=20)),
    ("dpi", lambda: Ocr(PNG, dpi=300.0)),  # type: ignore[arg-type]
    ("model", lambda: Ocr(PNG, model="")),
]


@pytest.mark.parametrize(("field", "make"), BAD)
def test_bad_input_names_its_field_and_quotes_nothing(
    field: str, make: Callable[[], object]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.field == field
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_sparse_file_of_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "huge.pdf"
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(PayloadTooLarge) as caught:
        Ocr(file)
    assert caught.value.size == 2**40


def test_file_without_read_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    file = tmp_path / f"{SECRET}.png"
    file.write_bytes(PNG)
    monkeypatch.setattr(Path, "read_bytes", denied)  # root can read every file
    with pytest.raises(InvalidInput, match="permission denied") as caught:
        Ocr(file)
    assert SECRET not in str(caught.value)


def prepared(**options: Any) -> Prepared:
    return Ocr(PNG, **options).prepare(plain_digest)


def test_file_is_a_blob_beside_the_payload(tmp_path: Path) -> None:
    file = tmp_path / f"{SECRET}.txt"  # the type is that of the content, not of the name
    file.write_bytes(PNG)
    job = Ocr(str(file), languages=["eng", "script/Latin"], pages=3, dpi=200, word_boxes=True)
    prepared = job.prepare(plain_digest)
    assert json.loads(prepared.payload) == {
        "languages": ["eng", "script/Latin"], "pages": [3, 3], "dpi": 200, "word_boxes": True,
    }  # fmt: skip
    assert prepared.blobs == {"file": PNG}
    assert (prepared.kind, prepared.pool) == ("ocr", Pool.CPU)
    assert KINDS[prepared.kind] is prepared.pool
    assert SECRET not in repr(job) + repr(prepared.blobs and "")
    assert job.prepare(plain_digest) == prepared


def test_unset_options_are_null_in_the_payload() -> None:
    body = {"languages": None, "pages": None, "dpi": None, "word_boxes": False}
    assert json.loads(prepared().payload) == body
    assert prepared().keep_payload
    assert not prepared(keep_file=False).keep_payload


def test_cost_of_a_job_depends_on_the_size_of_its_file() -> None:
    assert prepared().cost == 1
    assert Ocr(PNG + bytes(100 * 1024)).prepare(plain_digest).cost == 101


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"II*\0", "tiff"),
        (b"MM\0*", "tiff"), (b"MM\0+", "tiff"), (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"%PDF-1.4", "pdf"), (b"\n" * 1000 + b"%PDF-", "pdf"), (b"\n" * 1024 + b"%PDF-", None),
        (b"GIF89a", None), (b"RIFF\0\0\0\0WAVE", None), (b"PK\3\4", None), (b"", None),
    ],
)  # fmt: skip
def test_type_of_a_file_is_detected_by_its_first_bytes(start: bytes, kind: str | None) -> None:
    assert file_kind(start) == kind


def test_result_survives_a_round_trip() -> None:
    words = (OcrWord(SECRET, (1.0, 2.0, 3.5, 4.0), 0.9),)
    pages = (
        OcrPage(1, f"{SECRET}\n", 0.9, None, "ocr", 90, -2.1, 640.0, 480.0, "px", words),
        OcrPage(2, "", error=("damaged_page", "it is damaged")),
        OcrPage(3, "more"),
    )
    result = OcrResult.of(pages, 3)
    assert result.text == f"{SECRET}\n\nmore"
    stored = json.loads(json.dumps(result.to_json()))
    assert stored["pages"][1]["error"] == {"code": "damaged_page", "message": "it is damaged"}
    assert "words" not in stored["pages"][1]
    assert parse_result("ocr", stored) == result
    assert SECRET not in repr(result)


def test_result_without_optional_fields_is_parsed() -> None:
    stored = {"text": "a", "pages": [{"page": 1, "text": "a", "confidence": 0.5, "error": None}]}
    result = parse_result("ocr", stored)
    assert isinstance(result, OcrResult)
    assert result.page_count == 1
    assert result.pages[0].confidence == 0.5
