"""`fraudnb comment`: a comparison that a stranger's code has left, and an HTTP server that records what is asked of it
in GitHub's place. What is odd is refused with a reason, and then nothing was posted."""

import io
import json
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from project import command, environment, paragraph

from fraudnb.compare import to_markdown
from fraudnb.errors import InputError
from fraudnb.github import AUTHOR, MARKER, MOST_BYTES, check_comparison, comment_on_run
from fraudnb.runs import StepFailed

HEAD, OLDER = "a" * 40, "b" * 40
BOT = {"login": AUTHOR, "type": "Bot"}

# -- GitHub's stand-in


@dataclass
class GitHub:
    """A running server in GitHub's place: what it knows, what it was asked, and how it misbehaves."""

    folder: Path
    artifact: bytes = b""
    size: int | None = None  # what it says that the artifact has, if not the truth
    name: str = "comparison"
    pulls: list[dict[str, Any]] = field(default_factory=lambda: [{"number": 12, "head": {"sha": HEAD}}])
    comments: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, str, dict[str, list[str]], Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)  # which the storage was sent
    failures: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)  # answered first
    failing: str = "GET"
    url: str = ""
    storage: str = ""

    @property
    def posts(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, *_ in self.calls if method != "GET"]

    def environment(self, event: str = "pull_request", branch: str = "feature", owner: str = "eve") -> dict[str, str]:
        """A workflow's variables, after a run of another workflow on `branch` of the fork of `owner`."""
        run = {"id": 7, "event": event, "head_sha": HEAD, "head_branch": branch, "pull_requests": []}
        run["head_repository"] = {"owner": {"login": owner}}
        path = self.folder / "event.json"
        path.write_text(json.dumps({"workflow_run": run}))
        return {
            "GITHUB_API_URL": self.url,
            "GITHUB_TOKEN": "secret-token",
            "GITHUB_REPOSITORY": "bank/fraud",
            "GITHUB_EVENT_PATH": str(path),
        }

    def answer(self, method: str, target: str, body: Any) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        path, query = parts.path.removeprefix("/repos/bank/fraud"), parse_qs(parts.query)
        self.calls.append((method, path, query, body))
        if self.failures and method == self.failing:
            return self.failures.pop(0)
        if path == "/actions/runs/7/artifacts":
            size = len(self.artifact) if self.size is None else self.size
            one = {"id": 5, "name": self.name, "expired": False, "size_in_bytes": size}
            return reply({"total_count": 1, "artifacts": [one]})
        if path == "/actions/artifacts/5/zip":
            return 302, {"Location": f"{self.storage}/blob"}, b""
        if path == "/pulls":
            assert query["state"] == ["open"]
            return reply(self.pulls)
        if path == "/issues/12/comments" and method == "GET":
            page = int(query["page"][0])
            return reply(self.comments[100 * (page - 1) : 100 * page])
        if path == "/issues/12/comments":
            self.comments.append({"id": 100 + len(self.comments), "user": BOT, "body": body["body"]})
            return reply(self.comments[-1], 201)
        if path.startswith("/issues/comments/") and method == "PATCH":
            found = next(one for one in self.comments if str(one["id"]) == path.rpartition("/")[2])
            found["body"] = body["body"]
            return reply(found)
        return 404, {}, b'{"message": "Not Found"}'


