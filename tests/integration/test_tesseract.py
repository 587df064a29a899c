"""OCR with real Tesseract, pdfium and Pillow, in the child processes of a worker."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from inference.backends.tesseract_local import TesseractBackend, TesseractModel, connect
from inference.catalogue.loader import load
from inference.errors import (
    BadRequest,
    EncryptedFile,
    FileTooLarge,
    InferenceError,
    ModelMissing,
    UnreadableFile,
)
from inference.ocr import tessdata
from inference.ocr.protocol import OcrRequest
from inference.protocol import BackendConfig
from tests.hostile_files import MARK, hostile
from tests.page_files import (
    SAMPLES,
    Page,
    accuracy,
    drawn,
    encoded,
    pdf,
    scanned_page,
    text_page,
)

CATALOGUE = load()
GOLD = (SAMPLES / "phototest.gold.txt").read_text(encoding="utf-8")
TOO_LARGE = ("a side", " wide", "canvas", "400 km")
"""Parts of names of hostile files that must be refused for their size, not for missing data."""
LINES = (
    "Blessed are the poor in spirit,", "for theirs is the kingdom of heaven.",
    "Blessed are they that mourn,", "for they shall be comforted.",
)  # fmt: skip


def backend(temp_dir: Path, **options: object) -> TesseractBackend:
    defaults: dict[str, object] = {"processes": 2, "page_s": 60}
    config = BackendConfig("tesseract", "local", temp_dir=temp_dir, options=defaults | options)
    return connect(config)


@pytest.fixture(scope="module")
def tesseract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TesseractBackend]:
    root = tmp_path_factory.mktemp("tesseract") / "temp"
    running = backend(root)
    yield running
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix == ""]
    running.close()
    assert files == [], "the running backend kept temporary files"
    assert not root.exists()


@pytest.fixture(scope="module")
def model(tesseract: TesseractBackend) -> TesseractModel:
    loaded = tesseract.load(CATALOGUE.model("tesseract"))
    loaded.warm_up()
    return loaded


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def test_page_text_matches_its_gold_text(model: TesseractModel) -> None:
    result = model.read(sample("phototest.tif"), OcrRequest(word_boxes=True))
    [page] = result.pages
    assert accuracy(page.text, GOLD) >= 0.99
    assert page.text.split("\n\n")[1].startswith("The quick brown dog"), "paragraphs are kept"
    assert (page.source, page.rotation, page.error) == ("ocr", 0, None)
    assert (page.width, page.height, page.unit) == (640, 480, "px")
    assert page.confidence is not None
    assert page.confidence > 0.9
    assert page.words is not None
    assert [word.text for word in page.words] == page.text.split()
    first, last = page.words[0], page.words[-1]
    assert first.box == pytest.approx((36, 92, 96, 116), abs=4)
    assert last.box[1] > first.box[3]
    assert all(0 <= (word.confidence or 0) <= 1 for word in page.words)
    json.dumps(result.to_json(), allow_nan=False)


def test_sideways_page_is_rotated_and_its_boxes_are_mapped_back(model: TesseractModel) -> None:
    result = model.read(sample("phototestrot.tif"), OcrRequest(word_boxes=True))
    [page] = result.pages
    assert accuracy(page.text, GOLD) >= 0.97
    assert (page.rotation, page.width, page.height) == (90, 480, 640)
    assert page.words is not None
    assert page.words[0].text == "This"
    assert page.words[0].box == pytest.approx((92, 544, 116, 604), abs=4), (
        "runs upwards, bottom left"
    )


@pytest.mark.parametrize("degrees", [180, 12, -6])
def test_inverted_or_skewed_page_is_straightened(model: TesseractModel, degrees: int) -> None:
    with Image.open(SAMPLES / "phototest.tif") as image:
        page = image.convert("L").resize((1280, 960))
    rotated = page.rotate(degrees, expand=True, fillcolor=255, resample=Image.Resampling.BICUBIC)
    [read] = model.read(encoded(rotated, "PNG", dpi=(400, 400)), OcrRequest()).pages
    assert accuracy(read.text, GOLD) >= 0.97
    assert read.rotation == (180 if degrees == 180 else 0)
    assert read.skew == pytest.approx(0 if degrees == 180 else degrees, abs=0.5)


def test_unevenly_lit_page_is_read_completely(model: TesseractModel) -> None:
    with Image.open(SAMPLES / "phototest.tif") as image:
        page = image.convert("L").resize((1280, 960))
    shade = Image.linear_gradient("L").rotate(90).resize(page.size)
    shade = Image.eval(shade, lambda value: 50 + value * 205 // 255)
    dark = Image.composite(
        Image.eval(shade, lambda value: value // 4), shade, page.point(lambda v: 255 - v)
    )
    [read] = model.read(encoded(dark, "PNG", dpi=(400, 400)), OcrRequest()).pages
    assert accuracy(read.text, GOLD) >= 0.97


def test_mixed_pdf_of_twenty_pages_is_returned_in_order(model: TesseractModel) -> None:
    pages: list[Page] = []
    expected: list[tuple[str, str, int]] = []
    for number in range(1, 21):
        title = f"Chapter {number} of twenty"
        scan = drawn(title, *LINES, size=(800, 1100), height=32)
        rotation = 0
        if number == 9:
            page, rotation = scanned_page(scan.rotate(90, expand=True), dpi=200), 90
        elif number == 14:
            page, rotation = scanned_page(scan, rotate=180, dpi=200), 180
        elif number % 4 == 0:
            page = scanned_page(scan, invisible=["wrong", "guess"], dpi=200)
        elif number % 4 == 1:
            page = scanned_page(scan, dpi=200)
        elif number % 4 == 2:
            page, rotation = text_page(title, *LINES, rotate=90), 270
        else:
            page = text_page(title, *LINES)
        pages.append(page)
        expected.append((title, "text-layer" if page.image is None else "ocr", rotation))
    result = model.read(pdf(*pages), OcrRequest(dpi=200))
    assert [page.page for page in result.pages] == list(range(1, 21))
    assert [
        (page.text.splitlines()[0], page.source, page.rotation) for page in result.pages
    ] == expected
    gold = "\n\n".join("\n".join((title, *LINES)) for title, _, _ in expected)
    assert accuracy(result.text, gold) >= 0.99
    assert result.page_count == 20


def test_tiff_pages_are_read_all_or_by_range(model: TesseractModel) -> None:
    pages = [drawn(f"Page number {n}", size=(700, 300)) for n in range(1, 5)]
    tiff = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    result = model.read(tiff, OcrRequest(pages=(2, 9)))
    assert [(page.page, page.text) for page in result.pages] == [
        (n, f"Page number {n}") for n in (2, 3, 4)
    ]  # fmt: skip
    assert result.page_count == 4
    with pytest.raises(BadRequest, match="has 4 pages"):
        model.read(tiff, OcrRequest(pages=(5, 6)))


def test_bad_page_is_reported_and_the_others_are_kept(model: TesseractModel) -> None:
    pages = [text_page("first"), Page(b"", size=(2_000_000_000, 99)), Page(b""), text_page("last")]
    result = model.read(pdf(*pages), OcrRequest())
    assert [page.error and page.error[0] for page in result.pages] == [
        None, "page_too_large", None, None,
    ]  # fmt: skip
    assert result.text == "first\n\nlast"
    blank = result.pages[2]
    assert (blank.text, blank.confidence, blank.error) == ("", None, None)


def test_hostile_files_have_one_clear_error_each_and_kill_no_child(
    tesseract: TesseractBackend, model: TesseractModel
) -> None:
    model.warm_up()
    _, children = tesseract.running()
    before = {child.pid for child in children._idle}
    files = list(hostile())
    assert len(files) >= 50
    slowest = 0.0
    for name, content in files:
        began = time.monotonic()
        try:
            result = model.read(content, OcrRequest(word_boxes=True))
        except InferenceError as error:
            errors = [(error.code, str(error), isinstance(error, BadRequest), error.retryable)]
        else:
            errors = [(*(page.error or ("no error", "")), True, False) for page in result.pages]
        for code, message, bad_request, retryable in errors:
            assert (bad_request, retryable) == (True, False), name
            assert code not in {"no error", "reader_crashed", "time_limit"}, name
            assert message, name
            if any(size in name for size in TOO_LARGE):
                assert code in {"file_too_large", "page_too_large"}, name
            assert MARK not in message, name
        slowest = max(slowest, time.monotonic() - began)
    assert before <= {child.pid for child in children._idle}, "a file killed a child process"
    assert slowest < 10


def test_file_errors_have_their_own_types(
    tesseract: TesseractBackend, model: TesseractModel
) -> None:
    with pytest.raises(EncryptedFile, match="password"):
        model.read(pdf(text_page(MARK), encrypted_with=b"secret"), OcrRequest())
    with pytest.raises(UnreadableFile, match="not a PNG"):
        model.read(b"GIF89a", OcrRequest())
    with pytest.raises(BadRequest, match="there is: deu, eng"):
        model.read(sample("phototest.tif"), OcrRequest(languages=("xyz",)))
    own = tesseract.running()[0].path / "own"
    small = backend(own, pages=2, megabytes=1).load(CATALOGUE.model("tesseract"))
    three = pdf(*[text_page("page")] * 3)
    with pytest.raises(FileTooLarge, match="3 pages requested, at most 2"):
        small.read(three, OcrRequest())
    assert len(small.read(three, OcrRequest(pages=(2, 3))).pages) == 2
    with pytest.raises(FileTooLarge, match="bytes"):
        small.read(three + bytes(1024 * 1024), OcrRequest())
    small._backend.close()


def test_pages_beyond_the_document_time_limit_have_an_error(tmp_path: Path) -> None:
    limited = backend(tmp_path / "temp", processes=1, document_s=0.001)
    result = limited.load(CATALOGUE.model("tesseract")).read(
        pdf(text_page("a"), text_page("b")), OcrRequest()
    )
    assert [page.error and page.error[0] for page in result.pages] == ["document_time_limit"] * 2
    limited.close()


def test_custom_traineddata_is_loaded_as_a_model(tmp_path: Path) -> None:
    finetuned = CATALOGUE.model("tesseract-finetuned")
    shipped = backend(tmp_path / "temp")
    with pytest.raises(ModelMissing, match="VESTRY_TESSDATA"):
        shipped.load(finetuned)
    own = tmp_path / "tessdata"
    own.mkdir()
    # German traineddata replaces a fine-tuned one: any traineddata takes the same path.
    shutil.copy(tessdata.find().files["deu"], own / "finetuned.traineddata")
    custom = backend(tmp_path / "temp", tessdata=str(own))
    model = custom.load(finetuned)
    model.warm_up()
    [page] = model.read(sample("phototest.tif"), OcrRequest()).pages
    assert accuracy(page.text, GOLD) > 0.9
    assert custom.probe().models == frozenset({"eng", "deu", "finetuned"})
    assert "5." in custom.probe().detail
    both = custom.load(CATALOGUE.model("tesseract"))
    [page] = both.read(sample("phototest.tif"), OcrRequest(languages=("eng", "finetuned"))).pages
    assert accuracy(page.text, GOLD) > 0.97
    custom.close()


def test_invalid_traineddata_fails_at_load(tmp_path: Path) -> None:
    (tmp_path / "finetuned.traineddata").write_bytes(b"no traineddata")
    invalid = backend(tmp_path / "temp", tessdata=str(tmp_path))
    with pytest.raises(ModelMissing, match="cannot read its language data"):
        invalid.load(CATALOGUE.model("tesseract-finetuned")).warm_up()
    invalid.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languges": "eng"}, "unknown option languges; the options are languages,"),
        ({"pages": "many"}, "option pages has the wrong type"),
        ({"pages": 0}, "greater than 0"),
    ],
)
def test_invalid_options_fail_at_construction(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelMissing, match=message):
        backend(tmp_path, **options)
    with pytest.raises(ModelMissing, match="VESTRY_TESSDATA"):
        backend(tmp_path, tessdata=tmp_path / "missing").load(CATALOGUE.model("tesseract"))
    languages = backend(tmp_path, languages="deu+eng").load(CATALOGUE.model("tesseract"))
    assert languages._languages == ("deu", "eng")
