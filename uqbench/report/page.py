"""A report in Markdown as one HTML file that needs nothing else, for screens of any size and for paper."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping

import jinja2
import markdown
import markupsafe

TEMPLATE = "page.html.j2"


def page(text: str, figures: Mapping[str, bytes], *, title: str) -> str:
    """Turn Markdown with links to figures (PNG, by file name) into a page of its own."""
    converter = markdown.Markdown(
        extensions=["tables", "toc", "sane_lists"], extension_configs={"toc": {"toc_depth": "2-2"}}
    )
    # Run directories may hold anything in their names.
    body = converter.convert(html.escape(text, quote=False))
    body = re.sub(r"<table>", '<div class="table" tabindex="0"><table>', body).replace("</table>", "</table></div>")
    body = re.sub(r'src="([^"]+)"', lambda found: f'src="{_inline(figures[html.unescape(found[1])])}"', body)
    loader = jinja2.PackageLoader("uqbench.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    parts = {"title": title, "toc": markupsafe.Markup(converter.toc), "body": markupsafe.Markup(body)}
    return environment.get_template(TEMPLATE).render(parts)


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
