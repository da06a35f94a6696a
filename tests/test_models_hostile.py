"""Programs (`.pt2`) that try to run code, leave their folder, or exhaust memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from seatrial.core.graph import from_program
from seatrial.errors import BadInput
from seatrial.models.archive import ArchiveLimits, check_members
from seatrial.models.program import open_program
from seatrial.models.program_text import check_expression, check_target


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    exported = torch.export.export(module, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: Dim.DYNAMIC},))
    path = tmp_path_factory.mktemp("honest") / "honest.pt2"
    torch.export.save(exported, path)
    return path


def rewritten(
    path: Path,
    out: Path,
    *,
    edit: Callable[[dict[str, Any]], object] | None = None,
    replace: dict[str, bytes] | None = None,
    add: dict[str, bytes] | None = None,
    config: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Return a copy of an archive with some members changed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        root = source.namelist()[0].split("/")[0]
        for name in source.namelist():
            data = source.read(name)
            inner = name.removeprefix(root + "/")
            for change, member in ((edit, "models/model.json"), (config, "data/weights/model_weights_config.json")):
                if change is not None and inner == member:
                    tree = json.loads(data)
                    change(tree)
                    data = json.dumps(tree).encode()
            target.writestr(name, (replace or {}).get(inner, data))
        for name, data in (add or {}).items():
            target.writestr(f"{root}/{name}", data)
    return out


def refused(path: Path, mark: Path) -> str:
    """Return the message that the file is refused with, after checking that nothing ran."""
    with pytest.raises(BadInput) as error:
        from_program(open_program(path))
    assert not mark.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def _everywhere(tree: object, key: str, value: object) -> None:
    if isinstance(tree, dict):
        if key in tree:
            tree[key] = value
        for inner in tree.values():
            _everywhere(inner, key, value)
    elif isinstance(tree, list):
        for inner in tree:
            _everywhere(inner, key, value)


def _renamed(tree: dict[str, Any], new: str) -> None:
    old = tree["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
    text = json.dumps(tree).replace(f'"{old}"', json.dumps(new))
    tree.clear()
    tree.update(json.loads(text))


def test_an_honest_program_still_loads_and_a_copy_of_it_too(program: Path, tmp_path: Path) -> None:
    x = torch.rand(3, 3, 8, 8)
    loaded = open_program(program)
    again = open_program(rewritten(program, tmp_path / "copy.pt2", add={"extra/note.txt": b"hello"}))
    torch.testing.assert_close(loaded.module()(x), again.module()(x), rtol=0, atol=0)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_our_own_graphs_load(tmp_path: Path) -> None:
    from seatrial.core.qdq import narrow_float, qdq

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("scale", torch.tensor(0.1))
            self.register_buffer("zero", torch.tensor(3))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = narrow_float(qdq(self.conv(x), self.scale, self.zero, 0, 255, -1), "bf16")
            return {"logits": y.reshape(y.shape[0], -1, y.shape[3] // 2) + torch.tensor([1.0])}

    shapes = ({0: Dim.DYNAMIC, 3: Dim("half", min=4, max=64) * 2},)
    module = Rounded().eval()
    torch.export.save(
        torch.export.export(module, (torch.rand(2, 3, 8, 8),), dynamic_shapes=shapes), tmp_path / "rounded.pt2"
    )
    x = torch.rand(3, 3, 8, 12)
    loaded = open_program(tmp_path / "rounded.pt2")
    torch.testing.assert_close(loaded.module()(x)["logits"], module(x)["logits"], rtol=0, atol=0)


@pytest.mark.parametrize("member", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/weights/weight_0"])
@pytest.mark.parametrize("saver", ["torch", "plain"])
def test_a_pickle_inside_a_program_is_not_run(program: Path, tmp_path: Path, member: str, saver: str) -> None:
    mark = tmp_path / "ran"
    buffer = io.BytesIO()
    if saver == "torch":
        torch.save(((torch.rand(2), Evil(mark)), {}), buffer)
    else:
        pickle.dump(Evil(mark), buffer)
    data = buffer.getvalue()
    name = member if not member.endswith("weights/model.pt") else "data/weights/model.pt"

    def config(tree: dict[str, Any]) -> None:
        first = next(entry for entry in tree["config"].values() if entry["path_name"] == "weight_0")
        first["use_pickle"] = True

    path = rewritten(
        program,
        tmp_path / "evil.pt2",
        replace={name: data},
        add={name: data} if name.endswith("weights/model.pt") else {},
        config=config if name.endswith("weight_0") else None,
    )
    assert "run code" in refused(path, mark)


def test_expressions_operators_and_names_that_run_code_are_refused(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    call = f"open({str(mark)!r}, 'w')"

    def node(tree: dict[str, Any]) -> dict[str, Any]:
        return tree["graph_module"]["graph"]["nodes"][0]

    signature = "module_call_graph"
    tree_of = '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": "antigravity", '
    tree_of += '"default_factory_name": "x", "dict_context": []}, "children_spec": []}]'
    edits: dict[str, Callable[[dict[str, Any]], object]] = {
        "sympify": lambda tree: _everywhere(tree, "expr_str", call),
        "range": lambda tree: tree["range_constraints"].update({call: {"min_val": 1, "max_val": 2}}),
        "target": lambda tree: node(tree).update(target="torch.os.system"),
        "library": lambda tree: node(tree).update(target="torch.ops.load_library"),
        "dunder": lambda tree: node(tree).update(target="torch.ops.aten.__init__.__globals__"),
        "file": lambda tree: node(tree).update(target="torch.ops.aten.from_file.default"),
        "argument": lambda tree: node(tree)["inputs"][0].update(name=f"input={call}"),
        "input": lambda tree: _renamed(tree, f"x={call}"),
        "signature": lambda tree: tree["graph_module"][signature][0]["signature"].update(
            forward_arg_names=[f"x={call}"]
        ),
        "path": lambda tree: tree["graph_module"][signature].append({"fqn": f'a", {call}, "', "signature": None}),
        "tree": lambda tree: tree["graph_module"][signature][0]["signature"].update(in_spec=tree_of),
        "object": lambda tree: node(tree)["inputs"][0].update(arg={"as_custom_obj": {"name": "a", "class_fqn": "b"}}),
    }
    for name, edit in edits.items():
        message = refused(rewritten(program, tmp_path / f"{name}.pt2", edit=edit), mark)
        assert "run code" in message or "does not know" in message, name


def test_guards_are_dropped_and_not_compiled(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = rewritten(
        program, tmp_path / "guard.pt2", edit=lambda tree: tree.update(guards_code=[f"open({str(mark)!r}, 'w')"])
    )
    loaded = open_program(path)
    assert loaded._guards_code == []
    loaded.module()(torch.rand(2, 3, 8, 8))
    assert not mark.exists()


def test_text_as_sample_input_is_refused(program: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save((("text",), {}), buffer)
    path = rewritten(program, tmp_path / "text.pt2", replace={"data/sample_inputs/model.pt": buffer.getvalue()})
    assert "sample input" in refused(path, tmp_path / "ran")


@pytest.mark.parametrize(
    "name",
    [
        "data/constants/custom_obj_0",
        "data/aotinductor/model/model.so",
        "data/executorch/model.pte",
        "models/other.json",
        "../outside",
        "data/weights/../../outside",
        "code/thing.py",
        "MODELS/model.json",
    ],
)
def test_unknown_members_are_refused(program: Path, tmp_path: Path, name: str) -> None:
    path = rewritten(program, tmp_path / "member.pt2", add={name: b"x"})
    assert "member" in refused(path, tmp_path / "ran")


def test_tensors_that_are_larger_than_their_bytes_are_refused(program: Path, tmp_path: Path) -> None:
    def config(tree: dict[str, Any]) -> None:
        meta = next(iter(tree["config"].values()))["tensor_meta"]
        meta["sizes"] = [{"as_int": 1 << 40}]
        meta["strides"] = [{"as_int": 0}]

    assert "table of weights" in refused(rewritten(program, tmp_path / "large.pt2", config=config), tmp_path / "ran")


def test_truncated_and_foreign_files_are_refused(program: Path, tmp_path: Path) -> None:
    data = program.read_bytes()
    cases = {"half": data[: len(data) // 2], "empty": b"", "text": b"hello", "tail": data + b"PK\x05\x06" + bytes(18)}
    for name, content in cases.items():
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(content)
        refused(path, tmp_path / "ran")
    refused(tmp_path / "missing.pt2", tmp_path / "ran")
    refused(tmp_path, tmp_path / "ran")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_changed_byte_gives_a_program_or_bad_input(program: Path, data: st.DataObject) -> None:
    content = bytearray(program.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = program.parent / "fuzzed.pt2"
    path.write_bytes(content)
    with contextlib.suppress(BadInput):
        assert open_program(path).graph_module is not None


def test_bombs_links_and_climbing_members_are_refused(tmp_path: Path) -> None:
    def archive(*entries: tuple[str, bytes, int]) -> io.BytesIO:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            for name, data, mode in entries:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                target.writestr(info, data)
        return buffer

    assert check_members(archive(("a/b", b"x" * 1000, 0o644)), "a") == {"b": 1000}
    for entry, word in (
        (("a/b", bytes(4 << 20), 0o644), "unpacks"),
        (("a/b", b"/etc/passwd", 0o120777), "link"),
        (("a/../b", b"x", 0o644), "leaves"),
        (("/a/b", b"x", 0o644), "leaves"),
    ):
        with pytest.raises(BadInput, match=word):
            check_members(archive(entry), "a")
    with pytest.raises(BadInput, match="unpacked"):
        check_members(archive(("a/b", b"x" * 1000, 0o644)), "a", ArchiveLimits(total_bytes=999))


def test_expressions_as_torch_prints_them_pass_and_others_do_not() -> None:
    for text in (
        "Symbol('s77', positive=True, integer=True)",
        "Add(Mul(Integer(2), Symbol('s94', positive=True, integer=True)), Integer(-2))",
        "Pow(Symbol('s87', positive=True, integer=True), Integer(2))",
        "2*s94",
        "Max(1, s3 - 1)",
    ):
        check_expression(text, "a")
    for text in (
        "__import__('os').system('true')",
        "Symbol('a b')",
        "Symbol(x)",
        "Integer('__import__')",
        "9**9**9",
        "Pow(9, Pow(9, 9))",
        "Pow(Pow(9, 8), 8)",
        "(lambda: 1)()",
        "[s1 for s1 in s2]",
        "s1.is_integer",
        "s1 if s2 else s3",
        "Add('s1')",
        "1" * 3000,
        "(" * 500,
    ):
        with pytest.raises(BadInput):
            check_expression(text, "a")
    with pytest.raises(BadInput, match="does not know"):
        check_target("torch.ops.aten.no_such_operator.default", "a")
