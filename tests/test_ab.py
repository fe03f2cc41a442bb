"""bench/ab.py: how it judges, on simulated turns; what it says of wrong usage; and the whole of it on this tree."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import PACKAGE_ROOT, clean_environment
from serving import INPUTS, toy_bundle

sys.path.append(str(PACKAGE_ROOT / "bench"))

import sides  # noqa: E402
from ab import main, sentence  # noqa: E402
from common import BenchError  # noqa: E402
from judge import (  # noqa: E402
    CANNOT_TELL,
    HOLDS,
    LEAST_BLOCKS,
    PASSES,
    UNDECIDED,
    WORSE,
    Ratio,
    Rule,
    exit_code,
    judge,
    judge_same,
    ratio_of,
    turn_orders,
)

P99 = Rule(quantile=0.99, bound=1.2, width=0.2, turns=20_000)


def simulated(rng: np.random.Generator, ratio: float, luck: float = 0.07, turns: int = 100) -> np.ndarray:
    """A block of latencies, shape (turns, 2): the machine slows both sides, each process has its own luck, and every
    turn varies by itself."""
    machine, process = rng.lognormal(0, 0.5), rng.lognormal(0, luck / np.sqrt(2), 2)
    return machine * process * [1, ratio] * rng.lognormal(0, 0.4, (turns, 2))


def judged(seed: int, ratio: float, judge: Callable[[Ratio, Rule], str] = judge, most: int = 60) -> str:
    """The verdict on simulated blocks, added until there is one."""
    rng, blocks, verdict, rule = np.random.default_rng(seed), [], UNDECIDED, Rule()
    while verdict == UNDECIDED and len(blocks) < most:
        blocks.append(simulated(rng, ratio))
        verdict = judge(ratio_of(blocks, rule.quantile, seed), rule)
    return verdict


def found(low: float, high: float, turns: int = 10**6, blocks: int = LEAST_BLOCKS) -> Ratio:
    return Ratio(1, 1, (low * high) ** 0.5, low, high, turns, blocks)


def test_each_two_turns_hold_both_orders():
    drawn = list(islice(turn_orders(3), 200))
    assert all(sorted(drawn[at : at + 2]) == [(0, 1), (1, 0)] for at in range(0, 200, 2))
    assert 30 < sum(first == (0, 1) for first in drawn[::2]) < 70
    assert drawn == list(islice(turn_orders(3), 200)) != list(islice(turn_orders(4), 200))


def test_two_equal_streams_hold_1_in_nine_of_ten_simulations():
    verdicts = [judged(seed, 1.0, judge=judge_same) for seed in range(100)]
    assert verdicts.count(HOLDS) >= 90, verdicts
    assert [judged(seed, 1.0) for seed in range(30)] == [PASSES] * 30


def test_a_true_ratio_of_1_15_is_called_worse():
    assert [judged(seed, 1.15) for seed in range(100)].count(WORSE) >= 95


def test_luck_that_stays_with_a_process_is_no_difference():
    """Turns of one start agree with each other, and would, taken alone, give a narrow interval around the luck."""
    rng = np.random.default_rng(0)
    one_start = np.array_split(simulated(rng, 1.0, luck=0.5, turns=20_000), 20)
    alone = ratio_of(one_start)
    assert alone.high - alone.low < 0.1 and not alone.low < 1 < alone.high
    restarted = ratio_of([simulated(rng, 1.0, luck=0.5, turns=1000) for _ in range(20)])
    assert restarted.high - restarted.low > 0.1 and restarted.low < 1 < restarted.high


def test_the_ratio_is_paired_within_blocks():
    """A block in which the machine was slow for both sides changes nothing."""
    rng = np.random.default_rng(0)
    blocks = [np.outer(rng.lognormal(0, 0.4, 50), [2.0, 2.3]) * slow for slow in (1, 1, 30, 1, 1, 1)]
    one = ratio_of(blocks)
    assert [one.ratio, one.low, one.high] == pytest.approx([1.15] * 3)
    assert (one.turns, one.blocks) == (300, 6)
    assert ratio_of(blocks, 0.99).ratio == pytest.approx(1.15)


@pytest.mark.parametrize("never", [[np.inf, 1.0], [1.0, np.inf], [np.inf, np.inf]])
def test_what_never_came_or_came_once_has_no_interval(never: list[float]):
    finite = [np.ones((1, 2))] * 9
    assert (ratio_of(finite[:1]).low, ratio_of(finite[:1]).high) == (0, np.inf)
    one = ratio_of([*finite, np.array([never])])
    assert (one.low, one.high, judge(one, Rule())) == (0, np.inf, UNDECIDED)


@pytest.mark.parametrize(
    "interval, rule, verdict, same",
    [
        (found(0.97, 1.06), Rule(), PASSES, HOLDS),
        (found(1.05, 1.15), Rule(), PASSES, CANNOT_TELL),
        (found(1.051, 1.15), Rule(), WORSE, CANNOT_TELL),
        (found(0.80, 0.89), Rule(), PASSES, CANNOT_TELL),
        (found(0.95, 1.06), Rule(), UNDECIDED, UNDECIDED),
        (found(1.06, 9.0), Rule(), WORSE, UNDECIDED),
        (found(0.99, 1.01, blocks=LEAST_BLOCKS - 1), Rule(), UNDECIDED, UNDECIDED),
        (found(1.99, 2.01, blocks=LEAST_BLOCKS - 1), Rule(), UNDECIDED, UNDECIDED),
        (found(1.1, 1.29), P99, PASSES, CANNOT_TELL),
        (found(0.95, 1.14), P99, PASSES, HOLDS),
        (found(0.95, 1.14, turns=19_999), P99, UNDECIDED, UNDECIDED),
        (found(1.21, 1.30), P99, WORSE, CANNOT_TELL),
        (found(1.21, 1.30, turns=19_999), P99, UNDECIDED, UNDECIDED),
    ],
)
def test_verdicts(interval: Ratio, rule: Rule, verdict: str, same: str):
    assert (judge(interval, rule), judge_same(interval, rule)) == (verdict, same)


@pytest.mark.parametrize(
    "verdicts, code",
    [
        ([PASSES, PASSES], 0),
        ([PASSES, UNDECIDED], 3),
        ([PASSES, CANNOT_TELL], 3),
        ([HOLDS], 3),
        ([UNDECIDED, WORSE, PASSES], 1),
    ],
)
def test_exit_codes(verdicts: list[str], code: int):
    assert exit_code(verdicts) == code
    said = sentence({str(number): one for number, one in enumerate(verdicts)})
    assert ("worse" in said, said == "B passes.") == (code == 1, code == 0)


def test_settings(tmp_path: Path):
    (tmp_path / "one").mkdir()
    words = [f"A:model={tmp_path}/one", "B:model=s3://bank/models/b=1", "B:store=new.sqlite"]
    read = sides.read_settings(words, ("model", "store"))
    assert read == {
        "A": {"model": str(tmp_path / "one")},
        "B": {"model": "s3://bank/models/b=1", "store": "new.sqlite"},
    }
    wrong = {
        "A=model": "such as --set B:model=",
        "C:model=x": "such as --set B:model=",
        "A:model=": "such as",
        "A:modle=x": "Did you mean 'model'?",
        "A:model=nowhere": "there is no nowhere",
    }
    for word, said in wrong.items():
        with pytest.raises(BenchError, match="--set") as refused:
            sides.read_settings([word], ("model",))
        assert said in str(refused.value)


def test_a_side_runs_its_own_code(monkeypatch: pytest.MonkeyPatch):
    """Nothing of this process's settings reaches it."""
    for name in ("FRAUDNB_TOKEN", "MODEL_URI", "PORT", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "other")
    monkeypatch.setenv("AWS_REGION", "eu")
    env = sides.Side("A", "v1", Path("/trees/a"), Path("/envs/a/bin")).environment()
    assert "other" not in env.values() and env["AWS_REGION"] == "eu"
    assert env["PYTHONPATH"] == "/trees/a" and env["PATH"].startswith("/envs/a/bin:")


