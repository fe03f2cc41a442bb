"""The open page while its model is replaced, its kernel dies or its server is away: never a mix of two models,
and nothing of a person's lost without a question.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page, expect
from serving import Server, serving, toy_bundle, toy_onnx

from fraudnb.model import file_sha256

CURVE = [
    {"threshold": at, "precision": 0.9, "recall": 1 - at, "alerts_a_day": 10, "expected_cost": 1} for at in (0.9, 0.3)
]
PATIENCE = 30_000  # milliseconds for what takes a moment on an idle machine


def evaluation(onnx: bytes, threshold: float) -> str:
    decided = {"model_sha256": hashlib.sha256(onnx).hexdigest(), "threshold": threshold, "curve": CURVE}
    return json.dumps(decided | {"metrics": {"average_precision": threshold}})


def replace(server: Server, folder: Path, slope: float, threshold: float, name: str = "second") -> str:
    """Put another bundle into `folder`, and wait until the server has it; its SHA-256."""
    (folder / "evaluation.json").write_text(evaluation(toy_onnx(slope), threshold))
    toy_bundle(folder, name, slope)
    sha256 = file_sha256(folder / "model.onnx")

    def served() -> bool:
        card = server.ask("GET", "/api/model").json()
        return (card["sha256"], card.get("threshold")) == (sha256, threshold)

    server.until(served, 30)
    return sha256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle, and a file of 200 rows."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/evaluation.json").write_text(evaluation(toy_onnx(1.0), 0.6))
    values = np.random.default_rng(3).normal(size=200)
    rows = pd.DataFrame({"id": [f"t{at}" for at in range(200)], "V1": values, "V2": 0.0, "Amount": 10.0})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    return toy_bundle(tmp_path / "model", "first")


@pytest.fixture
def server(folder) -> Iterator[Server]:
    with serving(folder.parent / "log", folder, FRAUDNB_READY_PAGES="1") as started:
        yield started


@pytest.fixture
def visit(browser, server) -> Iterator[Callable[[str], Page]]:
    """A function that opens the page; nothing on it may throw."""
    contexts, wrong = [], []

    def open_page(fragment: str = "") -> Page:
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{server.url}/{fragment}")
        page.wait_for_selector("main.fraudnb[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def score_one(page: Page, value: float) -> None:
    for name, number in (("V1", value), ("V2", 0), ("Amount", 10)):
        page.get_by_label(name, exact=True).fill(str(number))
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("[data-probability]")).to_be_visible(timeout=PATIENCE)


def upload(page: Page, file: Path) -> None:
    tab(page, "A file")
    page.get_by_label("Drop a CSV or Parquet file here").set_input_files(file)
    expect(page.get_by_text("200 transactions of rows.csv were scored")).to_be_visible(timeout=PATIENCE)


def alerts_shown(page: Page) -> int:
    return int(page.locator(".numbers div:has-text('alerts,') b").first.inner_text())


def downloaded(page: Page, to: Path) -> tuple[str, list[dict[str, str]]]:
    """The name and the rows of the page's download."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the scored file").click()
    download.value.save_as(to)
    return download.value.suggested_filename, list(csv.DictReader(io.StringIO(to.read_text(encoding="utf-8"))))


def of_api(server: Server, file: Path) -> list[dict[str, str]]:
    """The file scored by the API at the model's own threshold."""
    answer = server.score(file.read_bytes(), Content_Type="text/csv")
    return list(csv.DictReader(io.StringIO(answer.body.decode())))


