"""Warm kernels: a forked kernel does what a plain one does, and whatever happens to it, to its zygote or to its owner,
nothing hangs, nothing is stale and nothing stays behind."""

import json
import logging
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PACKAGE_ROOT, processes_of
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from project import wait_until, write_notebook
from traitlets.config import Config

from fraudnb import kernels, runs
from fraudnb.kernels import ForkedProcess, NoZygote, describe_process, fork_kernel, why_plain, write_kernelspec

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kernels are forked on POSIX systems only")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at /proc")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NUMERIC = ("numpy", "matplotlib.pyplot", "openmp")
# scikit-learn's OpenMP without scikit-learn, which takes seconds; and a variable, as modules set them when imported
OPENMP = """
import ctypes, importlib.util, os, pathlib

for file in pathlib.Path(importlib.util.find_spec("sklearn").origin).parents[1].glob("scikit_learn.libs/libgomp*"):
    ctypes.CDLL(str(file))
os.environ.setdefault("SET_BY_A_MODULE", "1")
"""
NUMBERS = count()
TIMEOUT = 60


# -- kernels


@dataclass
class Kernel:
    """A running kernel."""

    manager: KernelManager
    client: BlockingKernelClient

    @property
    def process(self) -> Any:
        return self.manager.provisioner.process

    @property
    def zygote(self) -> psutil.Process:
        """The process that this kernel was forked from."""
        assert isinstance(self.process, ForkedProcess)
        return psutil.Process(self.process.pid).parent()

    def outputs(self, code: str) -> dict[str, Any]:
        """What the cell `code` prints, and what else it sends, without what differs from one kernel to the next."""
        messages = []
        reply = self.client.execute_interactive(
            code, timeout=TIMEOUT, output_hook=messages.append, allow_stdin=True, stdin_hook=self.answer
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        streams = [one["content"] for one in messages if one["msg_type"] == "stream"]
        shown = [one for one in messages if one["msg_type"] not in ("stream", "status", "execute_input")]
        text = {name: "".join(one["text"] for one in streams if one["name"] == name) for name in ("stdout", "stderr")}
        return text | {"shown": [summary(one["msg_type"], one["content"]) for one in shown]}

    def answer(self, question: dict[str, Any]) -> None:
        self.client.input("Ada")

    def prints(self, code: str) -> str:
        """The text that the cell `code` prints."""
        return self.outputs(code)["stdout"].strip()


def summary(kind: str, content: dict[str, Any]) -> list[Any]:
    """What a message is about, without its identifiers."""
    if kind == "comm_open":
        return [kind, content["target_name"], content["data"]["state"].get("_model_name")]
    data = content.get("data", {})
    return [kind, sorted(data), re.sub("0x[0-9a-f]+", "", data.get("text/plain", ""))]


def runtime() -> Path:
    """The folder of the test session's kernels."""
    return Path(os.environ["JUPYTER_PATH"]).parents[1]


@contextmanager
def started(name: str, **options: Any) -> Iterator[KernelManager]:
    """A kernel of the kernelspec `name`, asked for with `options`; whether it answers is not waited for."""
    sockets = runtime() / f"{os.getpid()}-{next(NUMBERS)}"
    wished = Config(ForkProvisioner={"eager": options.pop("eager", True)})
    manager = KernelManager(kernel_name=name, transport="ipc", ip=str(sockets), config=wished)
    options["env"] = dict(options.get("env", os.environ))
    options["env"].pop("PYTEST_CURRENT_TEST", None)  # a kernel that sees it leaves its file descriptors alone
    manager.start_kernel(**options)
    pid = manager.provisioner.pid
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
    wait_until(lambda: not psutil.pid_exists(pid), "the kernel to be gone", 10)


@contextmanager
def kernel(name: str, **options: Any) -> Iterator[Kernel]:
    """The same, once it answers."""
    with started(name, **options) as manager:
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=TIMEOUT)
            yield Kernel(manager, client)
        finally:
            client.stop_channels()


