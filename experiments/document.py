"""A document of headings, paragraphs, tables and pictures, as Markdown and as one HTML file."""

import base64
import html
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Heading(NamedTuple):
    """A title."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph; `code`, **bold** and [links](to) as in Markdown."""

    text: str


class Table(NamedTuple):
    """Rows under a header; cells are texts."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file and what it shows."""

    path: Path
    caption: str


Block = Heading | Text | Table | Picture


def markdown(blocks: Iterable[Block], folder: Path) -> str:
    """Markdown whose pictures are files, named relative to the folder that it lies in."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Table(header, rows):
            return "\n".join(map(_row, [header, ["---"] * len(header), *rows]))
        case Picture(path, caption):
            return f"![{caption}]({os.path.relpath(path, folder)})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: #222 }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; display: block;
  overflow-x: auto }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; vertical-align: top }
th { background: #f2f2f2 }
img { max-width: 100%; display: block }
figcaption { color: #555; font-size: 13px }
code { background: #f2f2f2; padding: 0 3px }
"""


def page(blocks: Iterable[Block], title: str) -> str:
    """HTML that holds its pictures and needs no other file."""
    body = "\n".join(map(_html, blocks))
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Table(header, rows):
            lines = ["<table>", _cells("th", header), *(_cells("td", row) for row in rows)]
            return "\n".join([*lines, "</table>"])
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            image = f"<img alt='{html.escape(caption)}' src='data:image/png;base64,{data}'>"
            return f"<figure>{image}<figcaption>{_inline(caption)}</figcaption></figure>"


def _cells(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"<a href='\2'>\1</a>", text)
