"""The documentation as a site: `scripts/docs`. Pages are plain Markdown, readable without it."""

from lookupjax import __version__

project = "lookupjax"
version = release = __version__
copyright = "the lookupjax authors, Apache-2.0"

extensions = ["myst_nb"]
nb_execution_mode = "off"  # the notebook is stored with its outputs
nb_merge_streams = True
myst_heading_anchors = 4  # so that page.md#section works as on a forge

html_theme = "furo"
html_title = "lookupjax"
html_show_sphinx = False
highlight_language = "text"  # commands; Python blocks say so