def gone(pid: int) -> bool:
    """Whether the process `pid` has ended, collected by its parent or not."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[pytest.MonkeyPatch]:
    """Kernelspecs of these tests' own: `numeric`, with libraries loaded, and `bare`, with none."""
    # a folder of this file's own: other workers' zygotes would count, of which there are three at most
    folder = Path(tempfile.mkdtemp(prefix="k-", dir=os.environ["XDG_RUNTIME_DIR"]))
    write_kernelspec("numeric", "Numeric", NUMERIC, folder)
    write_kernelspec("bare", "Bare", (), folder, eager=True)
    modules = write_modules(folder / "modules", openmp=OPENMP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        patch.setenv("JUPYTER_PATH", str(folder / "share/jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE_ROOT), str(modules)]))
        patch.setenv("TZ", "Asia/Kolkata")
        patch.delenv("WARM_KERNELS", raising=False)
        for variable in kernels.THREAD_VARIABLES:
            patch.delenv(variable, raising=False)
        yield patch


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new folder in which this test's own zygotes have their sockets; nothing is left of them at the end."""
    parent = os.environ["XDG_RUNTIME_DIR"]
    folder = Path(tempfile.mkdtemp(prefix="own-", dir=parent))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    left = processes_of(folder)
    kernels_left = [one.pid for one in left if one.parent() in left]
    for one in left:
        one.kill()
    assert not kernels_left


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is said about kernels, as by a new process, which has said nothing yet."""
    kernels.say_once.cache_clear()
    caplog.set_level(logging.WARNING, "fraudnb.kernels")
    return caplog


def sockets_in(folder: Path) -> list[Path]:
    """The sockets of zygotes whose runtime folder is `folder`."""
    return [path for path in folder.glob("warm-kernels-*/*") if stat.S_ISSOCK(path.lstat().st_mode)]


def zygotes_in(folder: Path) -> list[psutil.Process]:
    """The zygotes, without their kernels, whose runtime folder is `folder`."""
    found = [one for one in processes_of(folder) if any("zygote_main" in word for word in one.cmdline())]
    return [one for one in found if one.parent() not in found]


def write_modules(folder: Path, **sources: str) -> Path:
    """`folder` with one module for each of `sources`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
    return folder


# -- as a plain kernel


@pytest.fixture(scope="module")
def alike(settings: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kernel, Kernel]]:
    """A plain kernel and a forked one, started by this process in a state that the zygote has not seen."""
    folder = tmp_path_factory.mktemp("alike")
    with started("numeric"):  # so that there is a zygote
        pass
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(folder)
        patch.setenv("MARKER", "seen")
        stack.callback(os.umask, os.umask(0o027))
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        plain, forked = (stack.enter_context(kernel(name)) for name in ("python3", "numeric"))
        assert not isinstance(plain.process, ForkedProcess) and isinstance(forked.process, ForkedProcess)
        yield plain, forked


SAME = {
    "figure": ("import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()", "image/png"),
    "widget": ("import ipywidgets; ipywidgets.IntSlider(3)", "IntSliderModel"),
    "await": ("import asyncio; await asyncio.sleep(0.01, 'slept')", "slept"),
    "input": ("print('I am', input('Who? '))", "I am Ada"),
    "shell": ("!echo $MARKER; pwd; umask; ulimit -n", "seen"),
    "bash": ("%%bash\necho $MARKER; echo wrong >&2", "wrong"),
    "subprocess": ("import subprocess; print(subprocess.run(['env'], capture_output=True).returncode)", "0"),
    "streams": ("import sys; print('out'); print('err', file=sys.stderr)", "err"),
    "folder": ("import os; print(os.getcwd(), os.environ['MARKER'], oct(os.umask(0o027)))", "seen 0o27"),
    "limits": (
        "import resource as r; print([(n, r.getrlimit(getattr(r, n))) for n in dir(r) if n.startswith('RLIMIT_')])",
        "'RLIMIT_NOFILE', (512,",
    ),
    "zone": ("import time; print(time.tzname)", "IST"),
    "arguments": ("import sys; print(sys.argv[0], len(sys.argv), sys.orig_argv[:4], sys.flags)", "ipykernel_launcher"),
    "path": ("import sys; print(sys.path, sys.executable, sys.prefix)", "site-packages"),
    "main": ("import __main__; print(__name__, sorted(n for n in vars(__main__) if n[:2] == '__'))", "__main__"),
    "signals": (
        "import signal as s; print({n.name: str(s.getsignal(n)) for n in (s.SIGINT, s.SIGTERM, s.SIGCHLD)})",
        "default_int_handler",
    ),
    "session": ("import os; print(os.getpgrp() == os.getsid(0) == os.getpid(), os.nice(0))", "True 0"),
    "joblib": ("import joblib; print(joblib.Parallel(2)(joblib.delayed(abs)(-i) for i in range(4)))", "[0, 1, 2, 3]"),
    "multiprocessing": (
        "import multiprocessing as m\nfor how in ('fork', 'spawn'):\n"
        "    with m.get_context(how).Pool(2) as pool:\n        print(how, pool.map(abs, [-1, -2]))",
        "spawn [1, 2]",
    ),
    "threads": (
        "import numpy, openmp, threadpoolctl\n"
        "print(sorted((one['internal_api'], one['num_threads']) for one in threadpoolctl.threadpool_info()))",
        "openmp",
    ),
    "plots": ("import matplotlib as m; print(m.get_backend(), m.rcParams['figure.figsize'])", "matplotlib_inline"),
    "environment": (
        "import ipykernel.debugger, openmp, threadpoolctl, os\n"
        "print(sorted((name, value) for name, value in os.environ.items() if name != 'JPY_PARENT_PID'))\n"
        "print('JPY_PARENT_PID' in os.environ)",
        "SET_BY_A_MODULE",
    ),
    "debugger": (
        "own = get_ipython().kernel.debugger.kernel_modules\n"
        "print([any(f'/{name}' in file for file in own) for name in ('ipykernel/', 'numpy/', 'openmp.')])",
        "[True, False, False]",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_same_as_in_a_plain_kernel(alike, name):
    code, expected = SAME[name]
    plain, forked = (one.outputs(code) for one in alike)
    assert expected in str(plain)
    assert forked == plain


def test_what_children_write_arrives(alike):
    """Programs write to the file descriptors, past Python; it comes as a stream, perhaps after the cell has ended."""
    for one in alike:
        request = one.client.execute(
            "import subprocess; subprocess.run('echo from a child; echo wrong >&2', shell=True)"
        )
        text = ""
        while not ("from a child" in text and "wrong" in text):
            message = one.client.get_iopub_msg(timeout=TIMEOUT)
            if message["parent_header"].get("msg_id") == request and message["msg_type"] == "stream":
                text += message["content"]["text"]
        one.client.get_shell_msg(timeout=TIMEOUT)


ENDING = """\
import atexit, threading, time
atexit.register(lambda: print("handler", file=open("handler.txt", "w")))
unflushed = open("unflushed.txt", "w")
unflushed.write("text")
loop = [open("loop.txt", "w")]
loop.append(loop)
loop[0].write("text")
threading.Thread(target=lambda: (time.sleep(0.3), open("thread.txt", "w").close())).start()
"""


@pytest.mark.parametrize("name", ["python3", "numeric"])
def test_graceful_shutdown(tmp_path, name):
    """Exit handlers run, other threads are waited for, and open files are written out."""
    with kernel(name, cwd=str(tmp_path)) as one:
        one.outputs(ENDING)
        one.manager.shutdown_kernel()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "handler.txt": "handler\n",
        "unflushed.txt": "text",
        "loop.txt": "text",
        "thread.txt": "",
    }


@needs_proc
def test_prepared(place, tmp_path):
    """A kernel is forked from what was started ahead."""
    kernels.prepare(NUMERIC, sys.executable, str(tmp_path))
    (zygote,) = zygotes_in(place)
    with kernel("numeric", cwd=str(tmp_path)) as one:
        assert psutil.Process(one.process.pid).ppid() == zygote.pid


@needs_proc
def test_umask_is_only_read(monkeypatch):
    """The system call would change it, for a moment and for all threads."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    told = re.search(r"Umask:\s*(\d+)", Path("/proc/self/status").read_text())[1]
    assert describe_process([], {}, "/")["umask"] == int(told, 8)


def test_exit_code():
    with kernel("numeric") as one:
        one.client.execute("import os; os._exit(3)")
        assert one.process.wait(10) == 3 and one.process.poll() == 3


@pytest.mark.parametrize(
    "variables",
    [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "3"},
        {"OPENBLAS_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "2"},
        {"OMP_NUM_THREADS": "none"},
    ],
    ids=str,
)
def test_threads_of_numerical_libraries(tmp_path, variables):
    """As many as in a new process, whatever the environment says."""
    command = [sys.executable, "-m", "threadpoolctl", "-i", "numpy", "openmp"]
    environment = os.environ | variables
    plain = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True).stdout
    with open(tmp_path / "forked.json", "w+b") as output:
        request = describe_process(command, environment, str(tmp_path))
        process = fork_kernel(NUMERIC, request, (0, output.fileno(), 2))
        assert process.wait(TIMEOUT) == 0
        output.seek(0)
        forked = output.read()
    threads = [
        sorted((one["user_api"], one["filepath"], one["num_threads"]) for one in json.loads(text))
        for text in (plain, forked)
    ]
    assert len(threads[0]) >= 2 and threads[1] == threads[0]


def test_encrypted_transport():
    """`transport_encryption="required"`, which a kernelspec must say that it can do."""
    with kernel("numeric", transport_encryption="required") as one:
        assert isinstance(one.process, ForkedProcess) and one.prints("print(1)") == "1"


# -- its life


def begin(one: Kernel, code: str) -> None:
    """Execute the cell `code` and wait until it is running."""
    # a kernel drops what comes right after an error, unless it is told not to
    one.client.execute(f"print('begun', flush=True)\n{code}", stop_on_error=False)
    while one.client.get_iopub_msg(timeout=TIMEOUT)["content"].get("text") != "begun\n":
        pass


def test_interrupt():
    """A cell that sleeps and one that is busy; the kernel goes on."""
    with kernel("numeric") as one:
        for code in ("import time; time.sleep(60)", "while True: pass"):
            before = time.monotonic()
            begin(one, code)
            one.manager.interrupt_kernel()
            reply = one.client.get_shell_msg(timeout=30)["content"]
            assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
            assert time.monotonic() - before < 10
        assert one.prints("print('alive')") == "alive"


def test_restart(tmp_path):
    """Another process, with nothing of the first one's variables, in the same folder and environment."""
    with kernel("numeric", cwd=str(tmp_path), env=os.environ | {"MARKER": "kept"}) as one:
        first, zygote = one.process.pid, one.zygote
        one.outputs("number = 1")
        one.manager.restart_kernel()
        one.client.wait_for_ready(timeout=TIMEOUT)
        told = one.prints("import os; print('number' in dir(), os.getcwd(), os.environ['MARKER'])")
        assert told == f"False {tmp_path} kept"
        assert one.process.pid != first and gone(first) and one.zygote == zygote


def test_two_kernels_draw_different_numbers():
    draw = "import random, numpy, uuid; print(random.random(), numpy.random.random(), uuid.uuid4())"
    with kernel("numeric") as one, kernel("numeric") as other:
        assert not set(one.prints(draw).split()) & set(other.prints(draw).split())


CHILDREN = """\
import joblib, os, subprocess
workers = joblib.Parallel(2)(joblib.delayed(os.getpid)() for _ in range(8))
print(*{*workers, subprocess.Popen(["sleep", "300"]).pid})
"""


def test_killed():
    """The exit code says by which signal; what the kernel had started ends with it."""
    with kernel("numeric") as one:
        children = [int(word) for word in one.prints(CHILDREN).split()]
        assert len(children) >= 2 and not any(map(gone, children))
        os.kill(one.process.pid, signal.SIGKILL)
        assert one.process.wait(10) == -signal.SIGKILL
        assert one.manager.is_alive() is False
    for child in children:
        wait_until(lambda child=child: gone(child), "a child of the kernel to end", 10)


SLOW_START = """\
import time
time.sleep(2.5)
"""


def test_prompt_client_and_a_slow_kernel(tmp_path):
    """It waits for a kernel that needs longer than the client's own patience with one question."""
    profile = tmp_path / "profile_default/startup"
    profile.mkdir(parents=True)
    (profile / "00-slow.py").write_text(SLOW_START)
    with started("numeric", env=os.environ | {"IPYTHONDIR": str(tmp_path)}) as manager:
        import asyncio

        async def ready() -> None:
            client = kernels.PromptClient(**manager.get_connection_info(session=True), parent=manager)
            client.start_channels()
            try:
                await client.wait_for_ready(timeout=15)
            finally:
                client.stop_channels()

        before = time.monotonic()
        asyncio.run(ready())
        assert time.monotonic() - before < 10


# -- the zygote


def file_kinds(process: psutil.Process) -> list[str]:
    """What the open files of `process` are, such as "socket" or "anon_inode:[eventpoll]", without their numbers."""
    files = Path(f"/proc/{process.pid}/fd").iterdir()
    return sorted(re.sub(r"^(socket|pipe):.*", r"\1", os.readlink(file)) for file in files)


@needs_proc
def test_what_a_zygote_has(place):
    """One thread, no event loop, no network; a socket that nobody else can reach."""
    with kernel("bare") as one:
        zygote = one.zygote
        assert len(list(Path(f"/proc/{zygote.pid}/task").iterdir())) == 1
        held = file_kinds(zygote)
        assert held.count("socket") == 4 and "pipe" not in held  # the listener, a pair to wake up, the kernel's owner
        assert not [kind for kind in held if "event" in kind] and not zygote.net_connections("inet")
        (path,) = sockets_in(place)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert "MARKER" not in zygote.environ() and zygote.environ()["OMP_NUM_THREADS"] == "1"


# as another user: connect to the socket, send a request, and print what happens
INTRUDER = """\
import json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
    with open(os.devnull, "r+b") as file:
        socket.send_fds(connection, [sys.argv[2].encode() + b"\\n"], [file.fileno()] * 3)
    print(connection.recv(100))
except (PermissionError, ConnectionError) as error:
    print(type(error).__name__)
"""


@needs_root
def test_another_user(place):
    """Another user cannot enter the folder; and were it open, nothing is forked for them."""
    with kernel("bare") as one:
        (path,), zygote = sockets_in(place), one.zygote
        request = json.dumps(describe_process([sys.executable, "-m", "this"], {}, "/"))
        run = [sys.executable, "-c", INTRUDER, str(path), request]
        assert subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip() == "PermissionError"
        folders = [path.parent, *path.parent.parents][:4]
        modes = [folder.stat().st_mode for folder in folders]
        try:
            for folder in folders:
                folder.chmod(0o711)
            path.chmod(0o666)
            answer = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
        finally:
            for folder, mode in zip(folders, modes, strict=True):
                folder.chmod(mode)
        assert answer in ("b''", "BrokenPipeError", "ConnectionResetError")
        assert [child.pid for child in zygote.children()] == [one.process.pid]


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    connection.settimeout(20)
    return connection


def whole_request(folder: Path) -> bytes:
    """A request for a program that would run for a minute."""
    command = [sys.executable, "-m", "timeit", "-n1", "-r1", "__import__('time').sleep(60)"]
    return json.dumps(describe_process(command, os.environ, str(folder))).encode() + b"\n"


@needs_proc
def test_nonsense_on_the_socket(place, tmp_path):
    """It is hung up on; kernels live on and new ones start, and nothing of it is kept."""
    huge = b"x" * (17 << 20)
    nonsense = [b"\0\xff\n", b"\n", b"{}\n", b"[1]\n", b"{" + b"\n" * 3, b"[" * 100_000 + b"\n", huge, b"null\n"]
    with kernel("bare") as one:
        (path,), zygote = sockets_in(place), one.zygote
        before = file_kinds(zygote)
        for line in nonsense:
            with connected(path) as connection, suppress(ConnectionError):
                connection.sendall(line)
                assert connection.recv(100) == b"", line[:20]
        for _ in range(200):
            connected(path).close()
        with connected(path) as half:
            half.sendall(whole_request(tmp_path)[:100])
            with kernel("bare") as other:
                assert other.zygote == zygote
        with connected(path) as connection, open(os.devnull, "r+b") as file:  # a request that says nothing
            socket.send_fds(connection, [b'{"command": []}\n'], [file.fileno()] * 3)
            first, *_ = connection.makefile("rb")  # the exit code may come with the error or after it
            assert "KeyError" in json.loads(first)["error"]
        with connected(path) as connection, open(os.devnull, "r+b") as file:  # one whose owner leaves at once
            socket.send_fds(connection, [whole_request(tmp_path)], [file.fileno()] * 3)
        wait_until(lambda: len(zygote.children()) == 1 and file_kinds(zygote) == before, "no trace to be left", 10)
        assert one.prints("print('alive')") == "alive"


def test_a_fork_that_fails(monkeypatch):
    """When the system has no room for another process, the zygote says no; it and its kernels live on."""

    def no_room() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_room)
    ours, theirs = socket.socketpair()
    with ours, socket.socket(socket.AF_UNIX) as listener, open(os.devnull, "r+b") as file:
        zygote = kernels.Zygote(listener, {}, waiting={theirs: (b"", [os.dup(file.fileno())])})
        kernels.answer(zygote, theirs, {})
        assert "pid" not in kernels.read_message(ours) and not zygote.waiting and not zygote.kernels


@needs_linux
def test_killed_zygote(place, monkeypatch, tmp_path):
    """A run that is under way ends with an error that names the cell, at once; the next kernel has a new zygote."""
    monkeypatch.setattr(kernels, "write_kernelspec", partial(write_kernelspec, prefix=runtime()))
    monkeypatch.setattr(runs, "WARM_MODULES", ())
    (tmp_path / "settings.ini").touch()
    cells = ["import os; zygote = os.getppid()", "open('started', 'w').write(str(zygote))\nimport time; time.sleep(60)"]
    notebook = write_notebook(tmp_path / "nbs/90_sleeps.ipynb", *cells)
    killed = []

    def kill() -> None:
        wait_until(lambda: (tmp_path / "started").exists() and (tmp_path / "started").read_text(), "the cell to run")
        killed.append(int((tmp_path / "started").read_text()))
        os.kill(killed[0], signal.SIGKILL)
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(runs.StepFailed, match="cell 2 of 90_sleeps") as stopped:
        runs.run_notebook(notebook, tmp_path / "runs/90_sleeps.ipynb", {})
    killer.join()
    assert "DeadKernelError" in str(stopped.value)
    assert time.monotonic() - killed[1] < 10
    assert sockets_in(place), "the socket of the killed zygote is there still"
    assert not [one for one in psutil.Process().children() if one.status() == psutil.STATUS_ZOMBIE]
    with kernel(runs.WARM_KERNEL) as one:
        assert one.zygote.pid != killed[0]
        assert [path.suffix for path in sockets_in(place)] == [""]


def full(zygote: psutil.Process) -> None:
    """Let `zygote` open no more files than it has open."""
    _, most = zygote.rlimit(psutil.RLIMIT_NOFILE)
    zygote.rlimit(psutil.RLIMIT_NOFILE, (len(file_kinds(zygote)), most))


def roomy(zygote: psutil.Process) -> None:
    _, most = zygote.rlimit(psutil.RLIMIT_NOFILE)
    zygote.rlimit(psutil.RLIMIT_NOFILE, (most, most))


@needs_linux
@pytest.mark.parametrize(
    ("silence", "wake"), [(psutil.Process.suspend, psutil.Process.resume), (full, roomy)], ids=["stopped", "full"]
)
def test_a_zygote_that_does_not_answer(place, monkeypatch, silence, wake):
    """It is given up on and another one started; its kernels live on, and it keeps none that nobody waits for."""
    monkeypatch.setattr(kernels, "fork_kernel", partial(fork_kernel, seconds=1))
    with kernel("bare") as one:
        zygote = one.zygote
        silence(zygote)
        try:
            before = time.monotonic()
            with kernel("bare") as other:
                assert other.zygote != zygote and time.monotonic() - before < 20
        finally:
            wake(zygote)
        assert one.prints("print('alive')") == "alive"
        wait_until(lambda: len(zygote.children()) == 1, "the kernel nobody waits for to end", 10)


# -- never stale


LOADED = "import sys; print('mine' in sys.modules); import mine; print(mine.VALUE)"


def test_changed_code(place, monkeypatch, tmp_path):
    """A module that was edited, replaced by another file of an old date, or that came later: the next kernel has it."""
    code, later = write_modules(tmp_path / "code", mine="VALUE = 1"), tmp_path / "later"
    users = tmp_path / "users"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(code), str(later)]))
    monkeypatch.setenv("PYTHONUSERBASE", str(users))
    write_kernelspec("mine", "Mine", ["mine"], runtime())
    ask = [sys.executable, "-c", "import site; print(site.getusersitepackages())"]
    installed = Path(subprocess.check_output(ask, text=True).strip())
    installed.mkdir(parents=True)

    def seen() -> tuple[str, int]:
        with kernel("mine") as one:
            return one.prints(LOADED), one.zygote.pid

    first, zygote = seen()
    assert first == "True\n1" and seen() == (first, zygote)
    (code / "mine.py").write_text("VALUE = 22")
    assert seen()[0] == "True\n22"
    write_modules(tmp_path, new="VALUE = 333")
    os.utime(tmp_path / "new.py", (1, 1))
    os.replace(tmp_path / "new.py", code / "mine.py")
    told, zygote = seen()
    assert told == "True\n333" and seen()[1] == zygote
    write_modules(later, late="VALUE = 4444")  # a folder that was not there when the zygote started
    with kernel("mine") as one:
        assert one.zygote.pid == zygote
        assert one.prints("import late; print(late.VALUE)") == "4444"
    (installed / "new-1.0.dist-info").mkdir()  # something was installed
    assert seen()[1] != zygote
    wait_until(lambda: len(zygotes_in(place)) == 1, "zygotes that are out of date to end", 10)


