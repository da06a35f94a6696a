"""What the text inside a `.pt2` archive may say: torch turns parts of it into Python code and runs it.

Found in torch 2.12.1: symbolic expressions go through `sympy.sympify` (which evaluates), operator targets are any
attribute reached from `torch` (`torch.os.system`), names of inputs and arguments are pasted into generated source,
guards are compiled, and tree specifications import modules. Weights-only loading covers none of these.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload

from seatrial.errors import BadInput

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ARGUMENT = re.compile(r"\*{0,2}[A-Za-z_][A-Za-z0-9_]*\Z")
_PLAIN = re.compile(r"[^\"'`\\(){};\x00-\x1f]*\Z")
_NAMESPACES = frozenset({"aten", "seatrial", "torchvision", "quantized_decomposed", "higher_order"})
_FILE_OPERATORS = frozenset({"aten.from_file", "aten.save", "aten.load"})
_HIGHER = frozenset({"cond", "wrap_with_set_grad_enabled", "wrap_with_autocast", "while_loop", "scan"})


def _words(prefix: str, text: str) -> frozenset[str]:
    return frozenset(prefix + word for word in text.split())


_BUILTINS = (
    _words("_operator.", "add sub mul truediv floordiv mod pow neg pos abs getitem eq ne lt le gt ge and_ or_ not_ xor")
    | _words("math.", "ceil floor trunc sqrt log log2 exp pow fmod")
    | _words(
        "torch.", "sym_float sym_int sym_max sym_min sym_not sym_ite sym_sum sym_sqrt _sym_sqrt _sym_log2 _sym_exp"
    )
)
_FUNCTIONS = _words(
    "",
    "Symbol Integer Float Rational Add Mul Pow Mod Max Min Abs Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan "
    "LessThan StrictGreaterThan GreaterThan And Or Not Xor floor ceiling FloorDiv ModularIndexing Where PythonMod "
    "CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv "
    "IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity",
)
_CONSTANTS = _words("", "oo int_oo true false True False")
_ASSUMPTIONS = _words("", "positive integer nonnegative negative real finite zero evaluate")
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_TREES = _words("", "builtins.tuple builtins.list builtins.dict collections.OrderedDict")
_MAX_EXPRESSION = 2_000
_MAX_POWER = 8


def check_program_text(data: bytes, source: str) -> None:
    """Raise BadInput where the JSON of an exported program holds anything that torch could turn into foreign code.

    `data` is the file `models/*.json` of a `.pt2` archive.
    """
    tree = parsed(data, source)
    _walk(tree, "", source)


def parsed(data: bytes, source: str) -> Any:
    """Return the JSON object in `data`; raises BadInput for anything else, however deep it is nested."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(source, f"text that is no JSON ({type(error).__name__})") from error
    if not isinstance(tree, dict):
        raise _refused(source, f"JSON that is a {type(tree).__name__}")
    return tree


def _walk(value: object, key: str, source: str) -> None:
    if isinstance(value, Mapping):
        # Codegen pastes dictionary keys of these tables too.
        for name, inner in value.items():
            if key != "range_constraints" and not (_PLAIN.match(name) and len(name) < 1000):
                raise _refused(source, f"a name {name[:80]!a}")
            if key in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"):
                _check_name(name, source)
            if key == "range_constraints":
                check_expression(name, source)
            if name == "as_custom_obj" or (name in ("custom_obj", "custom_obj_values") and inner):
                raise _refused(source, "a custom object")
            if name not in ("metadata", "guards_code", "as_string", "as_strings"):
                _walk(inner, name, source)
    elif isinstance(value, list):
        for inner in value:
            _walk(inner, key, source)
    elif isinstance(value, str):
        _check_string(value, key, source)


def _check_string(value: str, key: str, source: str) -> None:
    if key == "expr_str":
        check_expression(value, source)
    elif key in ("target", "as_operator"):
        check_target(value, source)
    elif key in ("in_spec", "out_spec"):
        _check_tree(value, source)
    elif key in ("name", "as_name"):
        if value:
            _check_name(value, source)
    elif key == "forward_arg_names":
        if not _ARGUMENT.match(value):
            raise _refused(source, f"an argument named {value[:80]!a}")
    elif not _PLAIN.match(value):
        raise _refused(source, f"{key} {value[:80]!a}")


def _check_name(value: str, source: str) -> None:
    if not _IDENTIFIER.match(value):
        raise _refused(source, f"a node named {value[:80]!a}")


