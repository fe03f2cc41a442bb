"""Executed notebooks as papermill leaves them, made without executing anything, for the tests of `fraudnb report`.

Some of them are written by somebody who means ill: their names, parameters and outputs hold HTML and scripts, each of
which would set `window.hacked`.
"""

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from project import command

HOSTILE = "<img src=x onerror=hacked=1>"
BREAKOUT = "</script></textarea><script>hacked=1</script>"
TIMES = {"start_time": "2026-11-23T18:13:03+00:00", "end_time": "2026-11-23T18:13:11+00:00", "duration": 8.1}


def png(width: int = 640, height: int = 240) -> str:
    """A grey PNG picture in base64, as notebooks hold it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes([200]) * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def code(source: str, *outputs: Any, tags: tuple[str, ...] = ()) -> Any:
    """A code cell with `outputs`."""
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata={"tags": list(tags)})


def shown(**kinds: str) -> Any:
    """An output of several kinds; an underscore in a kind stands for its slash."""
    return new_output("display_data", {kind.replace("_", "/"): content for kind, content in kinds.items()})


def write_executed(path: Path, *cells: Any, parameters: dict[str, Any] | None = None, **about: Any) -> Path:
    """A notebook of `cells` at `path` that looks executed with `parameters`; `about` goes to papermill's metadata."""
    papermill = {"parameters": parameters or {}, "exception": None, **TIMES, **about}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells), metadata={"papermill": papermill}), path)
    return path


def table(columns: int = 14) -> str:
    """The HTML of a table, as pandas writes it, that is wider than a phone."""
    head = "".join(f"<th>column_{number}</th>" for number in range(columns))
    cells = "".join(f"<td>{number / 7:.6f}</td>" for number in range(columns))
    style = "<style scoped>.dataframe tbody tr th { vertical-align: top; }</style>"
    return f'<div>{style}<table border="1" class="dataframe"><tr>{head}</tr><tr>{cells}</tr></table></div>'


def training(**parameters: Any) -> list[Any]:
    """The cells of a notebook that has gone well, with a figure, a table, a stream and cells that were not run."""
    given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    return [
        new_markdown_cell("# Training\n\n> Fit a model."),
        code("model: str = 'lightgbm'\nseed: int = 0", tags=("parameters",)),
        code(f"# Parameters\n{given}", tags=("injected-parameters",)),
        new_markdown_cell("## Learning curve\n\nMore rows help. Up to a point."),
        code("as_image(plot_learning_curve(curve))", shown(image_png=png(), text_plain="<Image>")),
        new_markdown_cell("## Table"),
        code("table", shown(text_html=table(), text_plain="column_0 ...")),
        code("print('x' * 300)", new_output("stream", text="x" * 300 + "\n")),
        code("#| export\ndef very_long_name(" + ", ".join(f"argument_{n}" for n in range(30)) + "): ..."),
        code("test_eq(1, 1)", tags=("skip-execution",)),
    ]


def numbers(shift: float = 0.0) -> dict[str, float]:
    """The metrics of a run, with intervals."""
    found: dict[str, float] = {"test_rows": 56759, "threshold": 0.142}
    for name, value in {"average_precision": 0.85, "precision": 0.93, "recall": 0.8}.items():
        at = round(value - shift, 4)
        found |= {name: at, f"{name}_low": round(at - 0.08, 4), f"{name}_high": round(at + 0.06, 4)}
        found[f"valid_{name}"] = round(at + 0.01, 4)
    return found


def write_run(folder: Path, shift: float = 0.0, **parameters: Any) -> Path:
    """A run in `folder` that is done: two notebooks and its metrics."""
    cells = training(**parameters)
    write_executed(folder / "03_train.ipynb", *cells, parameters=parameters)
    write_executed(folder / "04_evaluate.ipynb", new_markdown_cell("# Evaluation"), code("1"), parameters={})
    (folder / "metrics.json").write_text(json.dumps(numbers(shift)))
    return folder


