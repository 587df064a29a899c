"""No module imports itself through others, imports for types included."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp

PACKAGES = ("vestry", "models", "inference", "tasks", "workers")


def test_imports_have_no_cycle() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert len(graph.modules) > 150
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # CycleError names the modules
