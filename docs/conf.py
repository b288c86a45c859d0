"""The documentation's site: `make docs` builds it into docs/_build/html, with warnings as errors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import relay_hf

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

from repository_links import linkcode_resolve  # noqa: E402, F401 (in docs/_ext; read by sphinx.ext.linkcode)

project = "relay_hf"
author = "the authors of relay_hf"
copyright = author
version = release = relay_hf.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
    "mathml",
    "repository_links",
]
exclude_patterns = ["_build", "_ext"]

myst_heading_anchors = 3  # so that a link to a heading resolves as it does on a repository host
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
nb_execution_mode = "off"  # notebooks are shown with the outputs that they are committed with
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

default_role = "code"  # docstrings are Markdown: `x` is code
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a dataclass are fields of its description, and not entries of their own

# What has no entry here: types of other projects (no inventory is fetched, so that the site is built without a
# network), some of which are named as their modules import them, and the type variable of `patch_model`.
nitpick_ignore_regex = [
    (
        "py:class",
        r"(collections\.abc|huggingface_hub|os|torch|transformers)\..*|nn\.Module|Cache|GenerationConfig|PreTrainedConfig|"
        r"Tensor|relay_hf\.patching\.Model|dict\[\w+",  # a type of a field is cut at its comma
    )
]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_title = "relay_hf"
html_show_sphinx = False
html_show_copyright = False


def copy_notebooks() -> None:
    """The notebooks that stand in examples/ become pages; in a folder of their own, which Git does not track."""
    target = DOCS / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in sorted((DOCS.parent / "examples").glob("*.ipynb")):
        shutil.copy(path, target)


copy_notebooks()
