"""The report in a real browser, opened from the disk: sorting, filtering, folding, comparing, charts; on a phone and on
a desk, in light and dark, with and without scripts. A page that logs an error or asks something of a network fails.
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from conftest import made_once
from playwright.sync_api import Page
from pypdf import PdfReader
from report_runs import HOSTILE, write_site

PHONE, DESK = {"width": 375, "height": 740}, {"width": 1440, "height": 900}
CONTRAST = Path(__file__).with_name("report_contrast.js").read_text(encoding="utf-8")
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The site of a project with runs of every kind; to be read only."""
    return made_once(tmp_path_factory, worker_id, "report", write_site) / "site"


@pytest.fixture
def visit(browser, site) -> Iterator[Open]:
    """A function that opens a page of the site; at the end none may have logged an error or left the disk."""
    contexts, wrong = [], []

    def open_page(path: str = "index.html", **options: object) -> Page:
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        page.goto(address(site, path))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def address(site: Path, path: str) -> str:
    """The address of the page at `path`, which may end with # and more."""
    file, sign, more = path.partition("#")
    return (site / file).as_uri() + sign + more


def page_names(site: Path) -> list[str]:
    """One page of each kind."""
    hostile = next(site.glob("runs/_img*/_img*.html"))
    names = ["index.html", "compare.html#run=main&run=forest", "sweeps/sweep.html", "runs/main/index.html"]
    names += ["runs/main/03_train.html", "runs/broken/03_square.failed.html", "runs/broken/index.html"]
    return [*names, "runs/cut/03_train.html", str(hostile.relative_to(site))]


def printed(page: Page) -> str:
    """The text of the page as it comes out of a printer, on A4, without white space."""
    paper = PdfReader(BytesIO(page.pdf(prefer_css_page_size=True)))
    return "".join("".join(sheet.extract_text().split()) for sheet in paper.pages)


def test_paper_has_every_metric(visit):
    """What scrolls on a screen cannot on paper: each column is on it, and what only a screen needs is not."""
    page = visit()
    shown = page.locator("#runs tbody td.number:visible").all_inner_texts()
    text = printed(page)
    lost = [one for one in shown if "".join(one.split()) not in text]
    assert shown and not lost and "Compare" not in text.replace("Comparetheticked", ""), lost


@pytest.mark.parametrize("name", ["sweeps/sweep.html", "runs/main/index.html", "compare.html#run=main&run=forest"])
def test_paper_is_as_wide_as_the_tables(visit, name):
    page = visit(name)
    shown = page.locator("main td:visible, main th:visible").all_inner_texts()
    text = printed(page)
    lost = {one for one in shown if "".join(one.split()) not in text and one not in ("Compare", "")}
    assert len(shown) > 8 and not lost


def test_paper_has_the_ends_of_long_lines(visit):
    page = visit("runs/main/03_train.html")
    lines = [line for block in page.locator("pre:visible").all_inner_texts() for line in block.splitlines()]
    assert max(map(len, lines)) > 80
    text = printed(page)
    assert not [line for line in lines if "".join(line.split()) not in text]


def names_of(page: Page) -> list[str]:
    """The names of the runs that the table of the page shows, in order."""
    return page.locator("#runs tbody tr:visible th").all_inner_texts()


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_runs_are_sorted_filtered_and_opened(visit, size):
    page = visit(viewport=size)
    head = page.get_by_role("columnheader", name="average_precision", exact=True)
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert (head.get_attribute("aria-sort"), names_of(page)[0]) == ("ascending", "numbers")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert names_of(page)[:2] in (["main", "sweep/k00"], ["sweep/k00", "main"])
    page.get_by_label("Find in names and parameters").fill("random_forest done")
    assert names_of(page) == ["forest"]
    assert page.get_by_text("1 of 13 runs shown").is_visible()
    page.get_by_label("Find in names and parameters").fill("")
    status, sweep = (page.get_by_role("combobox", name=name, exact=True) for name in ("Status", "Sweep"))
    status.select_option("failed")
    sweep.select_option("sweep")
    assert names_of(page) == ["sweep/k09"]
    status.select_option("")
    sweep.select_option("none")
    page.get_by_role("link", name="main", exact=True).click()
    page.get_by_role("link", name="03_train").click()
    code = page.get_by_text("as_image(plot_learning_curve(curve))").locator("visible=true")
    fold = page.locator("details.code", has_text="plot_learning_curve")
    assert fold.get_attribute("open") is None
    fold.locator("summary").click()
    assert fold.locator(".highlight").is_visible() and code.count()
    page.get_by_role("button", name="Show all code").click()
    assert page.locator("details.code:not([open])").count() == 0
    page.get_by_role("button", name="Hide all code").click()
    assert page.locator("details.code[open]").count() == 0


