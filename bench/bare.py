"""A notebook's run cells as a plain function, for bench/sweep.py: no lessons, no kernel, no executed copy.

What is executed is the code of the cells that begin with `#| eval: false`, in the module that the notebook exports and
after its import cells, compiled once. Figures and tables are rendered as a notebook renders them (PNG, HTML) or, with
`figures=False`, statements that draw are left out and nothing is rendered. Numbers are not glued but returned.
"""

import ast
import io
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import CodeType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from fraudnb.runs import as_number, find_notebook, project_root, read_cells

# names by which a statement is known to draw; so are all that begin with "plot"
DRAWING = {"axis", "axes", "figure", "image", "as_image"}


@cache
def run_cells(stem: str, figures: bool) -> list[tuple[CodeType, CodeType]]:
    """The run cells of the notebook `stem`: their statements, and the last expression (or `None`), which is shown."""
    cells = ["".join(cell["source"]) for cell in read_cells(find_notebook(stem, project_root()))]
    compiled = []
    for cell in (cell for cell in cells if cell.startswith("#| eval: false")):
        body = [statement for statement in ast.parse(cell).body if figures or not draws(statement)]
        last = (
            body.pop().value if body and isinstance(body[-1], ast.Expr) else ast.Constant(None, lineno=1, col_offset=0)
        )
        compiled.append((compile(ast.Module(body, []), stem, "exec"), compile(ast.Expression(last), stem, "eval")))
    return compiled


def draws(statement: ast.stmt) -> bool:
    """Whether `statement` draws, by the names in it."""
    nodes = list(ast.walk(statement))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return any(name in DRAWING or name.startswith("plot") for name in names)


@cache
def imported(stem: str) -> dict[str, Any]:
    """What the notebook `stem` has when its run cells begin: the module it exports, and its import cells' names."""
    names = dict(vars(import_module(f"fraudnb.{stem.partition('_')[2]}")))
    for cell in read_cells(find_notebook(stem, project_root())):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("#|"):
            body = [one for one in ast.parse(source).body if isinstance(one, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(body, []), stem, "exec"), names)
    return names


def show(shown: Any) -> None:
    """Render `shown` as HTML and text, and every open figure as PNG, as a notebook does after a cell."""
    if shown is not None:
        repr(shown)
        getattr(shown, "_repr_html_", lambda: None)()
    for number in plt.get_fignums():
        plt.figure(number).savefig(io.BytesIO(), format="png", bbox_inches="tight")
    plt.close("all")


def run_notebook(stem: str, values: Mapping[str, Any], figures: bool = True) -> dict[str, float]:
    """Execute the run cells of the notebook `stem` with the parameters `values`; returns the numbers it records."""
    matplotlib.use("agg")
    recorded: dict[str, float] = {}
    namespace = imported(stem) | dict(values)
    namespace["record_numbers"] = lambda numbers: recorded.update({k: as_number(v) for k, v in numbers.items()})
    for statements, last in run_cells(stem, figures):
        exec(statements, namespace)
        shown = eval(last, namespace)
        if figures:
            show(shown)
    return recorded
