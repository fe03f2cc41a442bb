"""A notebook's lessons on the library: what the exported cells define is imported from the module instead of executed.

`python tests/lessons.py nbs/33_rule.ipynb` executes it as nbdev-test does, with its directives, time limit and folder.
"""

import ast
import re
import sys
from pathlib import Path
from typing import Any

import nbdev.test
from cell_names import binds

EXPORT = re.compile(r"^#\|[ \t]*export[is]?(?:[ \t]+(\S+))?[ \t]*$", re.MULTILINE)
DEFAULT = re.compile(r"^#\|[ \t]*default_exp[ \t]+(\S+)[ \t]*$", re.MULTILINE)


def as_import(source: str, default: str) -> str:
    """A cell's `source`; if it is exported, the import of what it binds from its module, or from `default`."""
    if not (exported := EXPORT.search(source)):
        return source
    tree = ast.parse(source)
    # what only type checkers see is bound to nothing
    tree.body = [one for one in tree.body if not (isinstance(one, ast.If) and "TYPE_CHECKING" in ast.unparse(one.test))]
    names = ", ".join(sorted(binds(ast.unparse(tree))))
    directives = [line for line in source.splitlines() if line.startswith("#|")]
    return "\n".join([*directives, f"from fraudnb.{exported[1] or default} import {names}" if names else ""])


class LibraryProcessor(nbdev.test.NBProcessor):
    """nbdev's reader of notebooks, with imports in the place of what is exported."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        cells = [cell for cell in self.nb.cells if cell.cell_type == "code"]
        default = next((found[1] for cell in cells if (found := DEFAULT.search(cell.source))), "")
        for cell in cells:
            cell.source = as_import(cell.source, default)


def run_lessons(notebook: Path) -> bool:
    """Whether all lessons of `notebook` hold for the library; what failed is on standard error."""
    nbdev.test.NBProcessor = LibraryProcessor
    passed, _ = nbdev.test.test_nb(notebook, basepath=notebook.parents[1])
    return passed


if __name__ == "__main__":
    sys.exit(not run_lessons(Path(sys.argv[1]).resolve()))
