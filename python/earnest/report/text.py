# SPDX-License-Identifier: Apache-2.0
"""Text into HTML. What a model says is hostile until it is escaped; nothing goes into the page by another
way."""

from __future__ import annotations

import html
import re

# HTML has no way to write these: controls, lone surrogates, noncharacters.
_UNSAYABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def escape(text: object) -> str:
    """`text` as it may stand between tags and in quoted attributes."""
    return html.escape(_UNSAYABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """A <p> of plain text, of class `kind`."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