def look(page: Page) -> None:
    """Come back to the page: it then asks at once which model there is, not only when its next turn comes."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_model_replaced_under_an_open_page(visit, server, folder, tmp_path):
    """Header, threshold, row and banner follow; the table stays the former model's, marked, until scored again."""
    page, rows = visit(), folder.parent / "rows.csv"
    before = file_sha256(folder / "model.onnx")
    expect(page.locator("header")).to_contain_text(f"Model first, version {before[:10]}")
    score_one(page, 0.5)
    assert float(page.locator("[data-probability]").get_attribute("data-probability")) == pytest.approx(
        1 / (1 + np.exp(-0.5)), abs=1e-6
    )
    upload(page, rows)
    first = of_api(server, rows)
    assert alerts_shown(page) == sum(row["decision"] == "alert" for row in first)

    after = replace(server, folder, slope=3.0, threshold=0.9)
    look(page)
    banner = page.locator(".notice.changed")
    expect(banner).to_contain_text(re.compile(r"The model was replaced at \d\d:\d\d"), timeout=PATIENCE)
    expect(banner).to_contain_text(f"second, version {after[:10]}; before, first, version {before[:10]}")
    expect(banner).to_contain_text("Alerts are now from 90.0 % on; before, from 60.0 % on")
    expect(page.locator("header")).to_contain_text(f"Model second, version {after[:10]}")
    expect(page.get_by_text("Scored by the former model.")).to_be_visible()
    assert alerts_shown(page) == sum(row["decision"] == "alert" for row in first)
    page.get_by_role("button", name="Why").first.click()
    expect(page.get_by_text("The model that scored this file has been replaced")).to_be_visible()
    name, old = downloaded(page, tmp_path / "old.csv")
    assert before[:10] in name and {row["model_sha256"] for row in old} == {before}
    assert [row["decision"] for row in old] == [row["decision"] for row in first]

    page.get_by_role("button", name="Score the file again").click()
    expect(page.get_by_text("Scored by the former model.")).to_be_hidden(timeout=PATIENCE)
    second = of_api(server, rows)
    alerts = sum(row["decision"] == "alert" for row in second)
    assert alerts_shown(page) == alerts != sum(row["decision"] == "alert" for row in first)
    page.get_by_role("button", name="Why").first.click()
    expect(page.get_by_role("heading", name="Transaction t")).to_be_visible(timeout=PATIENCE)
    name, new = downloaded(page, tmp_path / "new.csv")
    assert name == f"rows-scored-second-{after[:10]}.csv"
    assert {(row["model"], row["model_sha256"], float(row["threshold"])) for row in new} == {("second", after, 0.9)}
    for row, told in zip(new, second, strict=True):
        assert abs(float(row["probability"]) - 1 / (1 + np.exp(-3 * float(row["V1"])))) < 1e-6
        assert row["decision"] == told["decision"] == ("alert" if float(row["probability"]) >= 0.9 else "pass")

    tab(page, "One transaction")
    shown = page.locator("[data-probability]")
    expect(shown).to_be_visible()
    assert float(shown.get_attribute("data-probability")) == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-6)
    expect(page.locator(".verdict.pass:visible")).to_contain_text("below the threshold of 90.0 %")
    tab(page, "Threshold")
    assert page.get_by_label("As a number").input_value() == "0.9"
    banner.get_by_role("button", name="Got it").click()
    expect(banner).to_have_count(0)


@pytest.mark.thorough
def test_the_first_to_notice_is_a_question(visit, server, folder):
    """No ping between: the row that is asked is answered by the new model, with its name; a chosen threshold stays."""
    page = visit("#threshold=0.7")
    replace(server, folder, slope=3.0, threshold=0.9)
    score_one(page, 0.5)
    assert float(page.locator("[data-probability]").get_attribute("data-probability")) == pytest.approx(
        1 / (1 + np.exp(-1.5)), abs=1e-6
    )
    expect(page.locator("header")).to_contain_text("Model second")
    expect(page.locator(".notice.changed")).to_contain_text("The threshold of 70.0 % that you have chosen stays")
    expect(page.locator(".verdict.alert")).to_contain_text("the threshold of 70.0 %")
    tab(page, "Threshold")
    page.get_by_role("button", name="The model's own").click()
    assert page.get_by_label("As a number").input_value() == "0.9"


