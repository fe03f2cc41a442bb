"""`fraudnb report`: the real command on executed notebooks, good, failed, damaged and hostile ones; what the site
holds, what it runs and fetches (nothing), what is rendered again, and what is never removed.

What needs no process of its own calls the command's own function; rendering in several processes is tested as such.
"""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import PACKAGE_ROOT, made_once
from project import BIN, command, environment, paragraph, wait_until, write_notebook
from report_runs import BREAKOUT, HOSTILE, write_executed, write_run, write_site

from fraudnb.cli import main


class Page(HTMLParser):
    """What a test asks of a page: its elements with their attributes, and the text of scripts and of all else."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A project with runs of every kind, and its site; to be read only."""
    return made_once(tmp_path_factory, worker_id, "report", write_site)


@pytest.fixture(scope="module")
def pages(project: Path) -> dict[str, Page]:
    """All pages of the site, by their paths in it."""
    site = project / "site"
    return {str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))}


def report(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    """Exit code and output of `fraudnb report` with `words`: the command's own function, in this process."""
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, words)])
    return stop.value.code, *capsys.readouterr()


@pytest.fixture
def small(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two runs, the working folder of this process."""
    (tmp_path / "settings.ini").touch()
    write_run(tmp_path / "runs" / "a", model="svc")
    write_run(tmp_path / "runs" / "b", model="lightgbm")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def times(site: Path) -> dict[str, int]:
    """When each file of the site was written, by its path in it."""
    return {str(path.relative_to(site)): path.stat().st_mtime_ns for path in site.rglob("*") if path.is_file()}


# -- what the pages say


def test_every_run_and_notebook_has_a_page_that_the_index_leads_to(project, pages):
    links = {one["href"].partition("#")[0] for page in pages.values() for one in page.all("a") if "href" in one}
    assert links >= {"runs/main/index.html", "runs/sweep/k00/index.html", "sweeps/sweep.html", "compare.html"}
    for name, page in pages.items():
        for one in page.all("a"):
            href = one.get("href", "")
            if href and not href.startswith(("#", "http")):
                target = (project / "site" / name).parent / href.partition("#")[0]
                assert target.is_file(), (name, href)


def test_the_index_tells_status_numbers_and_parameters(pages):
    text = pages["index.html"].text
    assert "13 runs: 7 done, 3 failed, 1 damaged, 1 numbers only, 1 unfinished." in text
    statuses = [one["data-status"] for one in pages["index.html"].all("span") if "data-status" in one]
    assert {status: statuses.count(status) for status in ("done", "unfinished")} == {"done": 7, "unfinished": 1}
    assert "0.77 – 0.91" in text and "random_forest" in text and "16.2 s" in text


def test_a_failed_notebook_shows_its_cell_first(pages):
    page = pages["runs/broken/03_square.failed.html"].text
    order = ["Failed in cell 3 of 03_square", "ValueError: a side is not negative", "check_side(side)", "in check_side"]
    places = [page.index(one) for one in [*order, "Square\n"] if one in page]
    assert len(places) >= 4 and places == sorted(places)
    assert "\x1b" not in page
    assert "ValueError: a side is not negative" in pages["index.html"].text
    assert "check_side(side)" in pages["runs/broken/index.html"].text


@pytest.mark.thorough
def test_a_run_that_fails_for_real_leads_to_its_cell(tmp_path):
    write_notebook(tmp_path / "nbs/03_square.ipynb", "area = 1", "1 / (area - 1)", parameters="side: float = 2.0")
    (tmp_path / "settings.ini").touch()
    assert command(tmp_path, "run", "03_square", "-p", "side", "3", "--engine", "fresh").returncode == 1
    assert command(tmp_path, "report", "main", "--out", "pages").returncode == 0
    page = Page(tmp_path / "pages/runs/main/03_square.failed.html")
    assert "Failed in cell 4 of 03_square" in page.text and "ZeroDivisionError: division by zero" in page.text
    assert page.text.index("1 / (area - 1)") < page.text.index("Show all code")
    assert "papermill" not in page.text.lower() and "Exception was encountered" not in page.text


def test_a_damaged_notebook_stops_nothing(pages):
    assert "not a whole notebook" in pages["runs/cut/03_train.html"].text
    assert "damaged" in pages["runs/cut/index.html"].text


def test_figures_have_a_text_code_is_folded_and_contents_lead_to_headings(pages):
    page = pages["runs/main/03_train.html"]
    assert [one["alt"] for one in page.all("img")] == ["Figure 1. Learning curve: More rows help."]
    assert page.all("details") and all("open" not in one for one in page.all("details") if one.get("class") == "code")
    ids = {one.get("id") for _, one in page.elements}
    inner = [one["href"][1:] for one in page.all("a") if one.get("href", "").startswith("#cell")]
    assert inner and set(inner) <= ids


def test_pages_are_built_for_readers_of_every_kind(pages):
    for name, page in pages.items():
        assert page.all("html") == [{"lang": "en"}], name
        assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1, name
        assert page.all("a")[0] == {"class": "skip", "href": "#main"}, name
        assert all(one.get("alt") for one in page.all("img")), name
        ids = [one["id"] for _, one in page.elements if "id" in one]
        assert len(ids) == len(set(ids)), name
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)), (name, levels)
    assert len(pages["index.html"].all("caption")) == len(pages["index.html"].all("table")) == 1


# -- what they do: nothing but our own scripts, nothing from a network


def test_no_page_runs_or_fetches_what_a_notebook_brought(project, pages):
    own = {(PACKAGE_ROOT / "fraudnb/report_site" / one).read_text() for one in ("report.js", "fold.js")}
    for name, page in pages.items():
        kinds = [one.get("type", "") for one in page.all("script")]
        running = [text for kind, text in zip(kinds, page.scripts, strict=True) if kind != "application/json"]
        assert set(running) <= own, name
        [policy] = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
        hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running}
        assert set(re.findall(r"'sha256-([^']*)'", policy)) == hashes and "default-src 'none'" in policy, name
        assert "unsafe" not in policy and "http" not in policy, name
        tags = {tag for tag, _ in page.elements}
        assert not {"iframe", "object", "embed", "base", "style", "svg", "math"} & tags, name
        for tag, attributes in page.elements:
            assert not any(one.startswith("on") or one in ("style", "formaction", "action") for one in attributes), name
            assert attributes.get("src", "data:").startswith("data:"), (name, attributes)
            if tag == "link":
                assert attributes["href"] == "data:," or attributes["href"].endswith("report.css"), name
            assert re.match(r"(?i)\s*(javascript|vbscript|data|//)", attributes.get("href", "")) is None or (
                attributes["href"] == "data:,"
            ), name
    css = (project / "site/report.css").read_text()
    assert "url(" not in css and "@import" not in css


def test_names_and_values_of_all_kinds_show_as_text(pages):
    assert HOSTILE in pages["index.html"].text and BREAKOUT in pages["index.html"].text
    [name] = [one for one in pages if one.startswith("runs/_img") and one.count("/") == 2 and "index" not in one]
    assert re.fullmatch(r"[\w./-]+", name)
    page = pages[name].text
    assert f"{HOSTILE}: {BREAKOUT}" in page and "[picture left out: picture]" in page
    [data] = [text for text in pages["compare.html"].scripts if text.startswith("{")]
    assert HOSTILE in [run["name"] for run in json.loads(data)["runs"]]


# -- what is rendered again


def test_what_has_not_changed_is_not_written_again(small, capsys):
    assert report(capsys)[:2] == (0, "2 runs, 4 notebooks rendered: site/index.html\n")
    before = times(small / "site")
    assert report(capsys)[:2] == (0, "2 runs, 0 notebooks rendered, 4 unchanged: site/index.html\n")
    assert times(small / "site") == before
    write_executed(small / "runs/a/04_evaluate.ipynb", exception=None)
    assert report(capsys)[1] == "2 runs, 1 notebook rendered, 3 unchanged: site/index.html\n"
    after = times(small / "site")
    written = {name for name in after if after[name] != before[name]}
    assert written == {"runs/a/04_evaluate.html", ".fraudnb-report.json"}


def test_a_page_that_was_removed_is_made_again(small, capsys):
    report(capsys)
    (small / "site/runs/a/03_train.html").unlink()
    assert "1 notebook rendered, 3 unchanged" in report(capsys)[1]
    assert (small / "site/runs/a/03_train.html").is_file()


def test_pages_of_runs_that_are_gone_go_and_nothing_else(small, capsys):
    report(capsys)
    (small / "site/runs/b/notes.txt").write_text("mine")
    (small / "runs/b").rename(small / "b")
    assert report(capsys)[0] == 0
    assert [path.name for path in (small / "site/runs/b").iterdir()] == ["notes.txt"]
    (small / "runs/a").rename(small / "runs/c")
    assert report(capsys)[0] == 0
    assert not (small / "site/runs/a").exists() and (small / "site/runs/c/index.html").is_file()


def test_a_record_that_points_outside_the_site_removes_nothing(small, capsys):
    report(capsys)
    state = small / "site/.fraudnb-report.json"
    told = json.loads(state.read_text())
    told["pages"] |= {"../settings.ini": {}, str(small / "runs/a/03_train.ipynb"): {}}
    state.write_text(json.dumps(told))
    assert report(capsys)[0] == 0
    assert (small / "settings.ini").exists() and (small / "runs/a/03_train.ipynb").exists()


def stopped_report(project: Path, by: signal.Signals) -> tuple[int, str, list[str]]:
    """Exit code and output of a report that all its processes are sent the signal `by` in, after its first page."""

    def pages() -> int:
        return len(list(project.glob("site/runs/*/0*.html")))

    before, pipe = pages(), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command_line = [BIN / "fraudnb", "report"]
    work = subprocess.Popen(command_line, cwd=project, env=environment(), start_new_session=True, **pipe)
    wait_until(lambda: pages() > before, "a page")
    os.killpg(work.pid, by)
    output, errors = work.communicate(timeout=60)
    # a slow machine is told how far it is
    return work.returncode, output, [line for line in errors.splitlines() if " notebooks" not in line]


@pytest.mark.thorough
def test_a_report_that_is_killed_or_interrupted_is_finished_by_the_next(small, capsys):
    for number in range(28):
        write_run(small / f"runs/r{number:02}", model="svc")
    assert stopped_report(small, signal.SIGKILL) == (-9, "", [])
    assert stopped_report(small, signal.SIGINT) == (130, "", ["Stopped."])
    assert report(capsys)[0] == 0
    assert len(list((small / "site").glob("runs/*/*.html"))) == 30 * 3
    assert not list((small / "site").rglob(".*.tmp"))
    assert report(capsys)[1] == "30 runs, 0 notebooks rendered, 60 unchanged: site/index.html\n"


# -- what is refused


@pytest.mark.parametrize(
    ("prepare", "words", "expected"),
    [
        (lambda folder: write_run(folder / "pages"), ["--out", "pages"], "no report has written"),
        (lambda folder: (folder / "pages").touch(), ["--out", "pages"], "is a file"),
        (lambda folder: None, ["--out", "."], "no report has written"),
        (lambda folder: None, ["c"], "There are: a, b."),
        (lambda folder: None, ["s3://bank/sweep"], "copy it to a folder"),
        (lambda folder: (folder / "empty").mkdir(), ["empty"], "no executed notebooks"),
    ],
)
def test_wrong_input_is_told_in_one_paragraph(small, capsys, prepare: Callable, words, expected):
    prepare(small)
    code, _, stderr = report(capsys, *words)
    assert (code, expected in paragraph(stderr)) == (2, True), stderr


def test_a_file_of_somebody_elses_in_the_site_is_not_overwritten(small, capsys):
    report(capsys, "a")
    (small / "site/runs/b").mkdir(parents=True)
    (small / "site/runs/b/index.html").write_text("mine")
    code, _, stderr = report(capsys)
    assert code == 2 and "written by no report" in paragraph(stderr)
    assert (small / "site/runs/b/index.html").read_text() == "mine"


def test_runs_may_be_folders_anywhere(small, capsys):
    (small / "elsewhere").mkdir()
    (small / "runs/b").rename(small / "elsewhere/b")
    assert report(capsys, "a", small / "elsewhere/b")[:2] == (0, "2 runs, 4 notebooks rendered: site/index.html\n")
    assert (small / "site/runs/b/03_train.html").is_file()


# -- the package


@pytest.mark.thorough
def test_a_wheel_holds_the_templates_style_and_scripts(tmp_path):
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    source = tmp_path / "source"
    source.mkdir()
    for name in ("fraudnb", "setup.py", "settings.ini", "pyproject.toml", "README.md"):
        (source / name).symlink_to(PACKAGE_ROOT / name)
    done = subprocess.run([sys.executable, "-c", build], cwd=source, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    files = sorted((PACKAGE_ROOT / "fraudnb/report_site").iterdir())
    assert len(files) >= 11 and {f"fraudnb/report_site/{path.name}" for path in files} <= set(names)