def test_more_metrics_can_be_shown(visit):
    page = visit()
    assert not page.get_by_role("columnheader", name="threshold").is_visible()
    page.get_by_text("More metrics").click()
    page.get_by_label("threshold").check()
    assert page.get_by_role("columnheader", name="threshold").is_visible()
    assert page.locator("td[data-column=threshold]", has_text="0.142").first.is_visible()


@pytest.mark.parametrize("size", [pytest.param(PHONE, marks=pytest.mark.thorough), DESK], ids=["phone", "desk"])
def test_chosen_runs_stand_side_by_side(visit, size):
    page = visit(viewport=size)
    for name in ("main", "forest"):
        page.get_by_label(f"Compare {name}", exact=True).check()
    page.get_by_role("button", name="Compare the ticked runs").click()
    assert page.url.endswith("compare.html#run=forest&run=main")
    different = page.get_by_role("table", name="Parameters that differ")
    assert [row.inner_text().split() for row in different.get_by_role("row").all()] == [
        ["forest", "main"], ["model", "random_forest", "lightgbm"]
    ]  # fmt: skip
    recall = page.get_by_role("table", name="Metrics").get_by_role("row", name="recall", exact=False).first
    assert "0.77 0.69 – 0.83" in " ".join(recall.inner_text().split()) and "+0.03 ≈" in recall.inner_text()
    page.get_by_label("Run", exact=True).fill("sweep/k02")
    page.get_by_role("button", name="Add").click()
    assert page.url.endswith("&run=sweep%2Fk02")
    assert page.get_by_role("columnheader", name="sweep/k02").count() == 2
    page.get_by_role("button", name="Remove forest").click()
    assert page.get_by_role("columnheader", name="forest").count() == 0
    page.get_by_label("Run", exact=True).fill("nothing")
    page.get_by_role("button", name="Add").click()
    assert page.get_by_text("There is no run nothing.").is_visible()


def test_a_hostile_run_is_compared_as_text(visit):
    page = visit()
    for name in (HOSTILE, "main"):
        page.get_by_label(f"Compare {name}", exact=True).check()
    page.get_by_role("button", name="Compare the ticked runs").click()
    assert page.get_by_role("columnheader", name=HOSTILE).count() == 2


@pytest.mark.parametrize("size", [pytest.param(PHONE, marks=pytest.mark.thorough), DESK], ids=["phone", "desk"])
def test_a_sweep_is_drawn(visit, size):
    page = visit("sweeps/sweep.html", viewport=size)
    dots = page.locator("#chart a")
    assert (dots.count(), page.locator("#chart .range").count(), page.locator("#chart .best").count()) == (4, 0, 1)
    page.get_by_role("combobox", name="Metric", exact=True).select_option("average_precision")
    page.get_by_role("combobox", name="Parameter", exact=True).select_option("rate")
    assert page.locator("#chart .range").count() == 4
    assert page.get_by_text("rate (logarithmic)").is_visible()
    best = page.locator("#chart a", has=page.locator(".best"))
    label = "k00: average_precision 0.85 (95 % interval 0.77 – 0.91), rate 0.001, the best"
    assert best.get_attribute("aria-label") == label
    best.locator(".dot").click()
    page.wait_for_url("**/runs/sweep/k00/index.html")
    assert page.locator("h1").inner_text() == "sweep/k00"


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_nothing_scrolls_sideways_on_a_phone(visit, site, scheme):
    page = visit(viewport=PHONE, color_scheme=scheme)
    for name in page_names(site):
        page.goto(address(site, name))
        page.locator("details").evaluate_all("folds => { for (const fold of folds) fold.open = true; }")
        assert page.evaluate(CONTRAST) == [], name
        assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0, name
        assert page.evaluate("typeof hacked") == "undefined", name


def test_without_scripts_all_numbers_and_cells_are_there(visit):
    page = visit(java_script_enabled=False)
    assert len(names_of(page)) == 13 and page.get_by_text("0.77 – 0.91").first.is_visible()
    assert not page.locator("input:visible, select:visible, button[type=submit]:visible").count()
    page = visit("sweeps/sweep.html", java_script_enabled=False)
    assert len(names_of(page)) == 5 and not page.locator("#chart").is_visible()
    page = visit("runs/main/03_train.html", java_script_enabled=False)
    fold = page.locator("details.code", has_text="plot_learning_curve")
    fold.locator("summary").click()
    assert fold.locator(".highlight").is_visible()


def test_the_keyboard_reaches_the_content_first(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'main'")
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
