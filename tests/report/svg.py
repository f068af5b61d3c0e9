"""Reading what matplotlib drew out of its SVG."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


class Drawing:
    """One SVG file: its marks by colour, and its letters, which matplotlib keeps as comments beside their shapes."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.root = ElementTree.fromstring(self.text)

    @property
    def labels(self) -> list[str]:
        """Every line of text in the drawing."""
        return [line for text in re.findall(r"<!-- (.*?) -->", self.text, re.DOTALL) for line in text.split("\n")]

    def marks(self, colour: str) -> list[tuple[float, float]]:
        """(x, y) of every marker inside a panel that is filled with `colour`; y grows downwards."""
        groups = [group for group in self.root.iter(f"{SVG}g") if "clip-path" in group.attrib]  # the legend has none
        return [
            (float(use.attrib["x"]), float(use.attrib["y"]))
            for group in groups
            for use in group.iter(f"{SVG}use")
            if f"fill: {colour.lower()}" in use.attrib.get("style", "").lower()
        ]

    def lines(self, colour: str, is_dashed: bool | None = None) -> list[list[tuple[float, float]]]:
        """The points of every line drawn in `colour`, one list per unbroken piece; only dashed ones, or none."""
        pieces = []
        for path in self.root.iter(f"{SVG}path"):
            style = path.attrib.get("style", "").lower()
            if f"stroke: {colour.lower()}" not in style or "clip-path" not in path.attrib:
                continue
            if is_dashed is not None and ("dasharray" in style) != is_dashed:
                continue
            for piece in path.attrib["d"].split("M")[1:]:
                numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", piece)]
                pieces.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
        return pieces

    def height_of(self, text: str) -> float:
        """y of the baseline of a text that stands once in the drawing; y grows downwards."""
        (block,) = re.findall(rf"<!-- {re.escape(text)} -->\s*<g [^>]*translate\(\S+ (\S+?)\)", self.text)
        return float(block)

    def legend_marks(self) -> list[tuple[str, str]]:
        """(style, shape) of every marker in the legend."""
        (legend,) = (group for group in self.root.iter(f"{SVG}g") if group.attrib.get("id", "").startswith("legend"))
        shapes = {path.attrib["id"]: path.attrib["d"] for path in legend.iter(f"{SVG}path") if "id" in path.attrib}
        href = "{http://www.w3.org/1999/xlink}href"
        return [
            (use.attrib["style"], shapes[use.attrib[href][1:]])
            for use in legend.iter(f"{SVG}use")
            if use.attrib[href][1:] in shapes and "style" in use.attrib
        ]