def check_target(target: str, source: str) -> None:
    """Raise BadInput unless `target` is an operator of a known library that touches no files."""
    if target in _BUILTINS:
        return
    parts = target.split(".")
    if parts[:2] != ["torch", "ops"] or len(parts) not in (4, 5) or parts[2] not in _NAMESPACES:
        raise _refused(source, f"the operator {target[:80]!a}")
    higher = parts[2] == "higher_order"
    if ".".join(parts[2:4]) in _FILE_OPERATORS or (higher and parts[3] not in _HIGHER):
        raise _refused(source, f"the operator {target[:80]!a}")
    found: object = torch.ops
    for part in parts[2:]:
        found = getattr(found, part, None)
    if not isinstance(found, HigherOrderOperator if higher else OpOverload):
        raise BadInput(
            f"'{source}' uses the operator {target[:80]!a}, which this installation does not know",
            "operators of ATen, torchvision or seatrial",
            "install the package that defines it, or export the model without it",
        )


def check_expression(text: str, source: str) -> None:
    """Raise BadInput unless `text` is arithmetic on symbols and small numbers, as torch prints shapes."""
    refused = _refused(source, f"the expression {text[:80]!a}")
    if len(text) > _MAX_EXPRESSION:
        raise refused
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refused from error
    if not _harmless(tree.body):
        raise refused


def _harmless(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | float) or (isinstance(node.value, int) and abs(node.value) < 1 << 64)
    if isinstance(node, ast.Name):
        # Symbols of torch are a letter or two and a number; functions stand only where they are called.
        return bool(re.match(r"[A-Za-z]{1,4}_?\d+\Z", node.id)) or node.id in _CONSTANTS
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub | ast.UAdd | ast.Not | ast.Invert) and _harmless(node.operand)
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow) and not (_small(node.right) and _flat(node.left)):
            return False
        known = ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow | ast.BitAnd | ast.BitOr
        return isinstance(node.op, known) and _harmless(node.left) and _harmless(node.right)
    if isinstance(node, ast.Compare):
        return all(_harmless(part) for part in (node.left, *node.comparators))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        if not all(word.arg in _ASSUMPTIONS and isinstance(word.value, ast.Constant) for word in node.keywords):
            return False
        if node.func.id == "Symbol":
            name = node.args[0] if len(node.args) == 1 else None
            return (
                isinstance(name, ast.Constant) and isinstance(name.value, str) and bool(_IDENTIFIER.match(name.value))
            )
        if node.func.id in ("Float", "Integer") and node.args and _numeral(node.args[0]):
            return len(node.args) == 1 and all(word.arg == "precision" for word in node.keywords)
        if node.func.id in _POWERS and not (len(node.args) == 2 and _small(node.args[1]) and _flat(node.args[0])):
            return False
        return all(_harmless(argument) for argument in node.args)
    return False


def _numeral(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and bool(re.match(r"-?[\d.]{1,30}\Z", node.value))
    )


def _small(node: ast.expr) -> bool:
    """Return whether an exponent is a small number, so that no expression grows without bound."""
    while isinstance(node, ast.UnaryOp | ast.Call):
        inner = node.operand if isinstance(node, ast.UnaryOp) else node.args[0] if len(node.args) == 1 else None
        if inner is None:
            return False
        node = inner
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= _MAX_POWER


def _flat(node: ast.expr) -> bool:
    """Return whether no power stands inside: towers of powers would exhaust memory."""
    for part in ast.walk(node):
        if isinstance(part, ast.Pow) or (isinstance(part, ast.Name) and part.id in _POWERS):
            return False
    return True


def _check_tree(text: str, source: str) -> None:
    try:
        specification = json.loads(text)
        _check_branch(specification[1], source)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise _refused(source, f"the tree {text[:80]!a}") from error


def _check_branch(branch: Mapping[str, Any], source: str) -> None:
    kind, context = branch["type"], branch["context"]
    if kind is not None and kind not in _TREES and not str(kind).startswith("transformers."):
        raise _refused(source, f"inputs or outputs of type {str(kind)[:80]!a}")
    if context is not None:
        names = json.loads(context)
        for name in names if isinstance(names, list) else [names]:
            if not (name is None or isinstance(name, int) or (isinstance(name, str) and _IDENTIFIER.match(name))):
                raise _refused(source, f"an input or output named {str(name)[:80]!a}")
    for child in branch["children_spec"]:
        _check_branch(child, source)


def _refused(source: str, came: str) -> BadInput:
    return BadInput(
        f"'{source}' holds {came}, which could run code",
        "a program as torch.export.save writes it",
        "get the file from a source that you trust, or export the model again",
    )
