"""Measure the start of a kernel with the pipeline's imports: plain (python3) against warm (fraudnb-warm), and memory.

    python bench/kernels.py                    # 20 starts of each, in turns; then 20 alive at once of each
    python bench/kernels.py --starts 5 --alive 0
    python bench/kernels.py --warm NAME        # another kernelspec in place of fraudnb-warm

A start is what nbclient does before a notebook's first result: `KernelManager.start_kernel`, waiting for the kernel's
answer to `kernel_info_request`, and a cell with the imports. Times are wall seconds; the first warm start, which loads
the process that all later ones are forked from (the zygote), is told apart and not in the median.

Memory is PSS (proportional set size: a page that n processes share counts 1/n in each), summed over all kernels, what
is below them and, for warm ones, the zygote, from /proc/PID/smaps_rollup once every kernel has done its imports: Linux
only.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import psutil
from common import alternate, markdown, median_and_range, own_zygotes, print_heading, proc_bytes
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from traitlets.config import Config

MODULES = (
    "numpy",
    "pandas",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "matplotlib.pyplot",
    "seaborn",
    "imblearn.pipeline",
    "lightgbm",
)
IMPORTS = f"import {', '.join(MODULES)}"
TIMEOUT = 300


@dataclass(frozen=True)
class Start:
    """What one start took in seconds, until the kernel has answered and until the imports are done."""

    answered: float
    ready: float


@contextmanager
def running_kernel(name: str) -> Iterator[tuple[KernelManager, Start]]:
    """Start a kernel of the kernelspec `name`, have it do the imports, and shut it down at the end."""
    with TemporaryDirectory(prefix="kernel-") as sockets:
        start = time.perf_counter()
        wished = Config(ForkProvisioner={"eager": True})
        manager = KernelManager(kernel_name=name, transport="ipc", ip=f"{sockets}/socket", config=wished)
        # a plain kernel prints how to connect to it
        manager.start_kernel(stdout=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        try:
            client.kernel_info(reply=True, timeout=TIMEOUT)
            answered = time.perf_counter() - start
            execute(client, IMPORTS)
            yield manager, Start(answered, time.perf_counter() - start)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()


def execute(client: BlockingKernelClient, code: str) -> None:
    """Execute `code` in the kernel; ends the program if it fails."""
    reply = client.execute(code, reply=True, timeout=TIMEOUT)["content"]
    if reply["status"] != "ok":
        sys.exit(f"{code} failed: {reply['ename']}: {reply['evalue']}")


def measure_start(name: str) -> Start:
    """Start a kernel of the kernelspec `name` and shut it down again."""
    with running_kernel(name) as (_, took):
        return took


def kernel_processes(managers: Sequence[KernelManager]) -> set[int]:
    """The process ids of the kernels, of what is below them, and of what they were forked from if that is not us."""
    kernels = [psutil.Process(manager.provisioner.pid) for manager in managers]
    below = {child.pid for kernel in kernels for child in kernel.children(recursive=True)}
    parents = {kernel.ppid() for kernel in kernels} - {psutil.Process().pid}
    return {kernel.pid for kernel in kernels} | below | parents


def measure_memory(name: str, alive: int) -> float:
    """The PSS in MiB of `alive` kernels of the kernelspec `name`, all with the imports done."""
    with ExitStack() as stack:
        managers = [stack.enter_context(running_kernel(name))[0] for _ in range(alive)]
        return sum(proc_bytes(pid, "smaps_rollup", "Pss") or 0 for pid in kernel_processes(managers)) / 2**20


def starts_table(results: dict[str, list[Start]]) -> str:
    """A row per kernelspec: median seconds to the kernel's answer and to the end of the imports, with the ratio."""
    ready = {name: [one.ready for one in took] for name, took in results.items()}
    base = statistics.median(next(iter(ready.values())))
    rows = [
        [
            name,
            median_and_range([one.answered for one in took], 3),
            median_and_range(ready[name], 3),
            f"{base / statistics.median(ready[name]):.1f}",
        ]
        for name, took in results.items()
    ]
    return markdown(["kernel", "s to its answer", "s to the end of the imports", "times faster"], rows)


def memory_table(memory: dict[str, float], alive: int) -> str:
    """A row per kernelspec: PSS of all kernels alive at once, and its share for one kernel."""
    base = next(iter(memory.values()))
    rows = [[name, f"{total:,.0f}", f"{total / alive:.1f}", f"{base / total:.1f}"] for name, total in memory.items()]
    return markdown(["kernel", f"MiB for {alive}", "MiB for one", "times smaller"], rows)


def parse_arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description="Start and memory of plain and warm kernels.")
    parser.add_argument("--plain", default="python3", help="the kernelspec to compare with (default: python3)")
    parser.add_argument("--warm", default="fraudnb-warm", help="the warm kernelspec (default: fraudnb-warm)")
    parser.add_argument("--starts", type=int, default=20, help="starts of each (default: 20)")
    parser.add_argument("--alive", type=int, default=20, help="kernels alive at once; 0 for no memory (default: 20)")
    return parser.parse_args()


def main() -> None:
    """Measure starts, then memory, and print both tables."""
    options = parse_arguments()
    names = (options.plain, options.warm)
    print_heading()
    print(f"Imports: {', '.join(MODULES)}\n", flush=True)
    with own_zygotes(os.environ) as private:
        os.environ.update(private)
        first = {name: measure_start(name) for name in names}
        print(", ".join(f"first start of {name}: {took.ready:.2f} s" for name, took in first.items()), end="\n\n")
        results = alternate({name: lambda name=name: measure_start(name) for name in names}, options.starts)
        print(
            f"### {options.starts} starts of each, in turns: medians (and ranges)\n\n{starts_table(results)}\n",
            flush=True,
        )
        if options.alive:
            memory = {name: measure_memory(name, options.alive) for name in names}
            print(f"### {options.alive} kernels alive at once: PSS\n\n{memory_table(memory, options.alive)}")


if __name__ == "__main__":
    main()
