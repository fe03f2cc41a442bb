"""The scoring page in a real browser, served by `fraudnb serve`: what an analyst does with it, by mouse and by
keyboard, on a phone and on a desk; and what they see when something is wrong.
"""

import csv
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import PACKAGE_ROOT, answers, free_port, mostly_thorough
from playwright.sync_api import Page, expect
from project import BIN, command, environment, wait_until
from serving import Server, serving

CONTRAST = Path(__file__).with_name("report_contrast.js").read_text(encoding="utf-8")
WIDTHS = {"phone": 375, "tablet": 768, "desk": 1440}
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def project(small_run, tmp_path_factory) -> Path:
    """A finished run; files to score, one of them hostile."""
    folder = tmp_path_factory.mktemp("page") / "project"
    shutil.copytree(small_run, folder)
    rows = pd.read_parquet(folder / "data/main/test.parquet").drop(columns="Class").head(600)
    rows.insert(0, "id", [f"t-{number}" for number in range(600)])
    rows["<b>note</b>"] = '<img src=x onerror="alert(1)">, "quoted"\nand broken'
    rows.to_csv(folder / "rows.csv", index=False)
    rows.to_parquet(folder / "rows.parquet")
    wrong = rows.head(20).astype({"V3": object})
    wrong.loc[wrong.index[7], "V3"] = "<script>alert(1)</script>"
    wrong.loc[wrong.index[9], "Amount"] = -5
    wrong.to_csv(folder / "wrong.csv", index=False)
    (folder / "empty.csv").touch()
    (folder / "cut.parquet").write_bytes((folder / "rows.parquet").read_bytes()[:5000])
    return folder


@pytest.fixture(scope="module")
def server(project, tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "log", project / "models/main") as started:
        yield started