WAITS = """\
import pathlib, time
folder = pathlib.Path(__file__).parent
(folder / "loading").touch()
while not (folder / "edited").exists():
    time.sleep(0.01)
"""


def test_code_that_changes_while_it_is_loaded(place, monkeypatch, tmp_path, told):
    """Paths on PYTHONPATH count from the kernel's folder, as they do for any Python started there."""
    code = write_modules(tmp_path / "code", mine="VALUE = 1", waits=WAITS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], "code"]))
    write_kernelspec("waits", "Waits", ["mine", "waits"], runtime())

    def edit() -> None:
        wait_until(lambda: (code / "loading").exists(), "the zygote to load")
        (code / "mine.py").write_text("VALUE = 22")
        (code / "edited").touch()

    editor = threading.Thread(target=edit)
    editor.start()
    with kernel("waits") as one:
        editor.join()
        assert one.zygote and not told.messages
        assert one.prints(LOADED) == "True\n22"


# -- its beginning and end


def test_idle(place):
    """A zygote stays as long as a kernel lives, and ends soon after; its socket goes too, and no zombie stays."""
    write_kernelspec("idle", "Idle", (), runtime(), idle=0.5)
    with kernel("idle") as one:
        zygote = one.zygote
        time.sleep(1.2)
        assert one.prints("print('alive')") == "alive" and zygote.is_running()
    wait_until(lambda: not psutil.pid_exists(zygote.pid), "the zygote to end without a trace", 10)
    assert not sockets_in(place)


