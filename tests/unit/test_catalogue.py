"""The catalogue's file: the shipped one is consistent, and errors name file and line."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from inference.catalogue.loader import SHIPPED, CatalogueError, load, parse
from inference.catalogue.schema import Price

TEXT = SHIPPED.read_text(encoding="utf-8")
DEMANDING = {
    "multi-text-reasoning",
    "nuanced-interpretation",
    "study-guide",
    "consistency-check",
}


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_shipped_catalogue_has_expected_models() -> None:
    catalogue = load()
    served = {(model.name, catalogue.backend(model.backend).locality) for model in catalogue.models}
    assert served >= {
        ("nomic-embed-text", "local"), ("llama3.2:3b", "local"), ("phi-3-mini", "local"),
        ("ms-marco-MiniLM-L-6-v2", "local"), ("tesseract-finetuned", "local"),
        ("gpt-4o-mini", "cloud"), ("claude-opus-4-8", "cloud"), ("all-MiniLM-L6-v2", "local"),
    }  # fmt: skip


def test_no_local_model_is_adequate_for_the_four_demanding_tasks() -> None:
    catalogue = load()
    assert {
        task.name for task in catalogue.tasks if "generation" in task.kinds and task.demanding
    } == DEMANDING
    for task in DEMANDING:
        adequate = {
            catalogue.backend(model.backend).locality
            for model in catalogue.models
            if "generation" in model.kinds and catalogue.adequate(model, task)
        }
        assert adequate == {"cloud"}


def test_only_local_backends_without_url_are_enabled_by_default() -> None:
    enabled = [entry for entry in load().backends if entry.enabled]
    assert enabled
    assert all(entry.locality == "local" and entry.url is None for entry in enabled)


@pytest.mark.parametrize(
    ("before", "after", "line_with", "message"),
    [
        ("dimension: 384", "dimensions: 384", "dimensions: 384", "unknown key"),
        ("context: 256\n", "context: many\n", "context: many", "valid integer"),
        ("    dimension: 384\n", "", "kinds: [embedding, cl", "needs its dimension"),
        ("backend: anthropic", "backend: none", "backend: none", "no backend none"),
        ("tasks: [historical]", "tasks: [hysterical]", "tasks: [hysterical]", "no task hysterical"),
        ("name: phi-3-mini", "name: tesseract", "name: tesseract\n    backend: llama-cpp", "twice"),
        ('name: "llama3.2:3b"', 'name: "llama3.2:3b-cloud"', "llama3.2:3b-cloud", "not local"),
        ("    prefer: [local]\n    because: private t", "    prefer: [cloud]\n    because: private t",
         "prefer: [cloud]\n    because: private t", "private jobs may not use a cloud"),
        ("    prefer: [local]\n    because: private t", "    prefer: [lokal]\n    because: private t",
         "prefer: [lokal]", "'local' or 'cloud'"),
        ("    tasks: all\n", "    tasks: all\n    tasks: all\n", "tasks: all\n    context", "twice"),
        ("    kinds: ocr\n", "    kinds: ocr\n    price: {input: -1}\n", "price: {input: -1}",
         "greater than or equal to 0"),
        ("policy:", "policy: [}", "policy: [}", "expected"),
    ],
)  # fmt: skip
def test_error_names_file_and_line(before: str, after: str, line_with: str, message: str) -> None:
    assert before in TEXT
    text = TEXT.replace(before, after, 1)
    with pytest.raises(CatalogueError, match=re.escape(message)) as caught:
        parse(text, "models.yaml")
    assert str(caught.value).startswith(f"models.yaml:{line_of(text, line_with)}:")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "models: []", "\0", "a: &x [*x]", "? [a]\n: b", "- !!python/name:os.system"],
)
def test_invalid_document_is_a_catalogue_error(text: str) -> None:
    with pytest.raises(CatalogueError, match=r"^models\.yaml"):
        parse(text, "models.yaml")


def test_missing_file_is_named(tmp_path: object) -> None:
    with pytest.raises(CatalogueError, match=r"nowhere\.yaml: cannot be read"):
        load(SHIPPED.with_name("nowhere.yaml"))
    del tmp_path


def test_last_rule_must_match_everything() -> None:
    with pytest.raises(CatalogueError, match="must match everything"):
        parse(TEXT[: TEXT.index("  - prefer: [cloud, local]")])


def test_version_changes_with_routes_and_not_with_urls() -> None:
    version = load().version
    assert parse(TEXT.replace("127.0.0.1:8080", "10.0.0.7:8080")).version == version
    assert parse(TEXT.replace("tasks: [historical]", "tasks: ordinary")).version != version


def test_price_is_per_million_tokens() -> None:
    price = Price(input=Decimal("0.15"), output=Decimal("0.60"))
    assert price.of(2_000_000, 500_000) == Decimal("0.60")
    assert price.of(None, None) == 0


def test_weight_bytes_depend_on_quantization() -> None:
    catalogue = load()
    assert catalogue.model("llama3.2:3b").weight_bytes == pytest.approx(1.8e9, rel=0.01)
    assert catalogue.model("nomic-embed-text").weight_bytes == 274_000_000
    assert catalogue.model("gpt-4o-mini").weight_bytes is None


@pytest.mark.parametrize(
    ("per_minute", "window_s", "calls"),
    [(60, 60.0, 60), (60, 10.0, 10), (1, 10.0, 1), (None, 60.0, None)],
)
def test_rate_window_has_its_share_of_the_calls_of_a_minute(
    per_minute: int | None, window_s: float, calls: int | None
) -> None:
    backend = load().backend("openai")
    limited = backend.model_copy(
        update={"requests_per_minute": per_minute, "rate_window_s": window_s}
    )
    assert limited.calls_in_window == calls