@pytest.mark.thorough
def test_a_file_asked_of_a_model_that_is_gone(visit, server, folder):
    page, rows = visit(), folder.parent / "rows.csv"
    replace(server, folder, slope=3.0, threshold=0.9)
    upload(page, rows)
    assert alerts_shown(page) == sum(row["decision"] == "alert" for row in of_api(server, rows))
    expect(page.locator("header")).to_contain_text("Model second")
    assert page.get_by_text("Scored by the former model.").count() == 0


@pytest.mark.thorough
def test_another_threshold_of_the_same_model(visit, server, folder):
    """An evaluation anew: the table is decided by the new threshold, and the banner says that it was changed."""
    page, rows = visit(), folder.parent / "rows.csv"
    upload(page, rows)
    replace(server, folder, slope=1.0, threshold=0.8, name="first")
    look(page)
    expect(page.locator(".notice.changed")).to_contain_text(
        "The threshold of the model was changed at", timeout=PATIENCE
    )
    assert alerts_shown(page) == sum(row["decision"] == "alert" for row in of_api(server, rows))
    assert page.get_by_text("Scored by the former model.").count() == 0


def test_a_kernel_that_dies_takes_nothing_along(visit, server, folder):
    """Said soon, without a ping; the table is explained all the same, after Reconnect by the server itself."""
    page = visit()
    upload(page, folder.parent / "rows.csv")
    for process in server.kernels():
        process.kill()
    expect(page.get_by_text("The connection is lost.")).to_be_visible(timeout=12_000)
    page.get_by_role("button", name="Reconnect").click()
    expect(page.get_by_text("The connection is lost.")).to_be_hidden()
    page.get_by_role("button", name="Why").first.click()
    expect(page.get_by_role("heading", name="Transaction t")).to_be_visible()
    tab(page, "One transaction")
    score_one(page, 0.5)
    replace(server, folder, slope=3.0, threshold=0.9)
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.get_by_text("This page still shows the former one.")).to_be_visible()
    expect(page.locator("header")).to_contain_text("Model first")


@pytest.mark.thorough
def test_a_server_that_is_away(visit, server, folder):
    """Reconnect stays on the page, which goes on by itself once the server is there again."""
    page = visit()
    upload(page, folder.parent / "rows.csv")
    server.process.kill()
    server.process.wait()
    expect(page.get_by_text("The connection is lost.")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Reconnect").click()
    expect(page.get_by_text("The server does not answer yet.")).to_be_visible(timeout=PATIENCE)
    with serving(folder.parent / "log2", folder, port=server.port, FRAUDNB_READY_PAGES="1"):
        expect(page.get_by_text("The server does not answer yet.")).to_be_hidden(timeout=PATIENCE)
        page.get_by_role("button", name="Why").first.click()
        expect(page.get_by_role("heading", name="Transaction t")).to_be_visible(timeout=PATIENCE)


def test_leaving_asks_while_a_scored_file_is_not_saved(visit, server, folder, tmp_path):
    """Reload and Back ask, and whoever stays goes on with the same kernel; after the download nobody is asked."""
    page, asked = visit(), []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    score_one(page, 0.5)
    page.evaluate("setTimeout(() => location.reload())")
    page.wait_for_function("!document.querySelector('[data-probability]')")
    page.wait_for_selector("main.fraudnb[data-ready]")
    assert asked == [] and page.get_by_label("V1", exact=True).input_value() == "0.5"
    upload(page, folder.parent / "rows.csv")
    page.get_by_label("Search in all columns").click()
    page.evaluate("setTimeout(() => location.reload())")
    server.until(lambda: page.wait_for_timeout(50) or asked)
    assert asked == ["beforeunload"]
    page.get_by_role("button", name="Why").first.click()
    expect(page.get_by_role("heading", name="Transaction t")).to_be_visible()
    expect(page.get_by_text("The connection is lost.")).to_be_hidden()
    downloaded(page, tmp_path / "saved.csv")
    page.evaluate("setTimeout(() => location.reload())")
    page.wait_for_function("!document.querySelector('#fraudnb-find')")
    assert asked == ["beforeunload"]