OWNER = """\
import os, sys, time
from pathlib import Path
from jupyter_client.manager import KernelManager

print("ready", flush=True)
sys.stdin.readline()
manager = KernelManager(kernel_name="bare", transport="ipc", ip=sys.argv[1])
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
client.execute("import subprocess; open('child', 'w').write(str(subprocess.Popen(['sleep', '300']).pid))", reply=True)
print(manager.provisioner.pid, type(manager.provisioner.process).__name__, flush=True)
time.sleep(300)
"""


def test_two_owners_at_once_and_their_death(place, tmp_path):
    """Two processes that want their first kernel at the same moment share a zygote, of their own low priority.

    Kernels end with their owner, and so does what they had started.
    """
    owners = []
    with ExitStack() as stack:
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            owner = stack.enter_context(
                subprocess.Popen(
                    ["nice", "-n", "3", sys.executable, "-c", OWNER, str(place / str(number))],
                    cwd=tmp_path / str(number),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(owner.kill)
            owners.append(owner)
        assert [owner.stdout.readline() for owner in owners] == ["ready\n"] * 2
        for owner in owners:
            owner.stdin.write("now\n")
            owner.stdin.flush()
        told = [owner.stdout.readline().split() for owner in owners]
        assert [kind for _, kind in told] == ["ForkedProcess"] * 2
        pids = [int(pid) for pid, _ in told]
        (zygote,) = zygotes_in(place)
        assert {psutil.Process(pid).ppid() for pid in pids} == {zygote.pid}
        assert {psutil.Process(pid).nice() for pid in pids} == {min(os.nice(0) + 3, 19)}
        for owner in owners:
            owner.kill()
            owner.wait()
        children = [int((tmp_path / str(number) / "child").read_text()) for number in range(2)]
        for pid in [*pids, *children]:
            wait_until(lambda pid=pid: gone(pid), "the kernel and what it started to end", 5)
        assert zygote.is_running()


UNFIT = {
    "threaded": "import threading, time\nthreading.Thread(target=time.sleep, args=(300,), daemon=True).start()",
    "broken": "raise RuntimeError('cannot be imported')",
    "talks": "print('Hello from talks')",
    "fine": "",
}


def test_modules_that_cannot_be_loaded(place, monkeypatch, tmp_path, told):
    """One that starts a thread and one that fails are left out, and the log says so; one that prints does no harm."""
    code = write_modules(tmp_path / "code", **UNFIT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(code)]))
    write_kernelspec("unfit", "Unfit", list(UNFIT), runtime())
    with kernel("unfit") as one:
        assert one.prints("import sys; print(*sorted({*sys.modules} & {'threaded', 'broken', 'talks', 'fine'}))") == (
            "fine talks"
        )
        assert len(list(Path(f"/proc/{one.zygote.pid}/task").iterdir())) == 1
        (log,) = place.glob("warm-kernels-*/*.log")
        assert "threaded is left out" in log.read_text()
        assert "broken is left out: RuntimeError: cannot be imported" in log.read_text()
    assert not told.messages