@pytest.fixture
def visit(browser, server) -> Iterator[Open]:
    """A function that opens the page; at the end no page may have shown a dialog, thrown, or asked another host."""
    contexts, wrong = [], []

    def open_page(fragment: str = "", **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda one: one.url.startswith((server.url, "data:", "blob:")) or wrong.append(one.url))
        page.goto(f"{server.url}/{fragment}")
        page.wait_for_selector("main.fraudnb[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def upload(page: Page, file: Path) -> None:
    tab(page, "A file")
    page.get_by_label("Drop a CSV or Parquet file here").set_input_files(file)


def scored(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


# -- one transaction


def test_one_probability_everywhere(visit, server, project):
    """Page, API and `fraudnb score` give the same row the same probability; the reasons are drawn and told."""
    page = visit()
    expect(page.get_by_role("note")).to_contain_text("Demonstration model")
    expect(page.locator("header")).to_contain_text("95 % interval")
    page.get_by_role("button", name="Load a fraudulent example").click()
    shown = page.locator("[data-probability]")
    expect(shown).to_be_visible()
    assert page.locator(".reasons li").count() > 0
    card = server.ask("GET", "/api/model").json()
    row = {name: card["fraud_medians"][name] for name in card["inputs"]}
    answer = server.score([row]).json()["rows"][0]
    pd.DataFrame([row]).to_csv(project / "one.csv", index=False)
    assert command(project, "score", "one.csv", "--out", "one-scored.csv").returncode == 0
    told = float(scored(project / "one-scored.csv")[0]["probability"])
    assert abs(float(shown.get_attribute("data-probability")) - answer["probability"]) < 1e-6
    assert abs(told - answer["probability"]) < 1e-6


def test_paste_and_mistakes(visit, project):
    """A row of the file is pasted as it stands; what is no number is named, and has the focus."""
    page = visit()
    lines = (project / "rows.csv").read_text(encoding="utf-8").splitlines()
    frame = pd.read_csv(project / "rows.csv").iloc[[0]][["Time", *(f"V{n}" for n in range(1, 29)), "Amount"]]
    page.get_by_role("button", name="Paste a row").click()
    box = page.get_by_label("A row, with or without its header")
    for text in (
        f"{lines[0]}\n{lines[1]}",
        frame.to_csv(header=False, index=False, sep="\t"),
        frame.to_json(orient="records")[1:-1],
    ):
        page.get_by_role("button", name="Clear").click()
        box.fill(text)
        page.get_by_role("button", name="Take these values").click()
        expect(page.locator("[data-probability]")).to_be_visible()
        assert float(page.get_by_label("V7", exact=True).input_value()) == pytest.approx(float(frame["V7"].iloc[0]))
    box.fill("1,2,3")
    page.get_by_role("button", name="Take these values").click()
    expect(page.get_by_text("This row has 3 values")).to_be_visible()
    page.get_by_label("V2", exact=True).fill("many")
    page.get_by_label("Amount", exact=True).fill("-1")
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator(".wrong")).to_contain_text("Amount, V2: a number is needed")
    assert page.evaluate("document.activeElement.name") == "Amount"
    assert page.locator("[aria-invalid=true]").count() == 2


def test_keyboard_alone(visit):
    """Tabs by arrow keys, the example by Enter, the threshold by arrow keys; every field has a name."""
    page = visit()
    page.get_by_role("tab", name="One transaction").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Load a typical example"
    page.keyboard.press("Enter")
    expect(page.locator(".verdict.pass")).to_be_visible()
    page.get_by_role("tab", name="One transaction").focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == "Threshold"
    before = page.get_by_role("slider", name="Threshold").input_value()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert float(page.get_by_role("slider", name="Threshold").input_value()) > float(before)
    nameless = "[...document.querySelectorAll('main input, main textarea')].filter((one) => !one.labels.length).length"
    assert page.evaluate(nameless) == 0


# -- a file


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_file(visit, project, tmp_path, name):
    """Sorted by risk, searched, explained, downloaded with all rows and columns in order; nothing of it is HTML."""
    page = visit()
    upload(page, project / name)
    expect(page.get_by_text("600 transactions of")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("1 to 25 of 600")
    assert page.locator("main img, main b:has-text('note')").count() == 0
    ids = page.locator("tbody th").all_inner_texts()
    page.get_by_role("button", name="Less risky").click()
    expect(page.get_by_role("status")).to_have_text("26 to 50 of 600")
    page.get_by_label("Search in all columns").fill("t-59")
    expect(page.get_by_role("status")).to_have_text("1 to 11 of 11")
    page.get_by_role("button", name="Why t-599").click()
    expect(page.get_by_role("heading", name="Transaction t-599")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the scored file").click()
    download.value.save_as(tmp_path / "scored.csv")
    rows, original = scored(tmp_path / "scored.csv"), scored(project / "rows.csv")
    assert [row["id"] for row in rows] == [row["id"] for row in original]
    assert rows[5]["<b>note</b>"] == original[5]["<b>note</b>"]
    by_risk = sorted(rows, key=lambda row: -float(row["probability"]))
    assert ids == [row["id"] for row in by_risk[:25]]
    assert command(project, "score", name, "--out", tmp_path / "command.csv").returncode == 0
    told = {row["id"]: float(row["probability"]) for row in scored(tmp_path / "command.csv")}
    assert all(abs(told[row["id"]] - float(row["probability"])) < 1e-6 for row in rows)


def test_files_that_do_not_fit(visit, project):
    """Row, column, value and reason; and a sentence for a file that is no table."""
    page = visit()
    upload(page, project / "wrong.csv")
    cells = page.locator("tbody tr").nth(0).locator("td")
    expect(cells).to_have_text(["8", "V3", "<script>alert(1)</script>", "is not a number"])
    expect(page.locator("tbody tr").nth(1)).to_contain_text("is negative")
    for name, words in (("empty.csv", "The file is empty."), ("cut.parquet", "This is no Parquet file")):
        upload(page, project / name)
        expect(page.locator(".notice.bad:visible")).to_contain_text(words)
    upload(page, project / "rows.csv")
    expect(page.get_by_text("600 transactions of")).to_be_visible()


# -- the threshold


def test_threshold_travels(visit, project, tmp_path):
    """It is in the address, holds in all tabs and in the download, and goes back to the model's own."""
    page = visit()
    tab(page, "Threshold")
    page.get_by_label("As a number").fill("0.000001")
    page.keyboard.press("Enter")
    assert "threshold=0.000001" in page.url and "tab=threshold" in page.url
    again = visit(page.url.rpartition("/")[2])
    assert again.get_by_label("As a number").input_value() == "0.000001"
    upload(again, project / "rows.csv")
    expect(again.locator("tbody tr").first).to_contain_text("alert")
    with again.expect_download() as download:
        again.get_by_role("button", name="Download the scored file").click()
    download.value.save_as(tmp_path / "scored.csv")
    rows = scored(tmp_path / "scored.csv")
    assert [row["decision"] for row in rows] == [
        "alert" if float(row["probability"]) >= 1e-6 else "pass" for row in rows
    ]
    tab(again, "Threshold")
    again.get_by_role("button", name="The model's own").click()
    assert "threshold=" not in again.url


# -- how it looks, and what may break


@pytest.mark.parametrize("scheme", mostly_thorough(["light", "dark"], ["light"]))
@pytest.mark.parametrize("width", mostly_thorough(WIDTHS, ["phone"]))
def test_fits_and_is_readable(visit, project, width, scheme):
    """No sideways scrolling of the page, and a contrast of 4.5 everywhere, with results shown."""
    page = visit(viewport={"width": WIDTHS[width], "height": 900}, color_scheme=scheme)
    page.get_by_role("button", name="Load a fraudulent example").click()
    expect(page.locator("[data-probability]")).to_be_visible()
    for name in ("One transaction", "Threshold", "A file"):
        if name == "A file":
            upload(page, project / "rows.csv")
            expect(page.get_by_role("status")).to_be_visible()
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], name
        assert page.evaluate(CONTRAST) == [], name


@pytest.mark.thorough
def test_lost_connection(visit, server):
    """The kernel dies under the page: it says so, and what was filled in is there after reconnecting."""
    page = visit()
    page.get_by_label("V1", exact=True).fill("1.25")
    ready = {one.pid for one in server.kernels()}
    for process in server.kernels():
        process.kill()
    page.evaluate("window.dispatchEvent(new Event('online'))")
    expect(page.get_by_text("The connection is lost.")).to_be_visible(timeout=15_000)
    page.get_by_role("button", name="Reconnect").click()
    page.wait_for_selector("main.fraudnb[data-ready]", timeout=30_000)
    assert page.get_by_label("V1", exact=True).input_value() == "1.25"
    assert ready.isdisjoint(one.pid for one in server.kernels())


@pytest.mark.thorough
def test_voila_alone(browser, project):
    """`voila nbs/05_score.ipynb`: the page and nothing else, its kernel answers, also about a file, and it alone."""
    port, log = free_port(), project / "voila.log"
    shutil.copy(PACKAGE_ROOT / "voila.json", project)
    words = ["nbs/05_score.ipynb", "--no-browser", "--port", str(port)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [BIN / "voila", *words], cwd=project, env=environment(), stdout=output, stderr=output
        )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/static/none"), "voila listens")
        page, elsewhere = browser.new_page(), []
        here = (f"http://127.0.0.1:{port}/", f"ws://127.0.0.1:{port}/", "data:", "blob:")
        page.on("request", lambda one: one.url.startswith(here) or elsewhere.append(one.url))
        page.goto(f"http://127.0.0.1:{port}/", timeout=60_000)
        page.wait_for_selector("main.fraudnb[data-ready]", timeout=60_000)
        upload(page, project / "rows.csv")
        expect(page.get_by_text("600 transactions of")).to_be_visible(timeout=20_000)
        seen = page.locator("body").inner_text()
        assert "Nothing is fitted here" not in seen and "Traceback" not in seen
        assert elsewhere == []
        page.close()
    finally:
        process.terminate()
        process.wait(20)
