"""The store: one Parquet file for each finished cell; done means that the file exists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from seatrial.bench.atomic import ASIDE, refusal, write_whole
from seatrial.core.cell import Cell
from seatrial.core.noise import Access, NoiseSpec
from seatrial.errors import BadInput

VERSION = 1
Status = Literal["done", "no-noise", "not-applicable", "failed"]
_META = b"seatrial"
_LOCK_WAIT_S = 0.02


@dataclass(frozen=True)
class Entry:
    """One finished cell: what was asked and how it ended; `table` holds its records, sorted by `sample`.

    `bad` names samples that could not be loaded in this cell, with the reason. A cell that is not `done` has a
    reason and no rows.
    """

    cell: Cell
    status: Status
    table: pa.Table = field(repr=False)
    reason: str | None = None
    access: Access | None = None
    bad: Mapping[str, str] = field(default_factory=dict)

    @property
    def question(self) -> dict[str, Any]:
        """The parts of the cell's question."""
        return json.loads(self.cell.question)

    @property
    def model(self) -> str | None:
        """The name of the model that the question states, if it does."""
        return self.question.get("model")


@final
class Store:
    """A folder of finished cells that processes share: `cells/KEY.parquet`, beside `store.json` and `timings.json`.

    Laws: a file under `cells/` is whole, whatever was killed when; a cell is written once; its bytes depend on the
    cell and its records alone. With `create=False` the folder must be a store already and is only read.
    Raises BadInput for a store of a newer version, a damaged one, and a folder that is full or cannot be written to.
    """

    def __init__(self, folder: Path | str, *, create: bool = True) -> None:
        self.folder = Path(folder).absolute()
        self._cells = self.folder / "cells"
        self._locks = self.folder / "locks"
        stamp = self.folder / "store.json"
        if stamp.exists() or not create:
            self._check_version(stamp)
        if not create:
            return
        with self._writing():
            for part in (self._cells, self._locks):
                part.mkdir(parents=True, exist_ok=True)
            with self._lock("write"):
                if not stamp.exists():
                    write_whole(stamp, b'{"format": "seatrial store", "version": %d}\n' % VERSION)
                # Whoever writes holds this lock, so under it every unfinished file is one of a dead process.
                for path in (*self.folder.glob(f".*{ASIDE}"), *self._cells.glob(f".*{ASIDE}")):
                    path.unlink(missing_ok=True)

    def has(self, cell: Cell) -> bool:
        """Return whether the cell is finished, however it ended."""
        return self._path(cell.key).exists()

    def write(
        self,
        cell: Cell,
        table: pa.Table | None = None,
        *,
        status: Status = "done",
        reason: str | None = None,
        access: Access | None = None,
        bad: Mapping[str, str] | None = None,
        replace: bool = False,
    ) -> bool:
        """Finish a cell and return True; return False, and change nothing, where it is finished already.

        `table` has one row per sample and at least the column `sample` (string); a cell that is not `done` needs
        none. `replace` is for cells that failed and are tried again. Raises BadInput for a full folder.
        """
        if (status == "done") != (reason is None) or (status == "done") != (table is not None):
            raise ValueError(f"status {status} with reason {reason} and {'a' if table is not None else 'no'} table")
        with self._writing(), self._lock("write"):
            if self.has(cell) and not replace:
                return False
            write_whole(self._path(cell.key), _encode(cell, table, status, reason, access, bad or {}))
            return True

    def read(self, cell: Cell | str) -> Entry:
        """Return a finished cell, given itself or its key; raises BadInput where it is missing or damaged."""
        key = cell if isinstance(cell, str) else cell.key
        path = self._path(key)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                return _decode(file.read(), path)
        except FileNotFoundError as error:
            raise BadInput(f"no cell {key} in {self.folder}", "a finished cell", "run the sweep again") from error
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path) from error

    def cells(self) -> list[Entry]:
        """Return every finished cell without its records, in order of key."""
        found = []
        for path in self._files():
            try:
                schema = pq.read_schema(path)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(path) from error
            found.append(_decode(schema.empty_table(), path))
        return found

    def query(self, sql: str) -> pa.Table:
        """Return the result of a DuckDB query over the views `cells` and `records`.

        `cells` has a row for each finished cell (key, model, variant, target, family, name, option, norm, severity
        as text, access, status, reason); `records` has those columns beside each per-sample record. Raises BadInput
        for a query that DuckDB refuses.
        """
        import duckdb

        entries = self.cells()
        with duckdb.connect() as connection:
            connection.register("cells", _describe(entries))
            files = ", ".join("'" + str(self._path(entry.cell.key)).replace("'", "''") + "'" for entry in entries)
            view = "SELECT cells.*, NULL::VARCHAR AS sample FROM cells WHERE false"
            if entries:
                view = (
                    "SELECT cells.*, rows.* EXCLUDE (filename)"
                    f" FROM read_parquet([{files}], union_by_name = true, filename = true) AS rows"
                    " JOIN cells ON cells.key = parse_filename(rows.filename, true)"
                )
            connection.execute(f"CREATE VIEW records AS {view}")
            try:
                answer = connection.sql(sql)
                if answer is None:
                    raise BadInput(f"the statement '{sql}'", "a query that returns rows", "begin it with SELECT")
                return answer.to_arrow_table()
            except duckdb.Error as error:
                said = " ".join(str(error).split())[:300]
                raise BadInput(f"a query that fails ({said})", "DuckDB SQL over records, cells", "mend it") from error

    @contextmanager
    def claim(self, group: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the work named `group` alone, among all processes; gives False where another holds it and `wait` is off.

        The lock goes with its process, however that ends. Look with `has` again once it is held.
        """
        try:
            lock = self._lock(f"group-{group}")
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise refusal(self.folder, error) or error from error
        try:
            yield True
        finally:
            lock.release()

    def save_timings(self, timings: Mapping[str, Any]) -> None:
        """Add entries (JSON values) to `timings.json`, replacing those of the same names; they are no records."""
        with self._writing(), self._lock("write"):
            merged = {**self.load_timings(), **timings}
            write_whole(self.folder / "timings.json", json.dumps(merged, indent=1, sort_keys=True).encode() + b"\n")

    def load_timings(self) -> dict[str, Any]:
        """Return the saved timings, {} where there are none; raises BadInput for a damaged file."""
        path = self.folder / "timings.json"
        return _read_json(path) if path.exists() else {}

    def _path(self, key: str) -> Path:
        return self._cells / f"{key}.parquet"

    def _files(self) -> list[Path]:
        return sorted(self._cells.glob("*.parquet"))

    def _lock(self, name: str) -> FileLock:
        return FileLock(self._locks / f"{name}.lock", poll_interval=_LOCK_WAIT_S)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise refusal(self.folder, error) or error from error

    def _check_version(self, stamp: Path) -> None:
        if not stamp.exists():
            raise BadInput(f"the folder {self.folder} without store.json", "a store", "give the --out of a sweep")
        version = _read_json(stamp).get("version")
        if not isinstance(version, int):
            raise _damaged(stamp)
        if version > VERSION:
            came = f"the store {self.folder} of version {version}, written by a newer seatrial"
            raise BadInput(came, f"version {VERSION}", "update seatrial, or give another folder with --out")


def _encode(
    cell: Cell,
    table: pa.Table | None,
    status: Status,
    reason: str | None,
    access: Access | None,
    bad: Mapping[str, str],
) -> bytes:
    """Return the bytes of a cell's file: nothing in them depends on the clock, the machine or the process."""
    rows = pa.table({"sample": pa.array([], pa.string())}) if table is None else table.sort_by("sample")
    noise = asdict(cell.noise) if cell.noise else None
    about = {
        "variant": cell.variant,
        "target": cell.target,
        "noise": noise,
        "question": cell.question,
        "status": status,
        "reason": reason,
        "access": access,
        "bad": dict(bad),
    }
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    rows = rows.combine_chunks().replace_schema_metadata({_META: text.encode()})
    sink = pa.BufferOutputStream()
    rows_a_group = max(1, rows.num_rows)
    pq.write_table(
        rows, sink, compression="zstd", compression_level=3, row_group_size=rows_a_group, write_page_checksum=True
    )
    return sink.getvalue().to_pybytes()


def _decode(table: pa.Table, path: Path) -> Entry:
    try:
        about = json.loads((table.schema.metadata or {})[_META])
        noise = NoiseSpec(**about["noise"]) if about["noise"] else None
        cell = Cell(about["variant"], about["target"], noise, about["question"])
        known = about["status"] in get_args(Status) and cell.key == path.stem
        parts = about["status"], about["reason"], about["access"], about["bad"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if not known:
        raise _damaged(path)
    status, reason, access, bad = parts
    return Entry(cell, status, table.replace_schema_metadata(None), reason, access, bad)


def _describe(entries: Sequence[Entry]) -> pa.Table:
    columns: dict[str, list[str | None]] = {
        "key": [entry.cell.key for entry in entries],
        "model": [entry.model for entry in entries],
        "variant": [entry.cell.variant for entry in entries],
        "target": [entry.cell.target for entry in entries],
    }
    for name in ("family", "name", "option", "norm", "severity"):
        values = [getattr(entry.cell.noise, name, None) for entry in entries]
        columns[name] = [None if value is None else str(value) for value in values]
    for name in ("access", "status", "reason"):
        columns[name] = [getattr(entry, name) for entry in entries]
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(data, dict):
        raise _damaged(path)
    return data


def _damaged(path: Path) -> BadInput:
    return BadInput(f"the file {path} is damaged", "a file as seatrial wrote it", "delete it and run the sweep again")