def write_swept(folder: Path, number: int, status: str = "done", **point: Any) -> Path:
    """A sweep's run in `folder` with its record, which ended with `status`."""
    place = folder / f"k{number:02}"
    write_run(place, 0.01 * number, **point)
    record = {"key": place.name, "status": status, "point": point, "metrics": numbers(0.01 * number)}
    if status == "failed":
        record |= {"error": "cell 3 of 03_train.ipynb failed with ValueError: no.", "metrics": {}}
        (place / "metrics.json").unlink()
    (place / "run.json").write_text(json.dumps(record | {"seconds": {"all": 3.5 + number}}))
    return place


def failing(message: str = "a side is not negative") -> list[Any]:
    """The cells of a notebook whose third fails."""
    trace = ["\x1b[31mValueError\x1b[39m: " + message, "  in check_side"]
    error = new_output("error", ename="ValueError", evalue=message, traceback=trace)
    return [new_markdown_cell("# Square"), code("side = -1"), code("check_side(side)", error), code("print('later')")]


def hostile_cells() -> list[Any]:
    """The cells of a notebook that tries all it can to run a script."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>parent.hacked=1</script><rect width="9" height="9"/></svg>'
    return [
        new_markdown_cell(f"# {HOSTILE}\n\n{BREAKOUT} [link](javascript:hacked=1) <svg onload=hacked=1></svg>"),
        new_markdown_cell("![picture](https://example.org/x.png) ![twice](//example.org/y.png)"),
        new_markdown_cell('<details open ontoggle="hacked=1"><form id="main"><button onfocus="hacked=1">'),
        code(BREAKOUT, new_output("stream", text=BREAKOUT)),
        code("1", shown(text_html=f'{BREAKOUT}<iframe srcdoc="<script>top.hacked=1</script>"></iframe>')),
        code("2", shown(text_html='<link rel="stylesheet" href="https://example.org/x.css"><base href="https://x/">')),
        code("3", shown(application_javascript="window.hacked=1"), shown(**{"image_svg+xml": svg})),
        code("4", shown(text_html="<math><mtext><table><mglyph><style><img src=x onerror=hacked=1></style>")),
        code("5", shown(text_markdown=f"{BREAKOUT}<a href='vbscript:x'>x</a>"), shown(text_latex=BREAKOUT)),
        code("6", new_output("error", ename=HOSTILE, evalue=BREAKOUT, traceback=[BREAKOUT])),
    ]


def write_project(folder: Path) -> Path:
    """A project with runs of every kind: done, failed, unfinished, damaged, hostile, numbers only, and two sweeps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.ini").touch()
    runs = folder / "runs"
    write_run(runs / "main", model="lightgbm", seed=0, data_folder="data/main")
    write_run(runs / "forest", 0.03, model="random_forest", seed=0, data_folder="data/forest")
    write_executed(runs / "broken" / "03_square.failed.ipynb", *failing(), exception=True)
    write_executed(runs / "stopped" / "03_square.partial.ipynb", *failing()[:2], end_time=None, duration=None)
    (runs / "cut").mkdir()
    (runs / "cut" / "03_train.ipynb").write_text((runs / "main" / "03_train.ipynb").read_text()[:2000])
    (runs / "numbers").mkdir()
    (runs / "numbers" / "metrics.json").write_text(json.dumps(numbers(0.2)))
    bad = {HOSTILE: BREAKOUT, "model": HOSTILE}
    write_executed(runs / HOSTILE / f"{HOSTILE}.ipynb", *hostile_cells(), parameters=bad, exception=True)
    (runs / HOSTILE / "metrics.json").write_text(json.dumps({HOSTILE: 0.5, "recall": 0.1, "f1": float("nan")}))
    for number, (model, rate) in enumerate((("lightgbm", 0.001), ("lightgbm", 0.1), ("svc", 0.01), (HOSTILE, 1.0))):
        write_swept(runs / "sweep", number, model=model, rate=rate)
    write_swept(runs / "sweep", 9, "failed", model="svc", rate=1.0)
    write_swept(runs / HOSTILE / "sweep", 1, side=1)
    return folder


def write_site(folder: Path) -> None:
    """The same project, and its site as the real command makes it."""
    done = command(write_project(folder), "report")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"13 runs, 20 notebooks rendered: {Path('site/index.html')}\n"
    assert done.stderr.endswith(f"{folder / 'runs/cut/03_train.ipynb'} is damaged: its page says how.\n")
