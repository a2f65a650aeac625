"""A report in Markdown as one HTML file that needs nothing else, for screens of any size and for paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

import jinja2
import markdown
import markupsafe
from markdown.inlinepatterns import IMAGE_LINK_RE, ImageInlineProcessor

TEMPLATE = "page.html.j2"
# Patterns of Markdown that could make a page refer to something else.
REFERRING = (
    *("link", "reference", "short_reference", "image_reference", "short_image_ref", "autolink", "automail", "html"),
)


def page(text: str, figures: Mapping[str, bytes], *, title: str) -> str:
    """Turn Markdown with figures (PNG, by file name) into a page of its own.

    Nothing else of it refers to anything: HTML, links and other images in the text are shown as they are written.
    """
    converter = markdown.Markdown(
        extensions=["tables", "toc", "sane_lists"], extension_configs={"toc": {"toc_depth": "2-2", "marker": ""}}
    )
    converter.preprocessors.deregister("html_block")
    converter.parser.blockprocessors.deregister("reference")
    for pattern in REFERRING:
        converter.inlinePatterns.deregister(pattern)
    converter.inlinePatterns.register(_Figure(figures, converter), "image_link", 150)
    body = converter.convert(text)
    body = re.sub(r"<table>", '<div class="table" tabindex="0"><table>', body).replace("</table>", "</table></div>")
    loader = jinja2.PackageLoader("uqbench.report.render", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    parts = {"title": title, "toc": markupsafe.Markup(converter.toc), "body": markupsafe.Markup(body)}
    return environment.get_template(TEMPLATE).render(parts)


class _Figure(ImageInlineProcessor):
    """Images that are figures of the report, each as part of the page."""

    def __init__(self, figures: Mapping[str, bytes], converter: markdown.Markdown) -> None:
        super().__init__(IMAGE_LINK_RE, converter)
        self.figures = figures

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | None, int | None, int | None]:  # noqa: N802
        image, start, end = super().handleMatch(m, data)
        if image is None or image.get("src") not in self.figures:
            return None, None, None
        image.set("src", _inline(self.figures[image.get("src")]))
        return image, start, end


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
