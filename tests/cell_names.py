"""Which names a cell reads from outside, which it binds, and which it changes in place, as far as its text shows."""

import ast
from typing import Any

# methods that change what they are called on, of lists, dictionaries, sets, arrays and tables
CHANGING = {
    "append", "extend", "insert", "remove", "pop", "popitem", "clear", "sort", "reverse", "update", "setdefault", "add",
    "discard", "difference_update", "intersection_update", "fill", "put", "resize", "partition", "itemset", "setflags",
}  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def python(source: str) -> ast.Module:
    """The cell `source` without its lines of IPython magic."""
    return ast.parse("\n".join("pass" if line.startswith(("%", "!")) else line for line in source.splitlines()))


def free_names(node: ast.AST, bound: set[str]) -> set[str]:
    """Names that the code `node` reads and that are not in `bound`, to which those are added that it surely binds."""
    match node:
        case ast.Name(ctx=ast.Load()):
            return {node.id} - bound
        case ast.Name():
            bound.add(node.id)
            return set()
        case ast.Import() | ast.ImportFrom():
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            return set()
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            bound.add(node.name)
            return inner_names(node) - bound
        case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return inner_names(node) - bound
        case ast.For():
            free = free_names(node.iter, bound) | free_names(node.target, bound)
            return free.union(*(free_names(one, set(bound)) for one in [*node.body, *node.orelse]))
        case ast.If():
            free, branches = free_names(node.test, bound), [set(bound), set(bound)]
            for body, names in zip((node.body, node.orelse), branches, strict=True):
                free |= set().union(*(free_names(one, names) for one in body))
            bound |= branches[0] & branches[1]
            return free
        case ast.While() | ast.Try() | ast.Match():
            perhaps = set(bound)  # what is bound in a branch may not be bound after it
            return set().union(*(free_names(one, perhaps) for one in ast.iter_child_nodes(node)))
        case ast.ExceptHandler():
            perhaps = bound | ({node.name} if node.name else set())
            return set().union(*(free_names(one, perhaps) for one in ast.iter_child_nodes(node)))
        case ast.AugAssign():
            targets = {one.id for one in ast.walk(node.target) if isinstance(one, ast.Name)}
            return free_names(node.value, bound) | targets - bound
    # a value is read before its target is bound
    parts = sorted(ast.iter_child_nodes(node), key=lambda one: isinstance(getattr(one, "ctx", None), ast.Store))
    return set().union(*(free_names(part, bound) for part in parts))


def inner_names(node: ast.AST) -> set[str]:
    """Names that the function, class or comprehension `node` reads and does not itself bind."""
    names = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
    bound = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
    bound |= {one.id for one in names if not isinstance(one.ctx, ast.Load)}
    bound |= {one.name for one in ast.walk(node) if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    bound |= {one.name for one in ast.walk(node) if isinstance(one, ast.ExceptHandler) and one.name}
    for one in ast.walk(node):
        if isinstance(one, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in one.names}
    return {one.id for one in names} - bound


def outermost(node: ast.AST, kinds: tuple[type, ...]) -> list[Any]:
    """The nodes of `kinds` below `node` that are in no other of them."""
    below = list(ast.iter_child_nodes(node))
    return [found for one in below for found in ([one] if isinstance(one, kinds) else outermost(one, kinds))]


def reads(source: str) -> tuple[set[str], set[str]]:
    """Names that the cell `source` reads at once, and those that its functions read when they are called."""
    tree = python(source)
    functions = outermost(tree, FUNCTIONS)
    late = set().union(*(inner_names(one) for one in functions))
    for one in functions:
        one.body = one.body if isinstance(one, ast.Lambda) else [ast.Pass()]
    return free_names(tree, set()), late


def binds(source: str) -> set[str]:
    """Names that the cell `source` may give a value at its top level, or functions in it by `global`."""
    tree = python(source)
    names = {name for one in ast.walk(tree) if isinstance(one, ast.Global) for name in one.names}
    names |= {one.name for one in outermost(tree, FUNCTIONS[:3])}
    inner = outermost(tree, FUNCTIONS + COMPREHENSIONS)
    hidden = {id(one) for part in inner for one in ast.walk(part)}
    for one in (one for one in ast.walk(tree) if id(one) not in hidden):
        if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load):
            names.add(one.id)
        if isinstance(one, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in one.names}
    return names


def changes(source: str) -> set[str]:
    """Names of what the cell `source` changes in place: by index, attribute, `del`, or a method known to."""
    found = []
    for one in ast.walk(python(source)):
        match one:
            case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
                found.append(one)
            case ast.AugAssign(target=ast.Name()):
                found.append(one.target)
            case ast.Call(func=ast.Attribute(attr=attr), keywords=given):
                inplace = any(word.arg == "inplace" for word in given)
                found += [one.func.value] if attr in CHANGING or inplace else []
    names = set()
    for one in found:
        while isinstance(one, ast.Subscript | ast.Attribute):
            one = one.value
        names |= {one.id} if isinstance(one, ast.Name) else set()
    return names
