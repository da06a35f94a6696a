"""What a stranger finds in a clone: no trace of one machine, versions that agree, links that lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import seatrial

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.:-])/(?:work|root|home|Users)/\w"),
    "the address of a package registry": re.compile(
        r"pypi\.org/simple|pythonhosted\.org|--(?:extra-)?index-url|find-links|download\.pytorch\.org", re.IGNORECASE
    ),
}
BINARY = {".png", ".jpg", ".jpeg", ".safetensors", ".onnx", ".tflite", ".pt2", ".parquet", ".ico"}


def tracked() -> list[Path]:
    """Files that git knows or would add; skips where this is no git checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so it is unknown which files belong to the project")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for file in tracked():
        if file.suffix in BINARY or file == Path(__file__).resolve():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{file}:{number}: {what}: {line.strip()}" for what, p in FORBIDDEN.items() if p.search(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("see /" + "home/someone/data", True),
        ("pip install --" + "index-url X", True),
        ("https://example.org/" + "work/page", False),
        ("tests/home/x", False),
    ],
)
def test_the_patterns_find_what_they_should(line: str, bad: bool) -> None:
    assert any(pattern.search(line) for pattern in FORBIDDEN.values()) == bad


def test_the_version_is_one() -> None:
    assert PROJECT["version"] == seatrial.__version__ == version("seatrial")
    assert f"## [{seatrial.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_license() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): pinned for name, pinned in pairs}


def test_constraints_are_exact_portable_and_within_the_ranges() -> None:
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", pinned) for pinned in pins().values())
    ranges = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    wrong = []
    for requirement in map(Requirement, ranges):
        pinned = pins().get(canonicalize_name(requirement.name))
        if pinned is None or pinned not in requirement.specifier:
            wrong.append(f"{requirement}: constraints.txt has {pinned}")
    assert not wrong, "\n".join(wrong)


def test_links_between_pages_lead_to_files() -> None:
    missing = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                missing.append(f"{page}: {link}")
    assert not missing, "\n".join(missing)


def test_modules_and_their_public_names_have_docstrings() -> None:
    bare = []
    for file in sorted((ROOT / "seatrial").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            bare.append(f"{file}:1: the module")
        for node in tree.body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{file}:{node.lineno}: {node.name}")
    assert not bare, "\n".join(bare)