@pytest.mark.thorough
def test_a_revision_is_checked_out_as_git_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sides, "CACHE", tmp_path)
    commit = sides.find_commit("HEAD")
    tree = sides.check_out(commit)
    try:
        (tree / "settings.ini").write_text("spoilt")
        assert sides.check_out(commit) == tree
        assert (tree / "settings.ini").read_text().startswith("[DEFAULT]")
        (tree / "requirements.lock").unlink()
        with pytest.raises(BenchError, match="HEAD has no requirements.lock"):
            sides.install(tree, "HEAD")
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=PACKAGE_ROOT, check=True)


def run_ab(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """bench/ab.py as a command, in `folder`."""
    command = [sys.executable, str(PACKAGE_ROOT / "bench" / "ab.py"), *arguments]
    env = clean_environment() | {"NO_PROXY": "*", "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1800, check=False)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([".", "no-such-branch", "serve"], "'no-such-branch' is no revision of this repository."),
        ([".", ".", "serve", "--help-me"], "Unrecognized arguments: --help-me"),
        ([".", "."], "The following arguments are required: BENCH"),
        ([".", ".", "serv"], "Did you mean 'serve'?"),
        ([".", ".", "pipeline", "--set", "A:model=."], "this bench has no option 'model'."),
        ([".", ".", "serve", "--blocks", "0"], "'0' is no whole number above 0"),
    ],
)
def test_wrong_usage_is_one_paragraph(capsys: pytest.CaptureFixture, arguments: list[str], said: str):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("bench/ab.py: ") and said in err