# -- one zygote for many environments, and not many zygotes


def other_places(folder: Path) -> dict[str, str]:
    """An environment with HOME, TMPDIR and time zone of its own."""
    for name in ("home", "temporary"):
        (folder / name).mkdir()
    return os.environ | {"HOME": f"{folder}/home", "TMPDIR": f"{folder}/temporary", "TZ": "America/Lima", "USER": "ada"}


def test_places_and_time_zone_are_taken_on_after_the_fork(tmp_path):
    """HOME, TMPDIR and TZ of each kernel's own, all forked from one zygote."""
    told = "os.path.expanduser('~'), tempfile.gettempdir(), *time.tzname, os.environ.get('USER')"
    ask = f"import os, tempfile, time; print({told})"
    with kernel("numeric") as one, kernel("numeric", env=other_places(tmp_path)) as other:
        assert other.zygote == one.zygote
        assert other.prints(ask) == f"{tmp_path}/home {tmp_path}/temporary -05 -05 ada"
        assert "IST" in one.prints(ask)


@pytest.mark.thorough
def test_settings_in_a_home_are_read(tmp_path):
    """A HOME with files that modules read while they load has a zygote of its own."""
    environment = other_places(tmp_path)
    (tmp_path / "home/.config/matplotlib").mkdir(parents=True)
    (tmp_path / "home/.config/matplotlib/matplotlibrc").write_text("lines.linewidth: 7\n")
    environment.pop("XDG_CONFIG_HOME", None)
    environment.pop("MPLCONFIGDIR", None)
    with kernel("numeric", env=environment) as one:
        assert one.prints("import matplotlib; print(matplotlib.rcParams['lines.linewidth'])") == "7.0"


