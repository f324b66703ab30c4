"""Texts that would do something if they were not taken for text, and what tells whether they did."""

from __future__ import annotations

from html.parser import HTMLParser

from qrnca_lens.data import Prompt, Query, QuerySet

LINK = "<a href=//h.invalid>x</a>"
HOSTILE = f'</script><img src=x onerror=hacked()>&"<marquee>{LINK}</extra> %{{meta}} $x$ [/b] \x1b]0;x\x07'
TAGS = {
    *("b", "body", "button", "circle", "details", "div", "figcaption", "figure", "g", "h1", "h2", "h3", "head", "html"),
    *("li", "line", "link", "meta", "p", "path", "polyline", "pre", "rect", "script", "section", "span", "style"),
    *("summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "ul"),
}


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes = set[str](), set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def check_html(page: str) -> None:
    """Only the package's own tags, no address, no handler, no control character."""
    found = Tags(page)
    assert found.tags <= TAGS
    assert not {"src", "href"} & found.attributes or found.tags >= {"head"}
    assert not any(attribute.startswith("on") for attribute in found.attributes)
    assert page.count("</script") == page.count("<script")
    assert "\x1b" not in page


def hostile_queries(text: str = HOSTILE) -> QuerySet:
    """Eight queries in two groups, every text of theirs being `text` and a number."""

    def prompts(i: int) -> tuple[Prompt, ...]:
        options = tuple(f"{text} {k}" for k in range(4))
        return tuple(Prompt(f"{text} {7 * i + j}\nAnswer:", "ABCD"[(i + j) % 4], f"t{text}", options) for j in range(2))

    return QuerySet(tuple(Query(f"q{i}{text}", f"g{i % 2}{text}", prompts(i), text, "a") for i in range(8)), "hostile")
