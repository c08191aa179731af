"""What import-linter does not look at: circles through the names that a package exports."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp


def test_no_circles() -> None:
    """Not even for type checking alone."""
    graph = grimp.build_graph("fanoise_lightning", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) > 100
    TopologicalSorter(imports).prepare()  # raises CycleError
