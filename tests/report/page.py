"""A report's page as a reader has it: text, tables, links and what a browser would load."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "source", "br"}
#: Attributes whose value a browser fetches or follows.
LOADING = {"src", "srcset", "href", "action", "data", "poster", "formaction", "background", "xlink:href"}


class Page(HTMLParser):
    """Parses the page at `path`; fails where a tag is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.terms: dict[str, str] = {}
        self.advice: list[str] = []
        self.captions: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.style = ""
        self._pieces: list[str] = []
        self._open: list[tuple[str, int, dict[str, str]]] = []
        self._term = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def text(self) -> str:
        """All text, white space collapsed."""
        return " ".join("".join(self._pieces).split())

    @property
    def ids(self) -> list[str]:
        """Every id in the page itself."""
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    @property
    def loaded(self) -> list[str]:
        """Every address that the page refers to in a way that a browser might load or follow."""
        found = [value for _, attributes in self.tags for name, value in attributes.items() if name in LOADING]
        styles = [self.style, *(attributes.get("style", "") for _, attributes in self.tags)]
        for style in styles:
            found += re.findall(r"url\(([^)]*)\)", style) + re.findall(r"@import\s+(\S+)", style)
        return found

    @property
    def images(self) -> list[tuple[str, str]]:
        """(alt, SVG text) of every image."""
        return [
            (attributes["alt"], base64.b64decode(attributes["src"].partition("base64,")[2]).decode())
            for tag, attributes in self.tags
            if tag == "img"
        ]

    def table(self, first_header: str, second_header: str) -> list[dict[str, str]]:
        """The rows of the table that begins with these headers, by header; a spanning first cell is filled down."""
        return self.all_tables(first_header, second_header)[0]

    def all_tables(self, first_header: str, second_header: str) -> list[list[dict[str, str]]]:
        """The same of every such table, in the order of the page."""
        found = [table for table in self.tables if table and table[0][:2] == [first_header, second_header]]
        assert found, f"no table begins with {first_header}, {second_header}"
        return [self._by_header(table) for table in found]

    @staticmethod
    def _by_header(table: list[list[str]]) -> list[dict[str, str]]:
        header, *rows = table
        filled, first = [], ""
        for row in rows:
            first, rest = (row[0], row[1:]) if len(row) == len(header) else (first, row)
            filled.append(dict(zip(header, [first, *rest], strict=True)))
        return filled

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag not in VOID:
            self._open.append((tag, len(self._pieces), attributes))
        elif tag == "br":
            self._pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        opened, start, attributes = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}> at {self.getpos()}"
        inside = " ".join("".join(self._pieces[start:]).split())
        if tag in ("th", "td"):
            self.tables[-1][-1] += [inside] + [""] * (int(attributes.get("colspan", "1")) - 1)
        if tag == "dt":
            self._term = inside
        if tag == "dd":
            self.terms.setdefault(self._term, inside)  # the list of words at the end repeats some
        if tag == "figcaption":
            self.captions.append(inside)
        if tag in ("h1", "h2", "h3", "h4", "h5"):
            self.headings.append((int(tag[1]), inside))
        if attributes.get("class") == "sentence":
            self.advice.append(inside)
        if tag in ("p", "td", "th", "dt", "dd", "li", "h1", "h2", "h3", "h4", "code", "figcaption"):
            self._pieces.append(" ")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "style":
            self.style += data
        else:
            self._pieces.append(data)
