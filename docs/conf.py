"""The documentation site: ``make docs`` builds it into ``build/docs``, with every warning an error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import fanoise_lightning
import fanoise_lightning.callbacks

project = "fanoise-lightning"
author = "The fanoise-lightning authors"
copyright = author
version = release = fanoise_lightning.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = "fanoise-lightning"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

highlight_language = "none"  # of blocks that name no language: commands, trees, tables
myst_heading_anchors = 3
nb_execution_mode = "auto"  # tests run the notebooks, too
nb_execution_excludepatterns = [
    "tutorials/fine_tune.ipynb",
    "tutorials/own_pictures.ipynb",
]  # committed with its outputs
nb_execution_timeout = 120
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

# The package's own names must resolve; there are no inventories of others, which would need a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!fanoise_lightning\.).*"),
    (r"py:class", r".*\.(InBatchLoss|ContrastiveDataModule)"),  # bases that are not exported
    (r"py:class", r".*\.(LoraOptions|SubsetResult|Row|Hits|Places)"),  # dicts and tuples of results
]

# Docstrings may name a class by the module that holds it today; the site has it under its public name.
PUBLIC = {
    name: f"{package.__name__}.{name}"
    for package in (fanoise_lightning, fanoise_lightning.callbacks)
    for name in package.__all__
}


# Files outside this folder that are pages of the site: links to them work in the repository and here.
PAGES = {
    "CHANGELOG": "changelog",
    "SECURITY": "security",
    "benchmarks/README": "benchmarks",
    "benchmarks/gpu": "gpu",
    "examples/studies/README": "heads",
    "examples/notebooks/fine_tune": "tutorials/fine_tune",
    "examples/notebooks/own_pictures": "tutorials/own_pictures",
    "examples/notebooks/read_a_study": "tutorials/read_a_study",
    "examples/notebooks/theory": "tutorials/theory",
}
ROOT = Path(__file__).resolve().parents[1]

# Examples of the repository and pages of the site. Not links, which not every checkout has.
for name in ("fine_tune", "own_pictures", "read_a_study", "theory"):
    shutil.copyfile(ROOT / f"examples/notebooks/{name}.ipynb", ROOT / f"docs/tutorials/{name}.ipynb")


def link_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Links to a file of the repository as links to the page that shows it."""
    targets = {str(ROOT / file): page for file, page in PAGES.items()}
    for node in doctree.findall(pending_xref):
        node["reftarget"] = targets.get(node["reftarget"], node["reftarget"])


def resolve_by_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> Any:
    """A reference to ``fanoise_lightning.any.module.Name`` as one to ``fanoise_lightning.Name``."""
    public = PUBLIC.get(node["reftarget"].rpartition(".")[2])
    if node["refdomain"] != "py" or public is None:
        return None
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], public, node, contnode
    )


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", link_to_pages)
    app.connect("missing-reference", resolve_by_public_name)
