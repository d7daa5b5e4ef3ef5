"""The docs site: Markdown pages, and an API reference made from the docstrings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pygments.lexers.special import TextLexer

import iproto

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "iproto"
author = copyright = "The iproto developers"
version = release = iproto.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # links to headings are as on GitHub
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
html_theme = "furo"
html_title = f"iproto {version}"
html_show_copyright = False


def setup(app: Sphinx) -> None:
    app.add_lexer("hex", TextLexer)  # bytes of worked examples in protocol.md
