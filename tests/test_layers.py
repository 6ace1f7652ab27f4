"""Who may import whom: pipelines ← fastclr ← benchmarks ← fastclr.cli."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "pipelines": ("fastclr", "benchmarks"),
    "fastclr": ("benchmarks",),
    "fastclr/model": ("fastclr.cli", "fastclr.config", "fastclr.train", "benchmarks"),
    "fastclr/loss": ("fastclr.cli", "fastclr.config", "fastclr.train", "benchmarks"),
    "fastclr/optim": ("fastclr.cli", "fastclr.config", "fastclr.train", "benchmarks"),
    "fastclr/evaluate": ("fastclr.cli", "fastclr.config", "benchmarks"),
    "benchmarks": ("fastclr.cli",),
}
MAY = {"fastclr/cli/bench.py", "fastclr/cli/speedrun.py"}


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names.update([f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)])
    return names


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layers(layer):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        if path.relative_to(ROOT).as_posix() in MAY:
            continue
        for name in imports(path):
            for forbidden in FORBIDDEN[layer]:
                assert name != forbidden and not name.startswith(forbidden + "."), f"{path} imports {name}"


def test_only_commands_import_commands():
    for path in (ROOT / "fastclr").rglob("*.py"):
        if path.parent.name != "cli":
            assert not [name for name in imports(path) if name.startswith("fastclr.cli")], path


def test_files_are_short():
    """One concept a file: past 400 lines it is split; a kernel, whose callees must be in its file, has 450."""
    for package in ("pipelines", "fastclr", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert len(text.splitlines()) <= (450 if "njit(" in text else 400), path


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports, at the top or inside a function, except for the type checker alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules else f"{node.module}")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found & modules


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return a cycle of a graph, or nothing."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for following in sorted(graph[name]):
                if cycle := search(following, [*way, name]):
                    return cycle
            done.add(name)
        return []

    for name in sorted(graph):
        if cycle := search(name, []):
            return cycle
    return []


def test_cycles_are_found():
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_import_cycles():
    """Neither at the top of a module nor inside its functions."""
    files = {}
    for package in ("pipelines", "fastclr", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            files[name.removesuffix(".__init__")] = path
    graph = {name: imported_modules(path, set(files)) - {name} for name, path in files.items()}
    assert not cycle_in(graph)
