"""Pages that nobody uses: they say so, give their places to others, and are gone on with by one click."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from serving import Server, serving, toy_bundle


def fresh(context: Any, server: Server) -> Page:
    page = context.new_page()
    page.set_default_timeout(90_000)
    page.goto(f"{server.url}/#threshold=0.25")
    page.wait_for_selector("main.fraudnb[data-ready]")
    return page


@pytest.fixture
def contexts(browser: Any) -> Iterator[Any]:
    opened = []

    def open_context() -> Any:
        opened.append(browser.new_context())
        return opened[-1]

    yield open_context
    for context in opened:
        context.close()


def left_alone(tmp_path, contexts, tabs: int, idle: int) -> None:
    """A visitor types in the first of `tabs` and leaves; another comes; the first comes back and goes on."""
    environment = {"FRAUDNB_VISITORS": str(tabs), "FRAUDNB_IDLE_SECONDS": str(idle), "FRAUDNB_READY_PAGES": "1"}
    with serving(tmp_path / "log", toy_bundle(tmp_path / "model"), **environment) as server:
        one = contexts()
        pages = []
        for _ in range(tabs):
            if pages:
                pages[0].get_by_label("V1", exact=True).press("End")  # the first stays in use until all are open
            pages.append(fresh(one, server))
        first = pages[0]
        first.bring_to_front()
        first.get_by_label("V1", exact=True).fill("1.25")
        assert server.ask("GET", "/").status == 503
        expect(first.get_by_text("Are you still there?")).to_be_visible(timeout=1000 * idle)
        first.wait_for_timeout(2000 * idle)
        expect(first.get_by_text("This page was closed.")).to_be_visible()
        server.until(lambda: server.metric('fraudnb_kernels{part="visited"}') == 0, 2 * idle)
        assert fresh(contexts(), server).get_by_text("toy").first.is_visible()
        first.get_by_role("button", name="Go on").click()
        first.wait_for_function("performance.getEntriesByType('navigation')[0].type === 'reload'")
        first.wait_for_selector("main.fraudnb[data-ready]")
        assert first.get_by_label("V1", exact=True).input_value() == "1.25"
        assert "threshold=0.25" in first.url
        ended = [event["reason"] for event in server.events() if event["event"] == "kernel ends"]
        assert ended.count("idle") == tabs


def test_a_page_left_alone_gives_up_its_place(tmp_path, contexts):
    left_alone(tmp_path, contexts, tabs=2, idle=25)


@pytest.mark.thorough
def test_twenty_pages_left_alone_give_up_their_places(tmp_path, contexts):
    left_alone(tmp_path, contexts, tabs=20, idle=60)


@pytest.mark.thorough
def test_a_page_in_use_stays(tmp_path, contexts):
    """A key now and then is use, and the warning's button is; the page's own questions are none."""
    idle = 25
    with serving(tmp_path / "log", toy_bundle(tmp_path / "model"), FRAUDNB_IDLE_SECONDS=str(idle)) as server:
        page = fresh(contexts(), server)
        for _ in range(9):
            page.wait_for_timeout(4000)
            page.get_by_label("V1", exact=True).press("1")
        expect(page.get_by_text("Are you still there?")).to_be_visible(timeout=1000 * idle)
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_text("Are you still there?")).to_have_count(0)
        page.wait_for_timeout(5000)
        assert server.metric('fraudnb_kernels{part="visited"}') == 1