def reply(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def serve(answer: Callable[[BaseHTTPRequestHandler, Any], tuple[int, dict[str, str], bytes]]) -> ThreadingHTTPServer:
    """A started HTTP server on a port of its own, which answers by `answer`."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, headers, content = answer(self, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has had enough

        do_GET = do_POST = do_PATCH = handle_any

        def log_message(self, *words: object) -> None:
            """Tests print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def github(tmp_path: Path) -> Iterator[GitHub]:
    """A GitHub of this test's own, its storage on another address than its API."""
    state = GitHub(tmp_path, artifact=zipped(comparison()))

    def api(handler: BaseHTTPRequestHandler, body: Any) -> tuple[int, dict[str, str], bytes]:
        assert handler.headers["Authorization"] == "Bearer secret-token"
        return state.answer(handler.command, handler.path, body)

    def storage(handler: BaseHTTPRequestHandler, body: Any) -> tuple[int, dict[str, str], bytes]:
        state.tokens.append(handler.headers.get("Authorization", ""))
        return 200, {"Content-Type": "application/zip"}, state.artifact

    servers = [serve(api), serve(storage)]
    state.url, state.storage = (f"http://127.0.0.1:{one.server_port}" for one in servers)
    yield state
    for one in servers:
        one.shutdown()
        one.server_close()


# -- artifacts


def comparison(**other: Any) -> dict[str, Any]:
    """A comparison as `fraudnb diff` writes it, with `other` in the place of its parts."""
    side = {"name": "runs/main", "threshold": 0.4, "confusion": [[980.0, 3.0], [4.0, 13.0]], "problem": {}}
    moved = {"count": 1.0, "amount": 20.5, "examples": [[17, 20.5]]}
    kinds = ("frauds_caught", "frauds_missed", "alarms_gained", "alarms_lost")
    names = ("average_precision", "recall", "expected_cost")
    return {
        "format": 1, "verdict": "unclear", "reason": "", "metric": "average_precision", "rows": 1000, "frauds": 17,
        "base": {**side, "name": "main (0123456789)"}, "head": side, "gate": "",
        "sides": dict.fromkeys(kinds, moved), "curves": {"base": [1.0] * 20, "head": [0.9] * 19 + [None]},
        "metrics": [{"name": name, "base": 0.8, "head": 0.81, "low": -0.02, "high": 0.05} for name in names],
        "parameters": [{"notebook": "03_train", "name": "C", "base": "1", "head": "{'a': [1, 2]}"}],
        "data": [], "versions": [], "seconds": [{"name": "03_train", "base": 4.1, "head": 4.3}],
    } | other  # fmt: skip


def zipped(content: Any, name: str = "comment.json", mode: int = 0o100644, **more: str) -> bytes:
    """A zip with `content` (bytes, or what becomes JSON) as the entry `name`, and `more` entries."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    entry = zipfile.ZipInfo(name)
    entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(entry, data)
        for other, text in more.items():
            archive.writestr(other, text)
    return target.getvalue()


def declared(data: bytes, size: int) -> bytes:
    """The zip `data` with another unpacked size in its directory and in its entry's head."""
    changed, at = bytearray(data), data.index(b"PK\x01\x02")
    changed[at + 24 : at + 28] = changed[22:26] = struct.pack("<I", size)
    return bytes(changed)


def encrypted(data: bytes) -> bytes:
    changed, at = bytearray(data), data.index(b"PK\x01\x02")
    changed[at + 8] |= 1
    changed[6] |= 1
    return bytes(changed)


def spoilt(data: bytes) -> bytes:
    """The zip `data` with one bit of its entry's content turned round."""
    changed = bytearray(data)
    changed[60] ^= 1
    return bytes(changed)


def with_text(text: str, **other: Any) -> bytes:
    """The plain JSON of a comparison, with `text` for the number of rows."""
    return json.dumps(comparison(rows="HERE", **other)).replace('"HERE"', text).encode()


def metric(**values: Any) -> bytes:
    row = {"name": "recall", "base": 0.8, "head": 0.8, "low": None, "high": None} | values
    return zipped(comparison(metrics=[*comparison()["metrics"], row]))


def without(name: str) -> bytes:
    return zipped({key: value for key, value in comparison().items() if key != name})


BOMB = zipped(b" " * (MOST_BYTES * 20))
HOSTILE = {
    "path traversal": (zipped(comparison(), "../comment.json"), "not comment.json"),
    "absolute path": (zipped(comparison(), "/etc/comment.json"), "not comment.json"),
    "folder": (zipped(comparison(), "site/comment.json"), "not comment.json"),
    "backslash": (zipped(comparison(), "..\\comment.json"), "not comment.json"),
    "name with markup": (zipped(comparison(), "\n::add-mask::<b>.json"), "not comment.json"),
    "symlink": (zipped(b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "is a link"),
    "device": (zipped(comparison(), mode=stat.S_IFCHR | 0o666), "is a link, a folder or a device"),
    "folder entry": (zipped(b"", mode=stat.S_IFDIR | 0o755), "is a link, a folder"),
    "two entries": (zipped(comparison(), more="<script>"), "2 entries"),
    "no entry": (b"PK\x05\x06" + b"\0" * 18, "0 entries"),
    "encrypted": (encrypted(zipped(comparison())), "encrypted"),
    "zip bomb": (BOMB, "20,000,000 bytes, more than"),
    "declared 2 GB": (declared(zipped(comparison()), 2**31), "2,147,483,648 bytes"),
    "declared too small": (declared(BOMB, 10), "no whole zip"),
    "too large": (zipped(comparison()) + b" " * MOST_BYTES, "bytes, more than 1,000,000"),
    "cut off": (zipped(comparison())[:-30], "no whole zip"),
    "empty": (b"", "no whole zip"),
    "no zip": (b"<html>" * 100, "no whole zip"),
    "spoilt": (spoilt(zipped(comparison())), "no whole zip"),
    "NaN": (zipped(with_text("NaN")), "no strict JSON"),
    "Infinity": (zipped(with_text("-Infinity")), "no strict JSON"),
    "overflow": (zipped(with_text("1e999")), "no strict JSON"),
    "many digits": (zipped(with_text("9" * 5000)), "no strict JSON"),
    "large number": (zipped(with_text("1e16")), "rows"),
    "name twice": (zipped(b'{"rows": 1, "rows": 2}'), "no strict JSON"),
    "nested": (zipped(b"[" * 200_000), "no strict JSON"),
    "no text": (zipped(b"\xff\xfe{}"), "no strict JSON"),
    "no object": (zipped([]), "is not of type 'object'"),
    "text for a number": (zipped(with_text('"12"')), "is not of type 'integer'"),
    "truth for a number": (zipped(with_text("true")), "is not of type 'integer'"),
    "negative": (zipped(with_text("-1")), "rows"),
    "missing": (without("metrics"), "'metrics' is a required property"),
    "more": (zipped(comparison(script="<script>")), "Additional properties are not allowed"),
    "HTML in a name": (metric(name="<img src=x onerror=alert(1)>"), "that it cannot have"),
    "Markdown in a name": (metric(name="recall](https://evil.example) ![x"), "that it cannot have"),
    "table in a name": (metric(name="recall | 1 | 1 |"), "that it cannot have"),
    "line end in a name": (metric(name="recall\n"), "that it cannot have"),
    "mention": (zipped(comparison(reason="thanks @everyone", verdict="not_comparable")), "that it cannot have"),
    "code span": (zipped(comparison(reason="`<b>`", verdict="not_comparable")), "that it cannot have"),
    "link": (zipped(comparison(reason="https://evil.example", verdict="not_comparable")), "that it cannot have"),
    "long text": (zipped(comparison(reason="a" * 301, verdict="not_comparable")), "is too long"),
    "verdict": (zipped(comparison(verdict="**merge this**")), "is not one of"),
    "other format": (zipped(comparison(format=2)), "1 was expected"),
    "many metrics": (zipped(comparison(metrics=comparison()["metrics"] * 40)), "is too long"),
    "metric twice": (metric(), "a metric stands twice"),
    "half an interval": (metric(name="other", low=0.1), "one end"),
    "judged by nothing": (zipped(comparison(metrics=[])), "without its numbers"),
    "curves alone": (
        zipped(comparison(head=comparison()["head"] | {"confusion": None})), "curves without confusion matrices"
    ),
    "problem": (zipped(comparison(head=comparison()["head"] | {"problem": {"cell": "1"}})), "problem.cell"),
    "long comment": (
        zipped(comparison(parameters=[dict.fromkeys(("notebook", "name", "base", "head"), "a b" * 40)] * 100
                                     + [], versions=[dict.fromkeys(("name", "base", "head"), "a b" * 40)] * 50)),
        "GitHub takes 65,536",
    ),
}  # fmt: skip


def test_the_example_is_what_fraudnb_writes():
    assert check_comparison(comparison()) == comparison()
    assert "Cannot be told apart" in to_markdown(comparison())


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_artifacts_are_refused_and_nothing_is_posted(github, kind):
    github.artifact, why = HOSTILE[kind]
    with pytest.raises(InputError, match="The artifact is refused|sent more than") as refusal:
        comment_on_run(github.environment())
    message = str(refusal.value)
    assert why in message and "\n" not in message and len(message) < 500
    assert not set(message) & set("<>@|#\\")  # it ends in a log, which takes some texts for commands
    assert github.posts == []


def test_the_command_refuses_with_one_paragraph(github):
    github.artifact = zipped(comparison(), "../comment.json")
    done = command(github.folder, "comment", env=environment(**github.environment()))
    assert (done.returncode, done.stdout) == (2, "")
    assert "refused: its entry is called '../comment.json'" in paragraph(done.stderr)
    assert github.posts == []


def test_the_size_that_github_tells_is_looked_at_first(github):
    github.size = 2**31
    with pytest.raises(InputError, match="GitHub says that it has 2,147,483,648 bytes"):
        comment_on_run(github.environment())
    assert [path for _, path, *_ in github.calls] == ["/actions/runs/7/artifacts"]


# -- the good way


def test_one_comment_is_created_then_updated(github):
    done = command(github.folder, "comment", env=environment(**github.environment()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Comment created on #12.\n", "")
    github.artifact = zipped(comparison(rows=2000))
    assert comment_on_run(github.environment()) == "Comment updated on #12."
    assert github.posts == [("POST", "/issues/12/comments"), ("PATCH", "/issues/comments/100")]
    (comment,) = github.comments
    assert comment["body"].startswith(MARKER) and "2,000 test rows" in comment["body"]
    assert comment["body"] == f"{MARKER}\n{to_markdown(comparison(rows=2000))}\nCommit {HEAD[:10]}.\n"


def test_the_storage_is_sent_no_token(github):
    comment_on_run(github.environment())
    assert github.tokens == [""]


def test_a_forks_pull_request_is_found_by_its_owner_and_branch(github):
    comment_on_run(github.environment(owner="eve", branch="feature/a&state=closed#1"))
    (query,) = [query for _, path, query, _ in github.calls if path == "/pulls"]
    assert query["head"] == ["eve:feature/a&state=closed#1"] and query["state"] == ["open"]
    assert github.posts == [("POST", "/issues/12/comments")]


def test_comments_of_others_are_left_alone(github):
    strangers = [{"login": "eve", "type": "User"}, {"login": AUTHOR, "type": "User"}, None]
    github.comments = [
        {"id": number, "user": strangers[number % 3], "body": f"{MARKER}\nbuy this"} for number in range(150)
    ]
    github.comments.append({"id": 900, "user": BOT, "body": "another bot's words"})
    assert comment_on_run(github.environment()) == "Comment created on #12."
    assert comment_on_run(github.environment()) == "Comment updated on #12."
    assert len(github.comments) == 152


@pytest.mark.parametrize(
    ("pulls", "said"),
    [
        ([{"number": 12, "head": {"sha": OLDER}}], "no open pull request has aaaaaaaaaa as its head"),
        ([], "no open pull request"),
        ([{"number": one, "head": {"sha": HEAD}} for one in (12, 13)], "#12, #13 have the same head"),
    ],
    ids=["moved on", "closed", "two"],
)
def test_nothing_is_posted_when_the_pull_request_cannot_be_told(github, pulls, said):
    github.pulls = pulls
    assert said in comment_on_run(github.environment())
    assert github.posts == []


def test_nothing_is_posted_for_a_push_or_without_an_artifact(github):
    assert "started by no pull request" in comment_on_run(github.environment(event="push"))
    github.name = "other"
    assert "has left no comparison" in comment_on_run(github.environment())
    assert github.posts == []


# -- a GitHub that fails


def test_a_server_that_fails_for_a_moment_is_asked_again(github):
    github.failures = [(502, {}, b""), (503, {"Retry-After": "3600"}, b"")]
    assert comment_on_run(github.environment()) == "Comment created on #12."


def test_a_comment_is_not_posted_twice(github):
    """A server that fails may have created it: the next run finds it."""
    github.failing, github.failures = "POST", [(502, {}, b"")]
    with pytest.raises(StepFailed, match="502. Start this workflow again"):
        comment_on_run(github.environment())
    assert github.posts == [("POST", "/issues/12/comments")]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ((403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000000"}, b"{}"), "is used up until"),
        ((429, {"Retry-After": "60"}, b"{}"), "rate limit"),
        ((403, {}, b'{"message": "You have exceeded a secondary rate limit"}'), "rate limit"),
        ((403, {}, b'{"message": "Resource not accessible by integration"}'), "needs pull-requests: write"),
        ((401, {}, b'{"message": "Bad credentials"}'), "Bad credentials"),
        ((404, {}, b'{"message": "Not Found"}'), "404"),
        ((200, {}, b"<html>"), "no JSON"),
    ],
)
def test_refusals_are_explained(github, failure, said):
    github.failures = [failure]
    done = command(github.folder, "comment", env=environment(**github.environment()))
    assert (done.returncode, said in paragraph(done.stderr)) == (1, True), done.stderr
    assert github.posts == []


def test_no_server(github, tmp_path):
    with pytest.raises(StepFailed, match="does not answer"):
        comment_on_run(github.environment() | {"GITHUB_API_URL": "http://127.0.0.1:1"})


def test_outside_of_a_workflow_the_command_says_so(tmp_path):
    done = command(tmp_path, "comment", env=environment(GITHUB_TOKEN="x", GITHUB_API_URL="", GITHUB_REPOSITORY=""))
    assert done.returncode == 2
    assert "GITHUB_API_URL, GITHUB_REPOSITORY is not set" in paragraph(done.stderr)
