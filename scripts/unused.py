"""What nobody calls: public definitions that neither the library uses nor a user finds in the docs.

    python scripts/unused.py

A definition is used if its name occurs in the code of `src` (not in its own definition, an import
or `__all__`), or is told of in the README, a page of `docs` or an example. Whatever else there is
goes, moves to the experiment that needs it, or is told of: docs/api.md says in a line what each
name that no other page uses is for. Tests and decision records do not count.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SILENT = "decisions"

CALLED_ELSEWHERE = {
    "on_train_begin", "on_epoch_end", "on_save", "on_train_end",  # transformers calls these
    "on_train_batch_end", "on_validation_start", "on_train_epoch_end",  # Lightning these
    "emit",  # logging this one
    "to_scipy",  # users, on any operator
}  # fmt: skip


def definitions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Public functions, classes and methods, each with its line."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_") and not is_command(node):
            yield node.name, node.lineno
            inner = node.body if isinstance(node, ast.ClassDef) else []
            for part in inner:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield part.name, part.lineno


def is_command(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether the command line calls it."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def used(tree: ast.Module) -> Iterator[str]:
    """Names that code reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def told() -> set[str]:
    """Words of the README, the docs and the examples."""
    pages = [ROOT / "README.md", *(ROOT / "examples").glob("*.py")]
    pages += [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != SILENT]
    return {word for page in pages for word in re.findall(r"\w+", page.read_text())}


def main() -> int:
    """Print what is unused; 1 where there is anything."""
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "src").rglob("*.py"))}
    known = told() | CALLED_ELSEWHERE
    for tree in trees.values():
        known.update(used(tree))
    unused = [
        f"{path.relative_to(ROOT)}:{line}: nobody calls {name}"
        for path, tree in trees.items()
        for name, line in definitions(tree)
        if name not in known
    ]
    print("\n".join(unused) or "everything public is used or told of")
    return int(bool(unused))


if __name__ == "__main__":
    sys.exit(main())
