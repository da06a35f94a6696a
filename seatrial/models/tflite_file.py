"""The ports of a `.tflite` file, read without a runtime."""

from __future__ import annotations

import struct
from pathlib import Path

from seatrial.errors import BadInput
from seatrial.models.archive import existing_file
from seatrial.models.port import Port, Ports, widest_code

_WANTED = "a TensorFlow Lite model"
_LIMIT = (2 << 30) - 1  # offsets of a FlatBuffer are 32 bits
_TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
_SOFTMAX = 25
_MAX_PORTS = 1024


class _Table:
    """A FlatBuffer table; every read is checked against the end of the file.

    Source: the FlatBuffers binary format; field numbers from TensorFlow Lite's schema.fbs (version 3).
    """

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - self._unpack("<i", at)
        self.size = self._unpack("<H", self.fields)

    def _unpack(self, kind: str, at: int) -> int:
        if at < 0:
            raise struct.error("an offset before the file")
        return struct.unpack_from(kind, self.data, at)[0]

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        offset = self._unpack("<H", self.fields + slot) if slot + 2 <= self.size else 0
        return self.at + offset if offset else None

    def number(self, field: int, kind: str, default: int = 0) -> int:
        at = self._field(field)
        return default if at is None else self._unpack(kind, at)

    def _vector(self, field: int) -> tuple[int, int]:
        at = self._field(field)
        if at is None:
            return 0, 0
        start = at + self._unpack("<I", at)
        return start + 4, self._unpack("<I", start)

    def numbers(self, field: int, kind: str) -> tuple:
        at, count = self._vector(field)
        if count > _MAX_PORTS:
            raise struct.error(f"a vector of {count}")
        return struct.unpack_from(f"<{count}{kind}", self.data, at) if count else ()

    def text(self, field: int) -> str:
        at, count = self._vector(field)
        return self.data[at : at + min(count, 1000)].decode("utf-8", "replace")

    def table(self, field: int) -> _Table | None:
        at = self._field(field)
        return None if at is None else _Table(self.data, at + self._unpack("<I", at))

    def item(self, field: int, index: int) -> _Table:
        at, count = self._vector(field)
        if not 0 <= index < count:
            raise struct.error(f"item {index} of {count}")
        at += 4 * index
        return _Table(self.data, at + self._unpack("<I", at))

    def raw(self, field: int) -> bytes:
        at, count = self._vector(field)
        return self.data[at : at + count]

    def length(self, field: int) -> int:
        return self._vector(field)[1]


def check_tflite(path: Path) -> Ports:
    """Return the inputs and outputs of a `.tflite` file with their quantization; raises BadInput for a damaged one."""
    existing_file(path, _WANTED)
    if path.stat().st_size > _LIMIT:
        raise BadInput(f"'{path}' has {path.stat().st_size} bytes", "at most 2 GiB", "use a smaller model")
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise BadInput(
            f"'{path}' does not begin as a TensorFlow Lite file does", _WANTED, "convert or download it again"
        )
    try:
        model = _Table(data, struct.unpack_from("<I", data, 0)[0])
        graph = model.item(2, 0)
        inputs, outputs = (tuple(_port(graph.item(0, i)) for i in graph.numbers(field, "i")) for field in (1, 2))
        softmax = False
        wanted = graph.numbers(2, "i")[:1]
        for index in range(graph.length(3)):
            operator = graph.item(3, index)
            if operator.numbers(2, "i")[:1] == wanted:
                code = model.item(1, operator.number(0, "<I"))
                softmax = max(code.number(0, "<b"), code.number(3, "<i")) == _SOFTMAX
        widest = max((_widest(model, graph.item(0, i)) for i in range(graph.length(0))), default=0)
    except (struct.error, IndexError, RecursionError) as error:
        raise BadInput(f"'{path}' is damaged ({error})", _WANTED, "convert or download it again") from error
    if not inputs or not outputs:
        raise BadInput(f"'{path}' has no inputs or no outputs", _WANTED, "convert it again")
    return Ports(inputs, outputs, ends_in_softmax=softmax, widest_weight=widest)


def _widest(model: _Table, tensor: _Table) -> int:
    """Return the largest absolute code of signed 8-bit weights, 0 for other tensors."""
    if _TYPES.get(tensor.number(1, "<b")) != "int8" or len(tensor.numbers(0, "i")) < 2:
        return 0
    return widest_code(model.item(4, tensor.number(2, "<I")).raw(0))


def _port(tensor: _Table) -> Port:
    shape = tuple(None if size < 0 else size for size in tensor.numbers(7, "i") or tensor.numbers(0, "i"))
    dtype = _TYPES.get(tensor.number(1, "<b"), "unknown")
    scales: tuple = ()
    zeros: tuple = ()
    if (grid := tensor.table(4)) is not None:
        scales, zeros = grid.numbers(2, "f"), grid.numbers(3, "q")
    return Port(
        tensor.text(3),
        shape,
        dtype,
        float(scales[0]) if len(scales) == 1 else None,
        int(zeros[0]) if len(zeros) == 1 else 0 if len(scales) == 1 else None,
    )
