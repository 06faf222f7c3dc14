"""A report as a list of blocks, written as one HTML file that needs nothing else, or as Markdown.

In texts, `code` is set as code; everything else is taken as it is.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from condensation.files import written

MEDIA_TYPES = {".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Heading:
    """A heading, below the title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; columns after the first are numbers where `numbers` says so."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


@dataclass(frozen=True)
class Picture:
    """A picture file and what it shows."""

    path: Path
    caption: str


Block = Heading | Paragraph | Table | Picture

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light; }
  body {
    margin: 0 auto; max-width: 56rem; padding: 1.5rem; background: #fff; color: #222;
    font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", Helvetica, Arial, sans-serif;
  }
  h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
  h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
  code { font-size: .9em; background: #f3f3f1; padding: .1em .25em; }
  figure { margin: 1.2rem 0; }
  figure img { display: block; max-width: 100%; height: auto; }
  figcaption { color: #555; font-size: .92rem; margin-top: .3rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0; }
  th, td { padding: .22rem .8rem .22rem 0; text-align: left; vertical-align: top; }
  th { border-bottom: 1.5px solid #222; }
  td { border-bottom: 1px solid #e5e5e5; }
  .numbers th + th, .numbers td + td { text-align: right; font-variant-numeric: tabular-nums; }
  @media print {
    body { max-width: none; padding: 0; font-size: 10.5pt; }
    figure, tr { break-inside: avoid; }
    h2 { break-after: avoid; }
    .wide { overflow: visible; }
  }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return one HTML file with the pictures in it: no script, and nothing from elsewhere.

    Raises:
        OSError: A picture cannot be read.
    """
    body = "\n".join(_html(block) for block in blocks)
    return PAGE.substitute(title=html.escape(title), body=body)


def to_markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Return the same as Markdown for a file in `folder`, with links to the pictures."""
    return "\n\n".join([f"# {title}", *(_markdown(block, folder) for block in blocks)]) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_inline(text)}</h2>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Table(header, rows, numbers):
            head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
            lines = "\n".join(
                "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            kind = ' class="numbers"' if numbers else ""
            return (
                f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{lines}\n</tbody></table></div>"
            )
        case Picture(path, caption):
            content = base64.b64encode(written(path).read_bytes()).decode()
            source = f"data:{MEDIA_TYPES[path.suffix]};base64,{content}"
            return (
                f'<figure><img src="{source}" alt="{html.escape(caption)}">\n'
                f"<figcaption>{_inline(caption)}</figcaption></figure>"
            )


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Table(header, rows, numbers):
            rule = [":--", *[("--:" if numbers else ":--")] * (len(header) - 1)]
            lines = [header, rule, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(path, caption):
            return f"![{caption}]({path.relative_to(folder).as_posix()})\n\n*{caption}*"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
