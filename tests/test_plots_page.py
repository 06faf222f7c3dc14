"""The pages of `dvc plots show` and `dvc plots diff`, and the report: complete offline, all drawn.

Pictures of them, in colour and in grey, are left in `.pytest_cache/d/screenshots` to be looked at.
"""

import base64
import csv
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from condensation.documents import Block, Heading, Picture, Table, to_html
from condensation.figure_style import save
from condensation.plots import retained_bars
from conftest import HANGS, ROOT, environment_of_commands

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --virtual-time-budget=8000"
).split()
NETWORKS = ("convnet", "lenet", "mlp")
CLASSES = tuple("0123456789")
ITERATIONS = (0, 5, 10, 25)
FIGURES = ("loss.png", "synthetic.png")
PNG = base64.b64decode(  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PAGES = {  # the command and the names of the revisions on its page
    "show": (["show"], ("workspace",)),
    "diff": (["diff", "HEAD~1", "HEAD"], ("HEAD~1", "HEAD")),
}


def run(*command: str, folder: Path) -> str:
    """Return what a command prints, run in `folder` with fixed settings of Git and DVC."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment_of_commands(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def write_csv(path: Path, header: str, rows: Iterable[Iterable[object]]) -> None:
    """Write a table; `header` is its column names, separated by commas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def write_data(folder: Path, plots: list[str | dict[str, dict[str, Any]]], scale: float) -> None:
    """Write small made-up data for each plot of dvc.yaml, as its template takes it."""
    for plot in plots:
        if isinstance(plot, str):
            (folder / plot).mkdir(parents=True, exist_ok=True)
            for figure in FIGURES:
                (folder / plot / figure).write_bytes(PNG)
            continue
        (settings,) = plot.values()
        for name in settings["y"]:
            path = folder / name
            rows: list[tuple[object, ...]]
            if settings["template"] == "loss":
                rows = [(i, scale / (i + 1)) for i in ITERATIONS]
                write_csv(path, "iteration,loss", rows)
            elif settings["template"] == "classes":
                rows = [(i, c, scale * (int(c) + 1) / (i + 1)) for i in ITERATIONS for c in CLASSES]
                write_csv(path, "iteration,class,loss", rows)
            elif settings["template"] == "networks":  # a file for each network, or one for all
                networks = [path.parent.name] if path.parent.name in NETWORKS else NETWORKS
                rows = [(n, i, 2.5 * i, 60 + i, scale, 5, 99) for n in networks for i in ITERATIONS]
                write_csv(path, "network,iteration,seconds,accuracy,std,n,ceiling", rows)


class Elements(HTMLParser):
    """The elements of a page: `found` holds (tag, attributes) in order."""

    def __init__(self, page: str) -> None:
        """Parse the page."""
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep one element."""
        self.found.append((tag, {name: value or "" for name, value in attrs}))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of two commits with this one's plots and made-up data."""
    folder = tmp_path_factory.mktemp("repository")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    for name in (".gitignore", ".dvc/.gitignore", ".dvc/config", "params.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    run("git", "init", "--quiet", folder=folder)
    for scale in (1.0, 2.0):
        write_data(folder, plots, scale)
        run("git", "add", "--all", folder=folder)
        run("git", "commit", "--quiet", "--message", f"scale {scale}", folder=folder)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_page_refers_to_files_of_the_repository_only(repository: Path, page: str) -> None:
    """Scripts, links and images are files that exist; none comes from a network."""
    run("dvc", "plots", *PAGES[page][0], folder=repository)
    folder = repository / "dvc_plots"
    for tag, attributes in Elements((folder / "index.html").read_text()).found:
        for target in (attributes[name] for name in ("src", "href") if name in attributes):
            if not target.startswith("data:"):
                assert (folder / target).is_file(), f"<{tag}> refers to {target}"


def browse(page: Path, folder: Path, *options: str) -> str:
    """Return what a browser without a network prints; its files go into `folder`."""
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    browser = [str(CHROMIUM), *FLAGS, offline, f"--user-data-dir={folder}", *options]
    return run(*browser, page.as_uri(), folder=folder)


def screenshot(page: Path, width: int, height: int, kept: Path) -> np.ndarray:
    """Return a picture of a page as grey values; `kept` and the same in grey stay on the disk."""
    size = f"--window-size={width},{height}"
    with tempfile.TemporaryDirectory() as folder:
        browse(page, Path(folder), "--hide-scrollbars", size, f"--screenshot={kept}")
    with Image.open(kept) as image:
        grey = image.convert("L")
    grey.save(kept.with_stem(f"{kept.stem}-grey"))
    return np.asarray(grey)


@pytest.fixture
def screenshots(pytestconfig: pytest.Config) -> Path:
    """Where pictures stay after the tests."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("screenshots")


def note_widths(page: Path) -> None:
    """Let the page note how wide each of its images is, once it is loaded: 0 is a broken one."""
    note = "for (const image of document.images) image.dataset.width = image.naturalWidth"
    script = f"<script>addEventListener('load', () => {{ {note} }})</script></body>"
    page.write_text(page.read_text().replace("</body>", script))


@pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser: {', '.join(BROWSERS)}")
@pytest.mark.parametrize("page", PAGES)
def test_every_plot_is_drawn(
    repository: Path, tmp_path: Path, screenshots: Path, page: str
) -> None:
    """In a browser without a network each series is a line of its own, and each image loads."""
    arguments, revisions = PAGES[page]
    run("dvc", "plots", *arguments, folder=repository)
    index = repository / "dvc_plots" / "index.html"
    note_widths(index)
    elements = Elements(browse(index, tmp_path, "--dump-dom")).found

    marks = [a for _, a in elements if a.get("role") == "graphics-symbol"]
    lines = [a for a in marks if a["aria-roledescription"] == "line mark"]
    labels = [label["aria-label"] for label in lines]
    by_network = [re.search(r"network: (\S+); revision: (\S+)", label) for label in labels]
    by_class = [re.search(r"class: (\S+); revision: (\S+)", label) for label in labels]
    drawn_twice = 2 * sorted(product(NETWORKS, revisions))  # by iterations and by seconds
    assert sorted(m.groups() for m in by_network if m) == sorted(drawn_twice)
    assert sorted(m.groups() for m in by_class if m) == sorted(product(CLASSES, revisions))
    assert len(lines) == (2 * len(NETWORKS) + len(CLASSES) + 1) * len(revisions)
    for line in lines:  # M x,y L x,y ...: a point for each iteration, each of them a number
        assert re.fullmatch(r"M[-\d.e,]+(L[-\d.e,]+)*", line.get("d", "")), line
        assert line["d"].count("L") == len(ITERATIONS) - 1
    bars = [a for a in marks if a["aria-roledescription"] == "rule mark"]
    spreads_and_ceiling = len(ITERATIONS) + 1
    assert len(bars) == 2 * len(NETWORKS) * spreads_and_ceiling * len(revisions)

    images = [attributes for tag, attributes in elements if tag == "img"]
    assert len(images) == len(FIGURES) * len(revisions)
    assert all(image["data-width"] != "0" for image in images)

    # Ink in the area of the plots, in shades that differ: nothing is blank in a print either.
    shades = screenshot(index, 1360, 1400, screenshots / f"made-up-{page}.png")[150:]
    assert (shades < 128).mean() > 0.005 and len(np.unique(shades)) > 50


@pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser: {', '.join(BROWSERS)}")
def test_the_report_is_shown_without_a_network(tmp_path: Path, screenshots: Path) -> None:
    """Each picture of the file is one, and lies beside its table on a page of moderate width."""
    curve = pd.DataFrame(
        {"iteration": [5], "accuracy": [70.0], "std": [1.0], "n": [3], "ceiling": [99.0]}
    )
    figure = tmp_path / "retained.png"
    save(retained_bars({"mlp": curve}), figure, dpi=100)
    table = Table(("network", "n"), [("mlp", "3")])
    blocks: list[Block] = [Heading("Accuracy"), table, Picture(figure, "Bars")]
    page = tmp_path / "report.html"
    page.write_text(to_html("Report", blocks))
    shades = screenshot(page, 1360, 700, screenshots / "made-up-report.png")
    assert (shades < 128).mean() > 0.005 and (shades > 250).mean() > 0.8
    note_widths(page)
    elements = Elements(browse(page, tmp_path, "--dump-dom")).found
    (width,) = [attributes["data-width"] for tag, attributes in elements if tag == "img"]
    assert int(width) == 900


@pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser: {', '.join(BROWSERS)}")
def test_the_committed_results_are_shown(
    repository: Path, tmp_path: Path, screenshots: Path
) -> None:
    """The plots page and the report of the results in Git, as somebody sees them in a clone."""
    clone = tmp_path / "clone"
    shutil.copytree(repository, clone, ignore=shutil.ignore_patterns("results", "dvc_plots"))
    shutil.copytree(ROOT / "results", clone / "results")
    run("dvc", "plots", "show", folder=clone)
    for page, width, name in (
        (clone / "dvc_plots/index.html", 1360, "plots"),
        (clone / "results/report.html", 880, "report"),
    ):
        note_widths(page)
        dom = browse(page, tmp_path, "--dump-dom")
        images = [attributes for tag, attributes in Elements(dom).found if tag == "img"]
        assert images and all(int(image["data-width"]) > 700 for image in images), page
        shades = screenshot(page, width, 6000, screenshots / f"{name}.png")
        assert (shades < 128).mean() > 0.02 and len(np.unique(shades)) > 200
