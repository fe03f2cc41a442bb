"""The page of `fraudnb serve` in a real browser: it works under its own policy, always finishes, and leaves nothing."""

import re
from collections.abc import Iterator

import pytest
from serving import Server, serving, toy_bundle

TOKEN = "a token of the tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pages")
    with serving(folder / "log", toy_bundle(folder / "model"), FRAUDNB_TOKEN=TOKEN) as running:
        yield running


@pytest.mark.thorough
def test_pages_finish_and_their_kernels_end(server, browser):
    """Ten new visitors log in: widgets, no error, nothing from elsewhere; afterwards none of their kernels is left."""
    wrong = []
    for _ in range(10):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda one: one.url.startswith((server.url, "data:", "blob:", "ws:")) or wrong.append(one.url)
        )
        # all that the page needs of Voila's chunks is in chunks.js: after an update of Voila, CHUNKS is to be set anew
        page.on("request", lambda one: re.search(r"/\d+\.voila\.js", one.url) and wrong.append(one.url))
        page.goto(f"{server.url}/")
        assert page.url.endswith("/login")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button").click()
        page.wait_for_selector("main.fraudnb[data-ready]")
        assert page.get_by_text("toy").first.is_visible()
        context.close()
    assert not wrong
    server.until(lambda: server.metric('fraudnb_kernels{part="visited"}') == 0, 15)
    server.until(lambda: len(server.kernels()) == 2, 15)  # those for the next visitors


def test_a_page_that_another_site_shows_in_a_frame_is_refused(server, browser):
    context = browser.new_context()
    page = context.new_page()
    page.set_content(f'<iframe src="{server.url}/login"></iframe>')
    page.wait_for_timeout(500)
    assert not any(frame.get_by_label("Token").count() for frame in page.frames)
    context.close()
