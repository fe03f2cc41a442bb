"""The two sides of bench/ab.py: a revision of this repository, or its working tree, with options, and where it runs.

A revision is checked out below build/ab/trees and gets an environment of its own below build/ab/envs, installed by uv
from its own requirements.lock: both stay, so that the second call starts at once. The working tree runs in the
environment that bench/ab.py itself runs in.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import BIN, ROOT, BenchError

from fraudnb.errors import near_match

CACHE = ROOT / "build" / "ab"
WORKING_TREE = "."
OPTIONS = {
    "model": "the bundle that is served, a folder or s3://...; default: A trains one on the sample, for both",
    "file": "the table that is scored or trained on, CSV; default: the sample",
    "store": "what `fraudnb serve --history` gets",
}


@dataclass(frozen=True)
class Side:
    """One of the two: its name in tables, what was asked for, the folder of its code, of its programs, its options."""

    name: str
    asked: str
    tree: Path
    programs: Path
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def fraudnb(self) -> str:
        """The command."""
        return str(self.programs / "fraudnb")

    def environment(self) -> dict[str, str]:
        """What its processes get: of this one's all but what tells Python or fraudnb what to do."""
        ours = ("FRAUDNB", "MODEL_", "PORT", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join([str(self.programs), kept.get("PATH", os.defpath)])
        return kept | {"PYTHONPATH": str(self.tree), "PATH": path}


def read_settings(settings: Sequence[str], known: Sequence[str]) -> dict[str, dict[str, str]]:
    """The options of A and of B in words such as A:model=models/b; ends the program at one that is not `known`."""
    found: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    for word in settings:
        side, colon, rest = word.partition(":")
        name, equals, value = rest.partition("=")
        if side not in found or not colon or not equals or not value:
            raise BenchError(f"--set {word}: it is spelled SIDE:NAME=VALUE, such as --set B:model=models/new.")
        if name not in known:
            listed = f"It has {', '.join(known)}." if known else "It has none."
            raise BenchError(f"--set {word}: this bench has no option {name!r}.{near_match(name, known)} {listed}")
        # a store may be made by the server
        found[side][name] = value if "://" in value or name == "store" else existing(value, word)
    return found


def existing(value: str, word: str) -> str:
    """The whole path of the file or folder `value`; ends the program if there is none."""
    if not Path(value).exists():
        raise BenchError(f"--set {word}: there is no {value}.")
    return str(Path(value).resolve())


def make_side(name: str, asked: str, options: Mapping[str, str]) -> Side:
    """The side called `name` of the revision or working tree `asked`, checked out and installed where need be."""
    if asked == WORKING_TREE:
        return Side(name, asked, ROOT, BIN, options)
    commit = find_commit(asked)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benches at once would check out into the same folder
        tree = check_out(commit)
        shown = asked if commit.startswith(asked) else f"{asked}, {commit[:7]}"
        return Side(name, shown, tree, install(tree, asked), options)


def find_commit(revision: str) -> str:
    """The whole hash of `revision`."""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(
            f"{revision!r} is no revision of this repository. A and B are a branch, a tag or a commit (git fetch brings"
            " those of others), or . for the working tree."
        )
    return done.stdout.strip()


def check_out(commit: str) -> Path:
    """A worktree of `commit`, as git has it."""
    tree = CACHE / "trees" / commit[:12]
    if not (tree / ".git").exists():
        shutil.rmtree(tree, ignore_errors=True)
        # forced: git still knows a folder of that name when somebody has removed build/
        do(["git", "worktree", "add", "--quiet", "--force", "--detach", str(tree), commit], ROOT)
    do(["git", "reset", "--quiet", "--hard", commit], tree)
    return tree


def install(tree: Path, asked: str) -> Path:
    """The folder of programs of the environment of `tree`, which its requirements.lock says."""
    lock = tree / "requirements.lock"
    if not lock.exists():
        raise BenchError(f"{asked} has no requirements.lock, so that nobody knows what it ran with.")
    # the command and the kernels are entry points, installed with the tree's own metadata
    said = [path.read_bytes() for path in (lock, tree / "settings.ini", tree / "setup.py")]
    key = hashlib.sha256(b"\0".join([*said, str(tree).encode(), sys.version.encode()])).hexdigest()[:12]
    folder = CACHE / "envs" / key
    programs, finished = folder / "bin", folder / "installed"
    if not finished.exists():
        print(f"{asked}: installing its requirements.lock, once", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv, python = str(shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")), str(programs / "python")
        do([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], tree)
        do([uv, "pip", "sync", "--quiet", "--compile-bytecode", "--python", python, str(lock)], tree)
        own = ["--no-deps", "--no-build-isolation", "--editable", str(tree)]
        do([uv, "pip", "install", "--quiet", "--python", python, *own], tree)
        finished.touch()
    return programs


def do(command: Sequence[str], folder: Path) -> None:
    """Run `command` in `folder`; ends the program if it fails."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed: {' '.join(done.stdout.split())[-500:]}")
