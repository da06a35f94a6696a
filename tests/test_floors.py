"""The floors of the design: who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "seatrial"

# From the ground up; a package imports itself and the rows below it.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"core"}),
    frozenset({"data", "models", "metrics", "numerics", "train"}),
    frozenset({"quant", "deploy", "noise", "steal", "fair", "physical"}),
    frozenset({"bench"}),
    frozenset({"report", "testing"}),
    frozenset({"catalogue"}),
    frozenset({"jobs"}),
    frozenset({"cli"}),
)
# In these rows neighbors may meet, as long as no circle arises; wings never do.
MIXED = (frozenset({"data", "models", "metrics", "numerics", "train"}), frozenset({"report", "testing"}))
# Packages that are not installed with seatrial itself: imported where they are used, behind `missing_extra`.
OPTIONAL = frozenset(
    {"torchvision", "timm", "transformers", "openvino", "ai_edge_litert", "ray", "nncf", "simplejpeg", "pycocotools"}
)
HOMELESS = frozenset({"util", "utils", "helper", "helpers", "common", "misc"})
MOST_LINES = 399


@dataclass(frozen=True)
class Import:
    """One imported module: where it stands, what it names, and whether importing the file runs it at once."""

    file: Path
    line: int
    module: str
    eager: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: imports {self.module}"


def floor_of(package: str) -> int | None:
    return next((i for i, row in enumerate(FLOORS) if package in row), None)


def package_of(module: str) -> str:
    """`seatrial.core.graph` -> `core`; the top of the package itself is ''."""
    return module.split(".")[1] if "." in module else ""


def module_name(root: Path, file: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, file: Path) -> Iterator[Import]:
    """Every import of a file, those inside functions and under TYPE_CHECKING included."""
    name = module_name(root, file)
    home = name if file.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = False
            match child:
                case ast.Import(names=names):
                    yield from (Import(file, child.lineno, alias.name, eager) for alias in names)
                case ast.ImportFrom(module=module, names=names, level=level):
                    base = module or ""
                    if level:
                        above = home.split(".")[: len(home.split(".")) - level + 1]
                        base = ".".join([*above, *([module] if module else [])])
                    # `from seatrial import core` names a floor, not the top.
                    for alias in names:
                        yield Import(file, child.lineno, f"{base}.{alias.name}" if base == root.name else base, eager)
                case ast.Call(func=func, args=[ast.Constant(value=str(text)), *_]):
                    if ast.unparse(func).split(".")[-1] in ("import_module", "__import__"):
                        yield Import(file, child.lineno, text, eager)
            yield from visit(child, inner)

    yield from visit(ast.parse(file.read_text(encoding="utf-8"), str(file)), True)


def why_refused(root: Path, item: Import) -> str | None:
    """What is wrong with an import, or None."""
    if item.module.split(".")[0] in OPTIONAL and item.eager:
        return "an optional package; import it in the function that needs it"
    if item.module.split(".")[0] != root.name:
        return None
    importer = module_name(root, item.file)
    if importer == root.name or item.module == f"{root.name}.__version__":
        return None
    mine, theirs = package_of(importer), package_of(item.module)
    mine = "cli" if mine == "__main__" else mine
    my_floor, their_floor = floor_of(mine), floor_of(theirs)
    if my_floor is None:
        return f"'{mine}' stands on no floor; give it one in tests/test_floors.py"
    if their_floor is None:
        return f"'{theirs or root.name}' stands on no floor; import from the module that defines the name"
    if mine == theirs or their_floor < my_floor:
        return None
    if their_floor > my_floor:
        return f"'{theirs}' stands above '{mine}'"
    return None if FLOORS[my_floor] in MIXED else f"'{mine}' and '{theirs}' are wings; let them meet as values"


def sources(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def violations(root: Path) -> list[str]:
    """Every broken floor under `root`, as `file:line: imports module: why`."""
    found = []
    for file in sources(root):
        for item in imports(root, file):
            if reason := why_refused(root, item):
                found.append(f"{item}: {reason}")
    return found


def circle(root: Path) -> list[str]:
    """The packages of a circle of imports, [] where there is none."""
    meets: dict[str, set[str]] = {}
    for file in sources(root):
        mine = package_of(module_name(root, file))
        others = {package_of(item.module) for item in imports(root, file) if item.module.split(".")[0] == root.name}
        meets.setdefault(mine, set()).update(others - {mine, "", "__version__"})
    meets.pop("", None)
    try:
        TopologicalSorter(meets).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_go_downwards() -> None:
    broken = violations(PACKAGE)
    assert not broken, "\n".join(["imports against the floors:", *broken])


def test_packages_form_no_circle() -> None:
    assert not circle(PACKAGE)


def test_files_are_short_and_named_after_what_they_hold() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sources(PACKAGE)}
    long = [
        f"{file}: {length} lines, wanted at most {MOST_LINES}"
        for file, length in lengths.items()
        if length > MOST_LINES
    ]
    names = [str(file) for file in sources(PACKAGE) if HOMELESS & {file.stem, *file.relative_to(PACKAGE).parts[:-1]}]
    assert not long + names, "\n".join(long + names)


def test_every_package_stands_on_a_floor() -> None:
    packages = {package_of(module_name(PACKAGE, file)) for file in sources(PACKAGE)} - {"", "__main__"}
    assert packages
    assert not packages - frozenset().union(*FLOORS)


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("core/graph.py", "import seatrial.quant.nearest", "'quant' stands above 'core'"),
        ("core/graph.py", "from seatrial import data", "'data' stands above 'core'"),
        ("core/graph.py", "def f():\n    from seatrial.bench import store", "'bench' stands above 'core'"),
        ("core/graph.py", "if TYPE_CHECKING:\n    from ..noise.fgsm import FGSM", "'noise' stands above 'core'"),
        ("core/graph.py", "importlib.import_module('seatrial.cli.main')", "'cli' stands above 'core'"),
        ("quant/nearest.py", "from seatrial.deploy.openvino import OpenVINO", "wings"),
        ("quant/__init__.py", "from ..deploy import openvino", "wings"),
        ("quant/nearest.py", "from seatrial import trial", "stands on no floor"),
        ("quant/nearest.py", "import seatrial", "stands on no floor"),
        ("loose.py", "from seatrial.core import graph", "'loose' stands on no floor"),
        ("deploy/openvino.py", "import openvino as ov", "optional package"),
        (
            "deploy/openvino.py",
            "try:\n    from openvino import Core\nexcept ImportError:\n    pass",
            "optional package",
        ),
    ],
)
def test_the_checker_names_file_line_and_import(tmp_path: Path, file: str, line: str, named: str) -> None:
    root = tmp_path / "seatrial"
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(f"import torch\n{line}\n", encoding="utf-8")
    (broken,) = violations(root)
    assert named in broken
    assert f"{root / file}:{2 + line.startswith(('def', 'if', 'try'))}: imports " in broken


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("quant/nearest.py", "from seatrial.core.graph import Graph"),
        ("quant/nearest.py", "from .ranges import MinMax"),
        ("quant/nearest.py", "from seatrial import __version__, errors"),
        ("data/folder.py", "from seatrial.metrics import accuracy"),
        ("deploy/openvino.py", "def opened():\n    import openvino"),
        ("__init__.py", "from seatrial.jobs.trial import trial"),
        ("__main__.py", "from seatrial.cli.main import main"),
        ("cli/main.py", "from seatrial.catalogue import ENTRIES"),
    ],
)
def test_the_checker_lets_honest_imports_pass(tmp_path: Path, file: str, line: str) -> None:
    root = tmp_path / "seatrial"
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(f"{line}\n", encoding="utf-8")
    assert violations(root) == []


def test_the_checker_sees_a_circle(tmp_path: Path) -> None:
    root = tmp_path / "seatrial"
    for package, other in (("data", "metrics"), ("metrics", "data")):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text(f"from seatrial import {other}\n", encoding="utf-8")
    assert violations(root) == []
    assert {"data", "metrics"} <= set(circle(root))