@pytest.mark.thorough  # needs its processes for itself: fails beside the kernels that other tests of this file keep
def test_no_more_than_three_zygotes(place, told):
    """The longest idle one goes; none goes whose kernel lives, and then the next kernel is a plain one."""

    def differing(number: int) -> dict[str, str]:
        return os.environ | {"PYTHONHASHSEED": str(number)}

    with ExitStack() as stack:
        alive = [stack.enter_context(kernel("bare", env=differing(number))) for number in (1, 2)]
        seen = []
        for number in (3, 4):
            with kernel("bare", env=differing(number)) as one:
                seen.append(one.zygote)
            wait_until(lambda: len(zygotes_in(place)) <= 3, "the idle zygote to end", 60)
        wait_until(lambda: gone(seen[0].pid), "the longest idle zygote to end", 60)
        alive.append(stack.enter_context(kernel("bare", env=differing(4))))
        assert alive[2].zygote == seen[1] and not told.messages
        with started("bare", env=differing(5)) as manager:
            assert isinstance(manager.provisioner.process, subprocess.Popen)
        assert "3 processes that kernels are forked from are in use" in told.messages[0]
        assert [one.prints("print('alive')") for one in alive] == ["alive"] * 3
        assert len(zygotes_in(place)) == 3


def test_the_first_two_kernels_of_an_environment_are_not_kept_waiting(place, told):
    """They are plain; with the second the zygote is started, as nobody's child; then kernels are forked."""
    write_kernelspec("patient", "Patient", (), runtime())
    for number in range(2):
        with started("patient", eager=False) as manager:
            assert isinstance(manager.provisioner.process, subprocess.Popen)
        assert bool(list(place.glob("warm-kernels-*/*.log"))) == bool(number)
    wait_until(lambda: sockets_in(place), "the zygote to listen")
    with kernel("patient", eager=False) as one:
        one.outputs("import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler")
        begin(one, "import time; time.sleep(60)")
        one.manager.interrupt_kernel()
        assert one.client.get_shell_msg(timeout=30)["content"]["ename"] == "KeyboardInterrupt"
        assert one.zygote.pid not in [child.pid for child in psutil.Process().children(recursive=True)]
    assert not told.messages


