"""Changes that mkdocs makes to the pages: links out of docs/ become the names of the files.

On the site there is nothing at the other end of such a link; in a checkout there is, and a test checks it.
"""

import re

OUT_OF_DOCS = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    return OUT_OF_DOCS.sub(lambda link: _named(link[1], link[2]), markdown)


def _named(text: str, path: str) -> str:
    """The text of a link, and the path unless the text is the path already."""
    return f"`{path}`" if text in path else f"{text} (`{path}`)"
