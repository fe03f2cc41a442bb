"""The slug, built as Heroku's Python buildpack does it, and its Procfile run by honcho: read-only but for a temporary
folder, and again when that has been emptied. Needs the package index, or uv's cache of it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import PACKAGE_ROOT, clean_environment, free_port, made_once

NAMES = [*(f"V{number}" for number in range(1, 29)), "Amount"]
ROW = json.dumps([dict.fromkeys(NAMES, 0.1)])


def build(folder: Path) -> None:
    """The files that git has, less .slugignore; requirements.txt into a new environment; bin/post_compile."""
    ignored = tuple(line[1:] + "/" for line in (PACKAGE_ROOT / ".slugignore").read_text().split())
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PACKAGE_ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if not name.startswith(ignored) and (PACKAGE_ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PACKAGE_ROOT / name, folder / name)
    env = clean_environment() | {"PATH": f"{folder}/.heroku/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "MODEL_URI"):
        env.pop(name, None)
    python = str(folder / ".heroku/bin/python")
    for command in (
        [sys.executable, "-m", "venv", str(folder / ".heroku")],
        ["uv", "pip", "install", "--quiet", "--python", python, "-r", "requirements.txt"],
        ["bin/post_compile"],
    ):
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def slug(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    folder = made_once(tmp_path_factory, worker_id, "slug", lambda folder: (folder.mkdir(), build(folder)))
    return folder


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The only folder that the dyno may write to."""
    folder = Path(tempfile.mkdtemp(prefix="dyno-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def run_dyno(slug: Path, temporary: Path) -> tuple[int, int]:
    """Run the Procfile once, which has a minute to answer: proportional memory in bytes, exit code."""
    port = str(free_port())
    env = {"PATH": f"{slug}/.heroku/bin:/usr/bin:/bin", "HOME": str(slug), "TMPDIR": str(temporary), "PORT": port}
    command = [str(Path(sys.executable).with_name("honcho")), "start", "-p", port, "web"]
    command = [*read_only(slug), *command]
    started = time.monotonic()
    with open(slug.parent / "honcho.log", "wb") as log:
        honcho = subprocess.Popen(command, cwd="/", env=env, stdout=log, stderr=log)
    try:
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            assert honcho.poll() is None and time.monotonic() < started + 60, (slug.parent / "honcho.log").read_text()
            time.sleep(0.1)
        seconds = time.monotonic() - started
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/score", ROW.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert b'"decision": "pass"' in answer.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert b"jupyter-config-data" in answer.read()
        family = [one for one in psutil.process_iter() if str(temporary) in one_environment(one)]
        memory = sum(one.memory_full_info().pss for one in family if one.is_running())
        print(f"first 200 after {seconds:.1f} s, {memory >> 20} MB with one visitor")
    finally:
        honcho.send_signal(signal.SIGTERM)
        code = honcho.wait(40)
    return memory, code


def read_only(folder: Path) -> list[str]:
    """The beginning of a command that cannot write to `folder`: its mode forbids it, and for root a mount."""
    if os.geteuid() == 0:
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", mount, str(folder)]
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    return ["sh", "-c", 'cd "$0" && exec "$@"', str(folder)]


def one_environment(process: psutil.Process) -> str:
    try:
        return process.environ().get("TMPDIR", "")
    except psutil.Error:
        return ""


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.thorough
@pytest.mark.long
def test_the_slug_is_built_boots_and_fits(slug, temporary):
    """Twice, as on a dyno that was moved: nothing that the first run wrote is there for the second."""
    assert (slug / "models/main/model.onnx").is_file() and not (slug / "nbs").exists()
    size = sum(file.lstat().st_size for file in slug.rglob("*") if file.is_file() and not file.is_symlink())
    assert size < 700 << 20  # a third of it when compressed: 190 MB
    before = {file: file.stat().st_mtime_ns for file in slug.rglob("*.json")}
    for _ in range(2):
        memory, code = run_dyno(slug, temporary)
        assert memory < 512 << 20 and code in (0, -signal.SIGTERM, 143)
        for left in temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert before == {file: file.stat().st_mtime_ns for file in slug.rglob("*.json")}