# -- a plain kernel instead


def test_turned_off(place, monkeypatch, told):
    """WARM_KERNELS=0: plain kernels, said once, and no zygote."""
    monkeypatch.setenv("WARM_KERNELS", "0")
    for _ in range(2):
        with started("bare") as manager:
            assert isinstance(manager.provisioner.process, subprocess.Popen)
    assert told.messages == ["Kernels start from scratch, which is slower: WARM_KERNELS=0 is set."]
    assert not list(place.glob("warm-kernels-*"))


def relaxed(place: Path) -> str:
    (place / f"warm-kernels-{os.getuid()}").mkdir(mode=0o755)
    return str(place)


def linked(place: Path) -> str:
    (place / "elsewhere").mkdir(mode=0o700)
    (place / f"warm-kernels-{os.getuid()}").symlink_to(place / "elsewhere")
    return str(place)


def deep(place: Path) -> str:
    folder = place / ("deep" * 25)
    folder.mkdir()
    return str(folder)


def absent(place: Path) -> str:
    return str(place / "absent")


def occupied(place: Path) -> str:
    """The lock file cannot be opened: something else has its name."""
    path, _ = kernels.zygote_place((), describe_process([sys.executable], os.environ, os.getcwd()))
    path.with_suffix(".lock").mkdir()
    return str(place)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (relaxed, "not a folder that this user alone can enter"),
        (linked, "not a folder that this user alone can enter"),
        (deep, "path too long"),
        (absent, "cannot be made: No such file or directory"),
        (occupied, "Is a directory"),
    ],
)
def test_no_place_for_a_socket(place, monkeypatch, told, make, reason):
    """A plain kernel, and one line that says why."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", make(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with started("bare") as manager:
        assert isinstance(manager.provisioner.process, subprocess.Popen)
    (message,) = told.messages
    assert message.startswith("Kernels start from scratch, which is slower: ") and reason in message


@pytest.mark.parametrize("options", [{"independent": True}, {"stderr": subprocess.STDOUT}, {"stdout": subprocess.PIPE}])
def test_options_that_only_a_new_process_can_have(place, told, options):
    """Popen's options are Popen's business: a plain kernel, without a word."""
    with started("bare", **options) as manager:
        assert isinstance(manager.provisioner.process, subprocess.Popen)
        if stdout := manager.provisioner.process.stdout:
            stdout.close()
    assert not told.messages and not zygotes_in(place)


def test_why_plain():
    assert "macOS" in why_plain({}, "darwin") and why_plain({"WARM_KERNELS": "1"}, "darwin") == ""
    assert why_plain({}, "linux") == "" and "WARM_KERNELS=0" in why_plain({"WARM_KERNELS": "0"}, "linux")


def test_a_zygote_that_cannot_start(place, tmp_path):
    """The reason is the end of its log."""
    broken = write_modules(tmp_path / "broken", fraudnb="raise SystemExit('no fraudnb here')")
    environment = os.environ | {"PYTHONPATH": str(broken)}
    with pytest.raises(NoZygote, match="no fraudnb here"):
        fork_kernel((), describe_process([sys.executable, "-m", "this"], environment, str(tmp_path)))


# -- in a process that was forked itself


FORKED_OWNER = """\
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import nbclient, nbformat

def run(number):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"print({number} * 2)")])
    done = nbclient.NotebookClient(book, kernel_name="bare", timeout=60).execute()
    return done.cells[0].outputs[0].text.strip()

print(run(0))
context = multiprocessing.get_context("fork")
if sys.argv[1] == "pool":
    with context.Pool(2) as pool:
        print(*pool.map(run, [1, 2]))
else:
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        print(*pool.map(run, [1, 2]))
"""


@pytest.mark.parametrize("kind", ["pool", pytest.param("executor", marks=pytest.mark.thorough)])
def test_a_notebook_in_a_forked_child(place, tmp_path, kind):
    """After the parent has run one: `multiprocessing.Pool` and `ProcessPoolExecutor`, which fork on Linux."""
    run = [sys.executable, "-W", "ignore", "-c", FORKED_OWNER, kind]
    with subprocess.Popen(run, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as owner:
        try:
            assert owner.communicate(timeout=TIMEOUT)[0] == "0\n2 4\n"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(owner.pid, signal.SIGKILL)