@pytest.mark.thorough
def test_a_server_that_does_not_start_is_told_with_its_side(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    toy_bundle(tmp_path / "toy")
    done = run_ab(tmp_path, ".", ".", "serve", "--set", "A:model=toy", "--set", "B:model=empty", "--rows", "10")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert done.stderr.startswith("bench/ab.py: B (.): ") and "serve --port 0" in done.stderr
    assert "card.json is missing" in done.stderr


@pytest.mark.thorough
def test_the_tree_beside_itself(tmp_path: Path):
    """Too few blocks to judge: said, and never passed."""
    toy_bundle(tmp_path / "toy")
    rows = np.random.default_rng(0).exponential(size=(50, len(INPUTS)))
    np.savetxt(tmp_path / "rows.csv", rows, "%.4f", ",", header=",".join(INPUTS), comments="")
    sets = [word for side in "AB" for word in ("--set", f"{side}:model=toy", "--set", f"{side}:file=rows.csv")]
    done = run_ab(tmp_path, ".", ".", "serve", *sets, "--blocks", "2", "--turns", "20", "--json", "found.json")
    assert done.returncode == 3, done
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("|  | A | A again | A again / A | 95 % interval | asked | turns | blocks | verdict |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| one row, p50, ms", "| one row, p99, ms", "| CSV, s"]
    assert all(line.endswith(" | 2 | not decided |") for line in lines[2:])
    assert "B is not judged" in done.stdout and "passes" not in done.stdout
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["exit_code"] == 3 and [one["turns"] for one in written["rows"]] == [40, 40, 6]
    assert written["A"] == {"revision": ".", "model": str(tmp_path / "toy"), "file": str(tmp_path / "rows.csv")}
    log = (PACKAGE_ROOT / "build" / "ab" / "serve.csv").read_text().splitlines()
    assert log[0] == "pair,block,series,turn,a,b" and len(log) == 1 + 2 * (20 + 3)
    assert not list(tmp_path.glob("fraudnb-bench-*")) and not list(tmp_path.glob("run-*"))
