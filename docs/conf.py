"""What Sphinx has to know to build this documentation."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from celery_idempotent import __version__  # noqa: E402

project = "celery-idempotent"
author = "the celery-idempotent authors"
version = release = __version__

extensions = [
    "_ext.diagrams",
    "_ext.options",
    "_ext.scenarios",
    "_ext.tables",
    "myst_parser",  # the changelog is Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "_ext.attributes",  # after Napoleon, which it corrects
]
exclude_patterns = ["_build", "README*"]
default_role = None
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"celery-idempotent {release}"
html_static_path = ["_static"]
html_show_copyright = False
html_copy_source = False
