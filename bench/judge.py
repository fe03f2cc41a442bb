"""How bench/ab.py judges two sides that took turns: the order of the turns, the interval of their ratio, the verdict.

A block is a fresh start of both sides and the turns that they take before they are ended. A started process keeps its
luck (where its memory lies, which core it got) until it ends: turns of one block agree with each other far better than
with those of the next, and only new starts say how much of a difference was luck. So blocks are what is independent and
what is resampled; Kalibera and Jones, "Rigorous benchmarking in reasonable time" (ISMM 2013), derive the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SURE = 0.95
RESAMPLES = 4000
# fewer say too little of how much blocks differ: in simulations (tests/test_ab.py) six hold 1 in 93 of 100
LEAST_BLOCKS = 6

PASSES, WORSE, UNDECIDED, HOLDS, CANNOT_TELL = "passes", "worse", "not decided", "holds 1", "machine cannot tell"


@dataclass(frozen=True)
class Rule:
    """What a ratio B / A of the quantile `quantile` must keep to.

    "None worse than `bound`" is: the interval's lower end is at most `bound`, and the interval is at most `width` wide;
    it is asked only after `turns` turns and `LEAST_BLOCKS` blocks.
    """

    quantile: float = 0.5
    bound: float = 1.05
    width: float = 0.1
    turns: int = 1


@dataclass(frozen=True)
class Ratio:
    """The value of either side, their ratio B / A with its 95 % interval, and what it rests on."""

    a: float
    b: float
    ratio: float
    low: float
    high: float
    turns: int
    blocks: int


def turn_orders(seed: int) -> Iterator[tuple[int, int]]:
    """Which side goes first, turn by turn without end: each two turns hold both orders, in an order that is drawn."""
    rng = np.random.default_rng(seed)
    while True:
        yield from ((0, 1), (1, 0)) if rng.random() < 0.5 else ((1, 0), (0, 1))


def block_quantiles(blocks: Sequence[np.ndarray], quantile: float) -> np.ndarray:
    """The `quantile` of each side in each block, shape (blocks, 2), of blocks of shape (turns, 2)."""
    return np.array([np.quantile(block, quantile, axis=0, method="higher") for block in blocks])


def ratio_of(blocks: Sequence[np.ndarray], quantile: float = 0.5, seed: int = 0) -> Ratio:
    """The ratio B / A of the `quantile` over `blocks`, each of shape (turns, 2), with its bootstrap interval.

    In each block the quantile of B over that of A, which pairs them: whatever slowed the machine in this block slowed
    both. Over blocks the geometric mean. Blocks are drawn with replacement and kept whole, as Davison and Hinkley,
    "Bootstrap methods and their application" (1997), section 3.8, advise for data in groups. The percentiles are
    Hesterberg's expanded ones ("What teachers should know about the bootstrap", 2015, section 4.3), since plain ones
    are too narrow for few blocks. A single block, or one in which a quantile is infinite, has none: from 0 to infinity.
    """
    logs = np.log(block_quantiles(blocks, quantile))
    with np.errstate(invalid="ignore"):  # a page that never came is infinite
        steps = logs[:, 1] - logs[:, 0]
        a, b, ratio = (float(np.exp(one.mean())) for one in (*logs.T, steps))
    low, high = 0.0, np.inf
    if len(blocks) > 1 and np.isfinite(steps).all():
        drawn = np.random.default_rng(seed).integers(0, len(blocks), (RESAMPLES, len(blocks)))
        tail = expanded_tail(len(blocks))
        low, high = map(float, np.exp(np.quantile(steps[drawn].mean(axis=1), [tail, 1 - tail])))
    return Ratio(a, b, ratio, low, high, sum(map(len, blocks)), len(blocks))


def expanded_tail(count: int) -> float:
    """The share of resamples below Hesterberg's expanded percentile interval of the mean of `count` values."""
    reach = stats.t.ppf((1 + SURE) / 2, count - 1) * np.sqrt(count / (count - 1))
    return float(stats.norm.cdf(-reach))


def enough(found: Ratio, rule: Rule) -> bool:
    """Whether `found` rests on what `rule` and the interval need."""
    return found.blocks >= LEAST_BLOCKS and found.turns >= rule.turns


def narrow(found: Ratio, rule: Rule) -> bool:
    """Whether the interval of `found` is as narrow as `rule` asks."""
    return found.high - found.low <= rule.width


def judge(found: Ratio, rule: Rule) -> str:
    """What is to be said of B beside A: `WORSE` where all of the interval lies above the bound, however wide it is."""
    if not enough(found, rule):
        return UNDECIDED
    if found.low > rule.bound:
        return WORSE
    return PASSES if narrow(found, rule) else UNDECIDED


def judge_same(found: Ratio, rule: Rule) -> str:
    """What is to be said of A beside A, of which the ratio is 1: one in twenty intervals misses it by chance."""
    if not enough(found, rule) or not narrow(found, rule):
        return UNDECIDED
    return HOLDS if found.low <= 1 <= found.high else CANNOT_TELL


def exit_code(verdicts: Sequence[str]) -> int:
    """0 if all pass, 1 if one is worse, else 3."""
    if WORSE in verdicts:
        return 1
    return 0 if all(one == PASSES for one in verdicts) else 3
