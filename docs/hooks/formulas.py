"""MkDocs hook: LaTeX formulas become MathML while the site is built, so that a reader needs no script and no network.

Inline: ``$H = X^T X / n$``; in a paragraph of its own: ``$$ ... $$`` (pymdownx.arithmatex finds both).
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces the formulas of a page."""
    content = BLOCK.sub(lambda match: convert(html.unescape(match[1]).strip(), display="block"), content)
    return INLINE.sub(lambda match: convert(html.unescape(match[1]).strip()), content)
