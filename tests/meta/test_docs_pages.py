"""The documentation as it is built: every link leads somewhere, and every page fits its window."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.chromium import Chromium

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Made by Sphinx itself.
NOT_OURS = {"genindex", "py-modindex", "search"}
NARROW, WIDE = 400, 1280
#: So high that nothing has to be scrolled to.
WHOLE_PAGE = 14_000


class View(NamedTuple):
    """How a page is shown."""

    width: int
    dark: bool

    def __str__(self) -> str:
        return f"{self.width}-{'dark' if self.dark else 'light'}"


VIEWS = [View(width, dark) for width in (WIDE, NARROW) for dark in (False, True)]

#: Whether the window is as wide and as dark as it was told, once it has drawn itself so.
IS_SHOWN_AS = """
const [width, dark] = arguments;
const is_so = () => window.innerWidth === width
    && matchMedia('(prefers-color-scheme: dark)').matches === dark;
return new Promise((done) => {
    const look = () => requestAnimationFrame(() => is_so() ? done(true) : look());
    look();
});
"""

#: What is wider than the place that it has: one line for each element.
FIND_CUT = """
const found = [];
const shown = (element) => element.tagName + '.' + (element.getAttribute('class') || '') + ': '
    + (element.textContent || element.alt || '').trim().slice(0, 60).replace(/\\s+/g, ' ');
const root = document.documentElement;
if (root.scrollWidth > window.innerWidth) found.push('the page scrolls sideways');
for (const element of document.querySelectorAll('article *')) {
    // Code may be wider than its box, and is scrolled there, line by line.
    if (element.closest('pre, svg, .headerlink') || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const cuts = style.overflowX !== 'visible' && style.display !== 'inline';
    const is_cut = cuts && element.scrollWidth > element.clientWidth + 1;
    if (is_cut) found.push('cut: ' + shown(element));
    const box = element.getBoundingClientRect();
    const is_outside = box.right > window.innerWidth + 1 || box.left < -1;
    if (is_outside) found.push('outside: ' + shown(element));
}
return found;
"""


#: The colour of one pixel of a picture.
COLOUR_AT = """
const [picture, x, y] = arguments;
const image = new Image();
image.src = 'data:image/png;base64,' + picture;
return image.decode().then(() => {
    const canvas = document.createElement('canvas');
    canvas.width = image.width;
    canvas.height = image.height;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    return Array.from(context.getImageData(x, y, 1, 1).data).slice(0, 3);
});
"""


class Page(HTMLParser):
    """What can be linked to on a page, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where it can be linked to, and where it leads."""
        for name, value in attrs:
            if value and name == "id":
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built with every warning as an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", folder / "doctrees", DOCS, folder / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One window for all pages of this file."""
    browser = Chromium(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def pages_of(site: Path) -> list[Path]:
    """The pages that somebody wrote."""
    pages = [*site.glob("*.html"), *site.glob("cookbook/*.html")]
    return sorted(page for page in pages if page.stem not in NOT_OURS)


# --- links ---------------------------------------------------------------------------------------


def test_every_link_leads_to_a_place_that_is_there(site: Path) -> None:
    """On each page: to a file, and to an anchor on it."""
    # Given
    parsed = {
        page.resolve(): Page(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")
    }
    # When
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "data"), (path.name, link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = parsed[target].anchors if target in parsed else None
            if not target.is_file() or (
                parts.fragment and unquote(parts.fragment) not in (there or ())
            ):
                broken.append((path.name, link))
    # Then
    assert sum(len(page.links) for page in parsed.values()) > 1000
    assert broken == []


def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    """By the list at its side, and from the text of the first page."""
    # Given
    first = Page((site / "index.html").read_text(encoding="utf-8"))
    # Then
    linked = {urlsplit(link).path for link in first.links}
    for page in site.glob("*.html"):
        assert page.stem in {*NOT_OURS, "index"} or page.name in linked, page.name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_a_file_at_the_top_links_to_files_that_are_there(name: str) -> None:
    """Where no documentation is built these are all that a reader sees."""
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", (ROOT / name).read_text("utf-8")):
        parts = urlsplit(target)
        assert parts.scheme == "https" or (ROOT / parts.path).is_file(), (text, target)


# --- the reference -------------------------------------------------------------------------------


def test_no_text_of_an_attribute_became_its_type(site: Path) -> None:
    """Napoleon takes what stands before a colon for a type: "The state: ...", for instance."""
    for page in pages_of(site):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<dt class="field-\w+">Type<', text), page.name


def test_no_constructor_is_shown_that_nobody_calls(site: Path) -> None:
    """The signature of a class stands beside its name, if users call it at all."""
    for page in pages_of(site):
        shown = re.findall(r'<dt class="sig [^>]* id="([^"]+)"', page.read_text(encoding="utf-8"))
        assert [name for name in shown if name.endswith("__")] == [], page.name


# --- as they are seen ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut(site: Path, chromium: Chromium) -> dict[View, list[str]]:
    """What is cut in each view; a page is loaded once, and shown in one after the other."""
    found: dict[View, list[str]] = {view: [] for view in VIEWS}
    for page in pages_of(site):
        chromium.open(page.as_uri())
        for view in VIEWS:
            chromium.show_as(view.width, dark=view.dark)
            assert chromium.evaluate(IS_SHOWN_AS, *view) is True
            chromium.screenshot(f"{page.stem}-{view}")
            found[view] += [f"{page.stem}: {line}" for line in chromium.evaluate(FIND_CUT)]
    return found


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_every_page_fits_its_window(cut: dict[View, list[str]], view: View) -> None:
    """On a desk and on a phone nothing but code is scrolled sideways, and nothing is cut."""
    assert cut[view] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("plot", ["goals", "peers", "growth"])
def test_a_plot_lets_the_page_through(
    site: Path, chromium: Chromium, plot: str, dark: bool
) -> None:
    """It is no white block in the dark: its corner has the colour of the page around it."""
    # Given
    chromium.show_as(WIDE, WHOLE_PAGE, dark=dark)
    chromium.open((site / "benchmarks.html").as_uri())
    # When
    picture = chromium.find(f"img.plot[src$='{plot}.svg']").screenshot_as_base64
    corner = chromium.evaluate(COLOUR_AT, picture, 4, 4)
    # Then
    page = chromium.evaluate("return getComputedStyle(document.body).backgroundColor;")
    background = [int(part) for part in re.findall(r"\d+", page)][:3]
    assert sum(background) < 150 if dark else sum(background) > 700
    near = [abs(one - other) <= 6 for one, other in zip(corner, background, strict=True)]
    assert all(near), (corner, background)


def test_a_diagram_is_words_where_it_would_be_too_small(site: Path, chromium: Chromium) -> None:
    """A phone shows the steps as a list, a desk the drawing."""
    # Given
    shown = {}
    for width in (WIDE, NARROW):
        chromium.show_as(width)
        chromium.open((site / "how-it-works.html").as_uri())
        # When
        shown[width] = chromium.evaluate(
            "return ['svg', 'ol'].filter((name) =>"
            " document.querySelector('figure.diagram ' + name).getClientRects().length);"
        )
    # Then
    assert shown == {WIDE: ["svg"], NARROW: ["ol"]}
