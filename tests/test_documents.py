"""The report: complete in itself, the same in both forms, and in both the right numbers."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from condensation.documents import Block, Heading, Paragraph, Picture, Table, to_html, to_markdown
from condensation.report import CAPTIONS, flatten, report_blocks, spread_text
from conftest import ROOT


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str) -> None:
        """Parse the page."""
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == [], "elements are closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep one element."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that what ends is what began last."""
        assert self._open.pop() == tag
        if tag in ("td", "th", "p", "h1", "h2"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text += data


@pytest.fixture
def blocks(tmp_path: Path) -> list[Block]:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.png").write_bytes(b"\x89PNG")
    return [
        Heading("Part <1>"),
        Paragraph("Names like `a<b` are code & text is not."),
        Table(("name", "value"), [("a|b", "1"), ("`c`", "2")]),
        Picture(tmp_path / "figures/a.png", 'A "picture"'),
    ]


def test_html_escapes_and_holds_its_pictures(blocks: list[Block]) -> None:
    page = Page(to_html("Title & more", blocks))
    assert "Part <1>" in page.text and "a<b" in page.text and "code & text" in page.text
    (image,) = [attributes for tag, attributes in page.elements if tag == "img"]
    assert image == {"src": "data:image/png;base64,iVBORw==", "alt": 'A "picture"'}


def test_nothing_comes_from_elsewhere(blocks: list[Block]) -> None:
    text = to_html("Title", blocks)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements}
    targets = [a[name] for _, a in page.elements for name in ("src", "href") if name in a]
    assert targets and all(target.startswith("data:") for target in targets)
    assert "url(" not in text and "@import" not in text and "http" not in text


def test_markdown_links_its_pictures(blocks: list[Block], tmp_path: Path) -> None:
    text = to_markdown("Title", blocks, tmp_path)
    assert text.startswith("# Title\n\n## Part <1>\n")
    assert "| name | value |\n| :-- | --: |\n| a\\|b | 1 |\n| `c` | 2 |" in text
    assert '![A "picture"](figures/a.png)' in text


def test_settings_are_named_as_in_params_yaml() -> None:
    settings = {"a": 1, "s": {"b": None, "by_network": {"mlp": {"n": 2}}, "l": (1, 2)}}
    expected = [("a", "1"), ("s.b", "auto"), ("s.mlp.n", "2"), ("s.l", "1, 2")]
    assert flatten(settings) == expected


def test_a_mean_carries_its_spread_and_count() -> None:
    assert spread_text(92.65, 0.53, 5) == "92.7 ± 0.5 (n = 5)"
    assert spread_text(92.65, None, 1, 2) == spread_text(92.65, float("nan"), 1, 2)
    assert spread_text(92.65, None, 1, 2) == "92.65 (n = 1)"


def report(
    images: str, folder: Path, more: Mapping[str, float | None] | None = None
) -> list[Block]:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["evaluate"]["images"] = images
    figures = {name: folder / f"{name}.png" for name in CAPTIONS}
    for path in figures.values():
        path.write_bytes(path.name.encode())
    curve = pd.DataFrame(
        {
            "iteration": [0, 30],
            "seconds": [0.0, 12.4],
            "accuracy": [61.0, 73.25],
            "std": [float("nan"), 1.5],
            "n": [1, 4],
        }
    )
    classes = pd.DataFrame({"class": ["7"], "accuracy": [88.8], "std": [0.3], "n": [4]})
    metrics = {
        "mlp": {
            **{"accuracy": 73.25, "std": 1.5, "n": 4, "retained": 74.0},
            **{"ceiling": 99.0, "ceiling_std": None, "ceiling_n": 1},
            **(more or {}),
        }
    }
    runs = [("condense", "30 iterations", 12.4, "CPU"), ("evaluate@mlp", "5 networks", 7.7, "CPU")]
    return report_blocks(figures, metrics, {"mlp": curve}, {"mlp": classes}, runs, settings)


def test_the_report_holds_figures_tables_settings_and_times(tmp_path: Path) -> None:
    text = to_markdown("Title", report("data/condensed", tmp_path), tmp_path)
    for row in (
        "| `mlp` | 73.2 ± 1.5 (n = 4) | 99.00 (n = 1) | 74.0 % |",
        "| 30 | 12 | 73.2 ± 1.5 (n = 4) |",
        "| 7 | 88.8 ± 0.3 (n = 4) |",
        "| `condense` | 30 iterations | 12 | CPU |",
        "| together |  | 20 |  |",
        "| condense.curvature.form | hvp |",
        "| evaluate.mlp.num_networks | 6 |",
    ):
        assert row in text
    assert re.findall(r"!\[.*?\]\((\w+)\.png\)", text) != []
    assert {*re.findall(r"\((\w+)\.png\)", text)} == set(CAPTIONS)
    assert re.search(r"\| torch \| \d", text) and "matching gradients of `convnet`" in text


def test_settings_of_networks_that_are_not_used_are_left_out(tmp_path: Path) -> None:
    text = to_markdown("Title", report("data/condensed", tmp_path), tmp_path)
    assert "networks.convnet.width" in text and "baseline.lenet.epochs" in text
    assert "alexnet" not in text and "vgg11" not in text


def test_the_report_tells_the_spread_of_several_sets(tmp_path: Path) -> None:
    metrics = {"sets": 2, "std_between_sets": 0.4, "std_within_sets": None}
    text = to_markdown("Title", report("data/condensed", tmp_path, metrics), tmp_path)
    assert "| sets | std between sets | std within a set |" in text
    assert "| `mlp` | 73.2 ± 1.5 (n = 4) | 2 | 0.40 |  | 99.00 (n = 1) | 74.0 % |" in text


def test_what_is_not_known_is_left_out_of_the_report(tmp_path: Path) -> None:
    metrics = {"ceiling": 0.0, "retained": None}
    text = to_markdown("Title", report("data/condensed", tmp_path, metrics), tmp_path)
    assert "| `mlp` | 73.2 ± 1.5 (n = 4) | 0.00 (n = 1) |  |" in text
    assert spread_text(float("nan"), float("nan"), 4) == spread_text(None, None, 4) == ""


def test_the_report_says_where_images_from_elsewhere_are_from(tmp_path: Path) -> None:
    text = to_markdown("Title", report("data/others/res.pt", tmp_path), tmp_path)
    assert "`data/others/res.pt`, which were made elsewhere" in text


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    blocks = report("data/condensed", tmp_path)
    page = Page(to_html("Title", blocks))
    markdown = to_markdown("Title", blocks, tmp_path)
    text = re.sub(r"!\[.*?\]\(.*?\)|[`*]", "", markdown)
    words = re.sub(r"\||^#+ |:--|--:", " ", text, flags=re.MULTILINE).split()
    assert {*words} - {*page.text.split()} == set()
