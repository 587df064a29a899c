"""A new backend is one module and one catalogue entry; a new model is one catalogue entry."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from inference.catalogue.loader import load
from inference.errors import ModelMissing
from inference.protocol import GenerationRequest
from inference.routing.model_registry import ModelRegistry, configuration
from inference.routing.policy import RoutingPolicy, RoutingRequest
from inference.routing.router import Router
from tests.handler_fakes import FakeGuard
from vestry.jobs.generation import Message
from vestry.lanes import Pool

MODULE = """
from inference.protocol import Generated, BackendProbe


def connect(config):
    return Backend(config)


class Backend:
    def __init__(self, config):
        self.name, self.locality, self.config = config.name, config.locality, config

    def load(self, model):
        return Model(model, self.config)

    def probe(self):
        return BackendProbe(True, frozenset({"loud"}), "in this process")

    def close(self):
        pass


class Model:
    def __init__(self, entry, config):
        self.mark = entry.options.get("mark") or config.options["mark"]

    def warm_up(self):
        pass

    def generate(self, request, cancelled=lambda: False):
        return Generated(request.messages[-1].content.upper() + self.mark, "stop", 1, 1)
"""
ENTRIES = """
backends:
  - {name: shouting, runtime: acme_inference.shouting, locality: local, options: {mark: "!"}}
models:
  - {name: loud, backend: shouting, kinds: generation}
"""
SECOND_MODEL = """  - {name: louder, backend: shouting, kinds: generation, tasks: all,
     options: {mark: "!!"}}
"""
TASKS_AND_POLICY = """
tasks:
  - {name: study-guide, kinds: [generation], demanding: true}
policy:
  - {prefer: [local]}
"""


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "acme_inference"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "shouting.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "catalogue.yaml"


def served(catalogue: Path, text: str, task: str | None = None) -> tuple[str, str]:
    """The answer, and the name of the model that served it."""
    catalogue.write_text(text)
    declared = load(catalogue)
    registry = ModelRegistry(declared, configuration({}, {}))
    router = Router(RoutingPolicy(declared), Pool.GPU, registry, FakeGuard())
    request = GenerationRequest([Message("user", "be quiet")], max_tokens=9)

    def call(model: Any, _candidate: object) -> str:
        return str(model.generate(request).text)

    result = router.serve(RoutingRequest("generation", task, "private", "interactive"), call)
    return result.value, result.served.model.name


def test_module_and_catalogue_entry_make_a_backend(catalogue: Path) -> None:
    assert served(catalogue, ENTRIES + TASKS_AND_POLICY) == ("BE QUIET!", "loud")


def test_catalogue_entry_makes_a_model_for_demanding_tasks(catalogue: Path) -> None:
    assert served(catalogue, ENTRIES + SECOND_MODEL + TASKS_AND_POLICY, "study-guide") == (
        "BE QUIET!!",
        "louder",
    )


def test_missing_module_is_named(catalogue: Path) -> None:
    with pytest.raises(ModelMissing, match=r"acme_inference\.silent cannot be imported"):
        served(catalogue, ENTRIES.replace(".shouting", ".silent") + TASKS_AND_POLICY)
