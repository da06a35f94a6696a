"""The store: whole files, written once, the same bytes whoever writes them; and the TOML file of a sweep."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seatrial.bench.cache import PictureCache, damage
from seatrial.bench.store import Store
from seatrial.bench.toml_sweep import read_sweep
from seatrial.core.cell import Cell, question
from seatrial.core.noise import NoiseSpec
from seatrial.core.sample import Picture
from seatrial.errors import BadInput

PGD = NoiseSpec("attack", "pgd", norm="linf", severity="2/255")
BLUR = NoiseSpec("corruption", "motion_blur", severity=3)


def cell(variant: str = "float", noise: NoiseSpec | None = None, seed: int = 0) -> Cell:
    name = noise.name if noise else None
    return Cell(variant, "torch", noise, question(model="toy", variant=variant, noise=name, seed=seed))


def records(correct: list[bool]) -> pa.Table:
    return pa.table({"sample": [f"s{i:03}" for i in range(len(correct))], "correct": correct})


def test_a_cell_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "store")
    mine, table = cell(noise=PGD), records([True, False, True])
    assert not store.has(mine)
    assert store.write(mine, table, access="white-box", bad={"s9": "empty file"})
    entry = Store(store.folder).read(mine)
    assert store.has(mine)
    assert entry.cell == mine
    assert (entry.status, entry.reason, entry.access, entry.bad) == ("done", None, "white-box", {"s9": "empty file"})
    assert entry.table.equals(table)
    assert entry.model == "toy"
    assert store.read(mine.key) == entry


def test_a_cell_is_written_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.write(cell(), records([True]))
    before = store.read(cell()).table
    assert not store.write(cell(), records([False]))
    assert store.read(cell()).table.equals(before)
    assert store.write(cell(), None, status="failed", reason="again", replace=True)
    assert store.read(cell()).status == "failed"


@pytest.mark.parametrize("status", ["no-noise", "not-applicable", "failed"])
def test_cells_without_records_are_files_too(tmp_path: Path, status) -> None:
    store = Store(tmp_path)
    store.write(cell(noise=BLUR), status=status, reason="says why")
    entry = store.read(cell(noise=BLUR))
    assert (entry.status, entry.reason, entry.table.num_rows) == (status, "says why", 0)
    with pytest.raises(ValueError, match="no table"):
        store.write(cell(), status="done")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(7)), chunks=st.integers(1, 7), reason=st.text(max_size=8))
def test_bytes_depend_on_the_records_alone(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], chunks: int, reason: str
) -> None:
    base = records([i % 3 == 0 for i in range(7)])
    shuffled = base.take(order)
    pieces = pa.concat_tables([shuffled.slice(start, chunks) for start in range(0, 7, chunks)])
    stores = [Store(tmp_path_factory.mktemp("store")) for _ in range(2)]
    for store, table in zip(stores, (base, pieces)):
        store.write(cell(), table, bad={"x": reason})
    first, second = ((store.folder / "cells" / f"{cell().key}.parquet").read_bytes() for store in stores)
    assert first == second


def test_files_are_readable_by_other_tools(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(cell(noise=PGD), records([True, False]))
    table = pq.read_table(tmp_path / "cells" / f"{cell(noise=PGD).key}.parquet")
    assert table["correct"].to_pylist() == [True, False]
    about = json.loads(table.schema.metadata[b"seatrial"])
    assert about["noise"]["severity"] == "2/255"


def test_query_joins_what_was_asked_to_each_record(tmp_path: Path) -> None:
    store = Store(tmp_path / "it's [a] store")
    assert store.query("SELECT * FROM records").num_rows == 0
    store.write(cell("float"), records([True, True]))
    store.write(cell("w8a8"), records([True, False]))
    with_column = records([False, False]).append_column("queries", pa.array([7, 9]))
    store.write(cell("w8a8", PGD), with_column, access="transfer")
    store.write(cell("float", BLUR), status="failed", reason="broke")
    sql = """SELECT variant, name, severity, avg(correct::int) AS top1, sum(queries) AS queries
             FROM records GROUP BY ALL ORDER BY ALL"""
    assert store.query(sql).to_pylist() == [
        {"variant": "float", "name": None, "severity": None, "top1": 1.0, "queries": None},
        {"variant": "w8a8", "name": "pgd", "severity": "2/255", "top1": 0.0, "queries": 16},
        {"variant": "w8a8", "name": None, "severity": None, "top1": 0.5, "queries": None},
    ]
    assert store.query("SELECT status, reason FROM cells WHERE name = 'motion_blur'").to_pylist() == [
        {"status": "failed", "reason": "broke"}
    ]
    with pytest.raises(BadInput, match="nothing"):
        store.query("SELECT nothing FROM records")


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    Store(tmp_path)
    (tmp_path / "store.json").write_text('{"version": 2, "later": true}')
    for create in (True, False):
        with pytest.raises(BadInput, match="newer seatrial"):
            Store(tmp_path, create=create)


@pytest.mark.parametrize("content", ["", "[]", '{"version": "1"}', "{}", "\x00"])
def test_a_damaged_stamp_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(BadInput, match="damaged"):
        Store(tmp_path)


def test_reading_needs_a_store_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="without store"):
        Store(tmp_path, create=False)
    assert not list(tmp_path.iterdir())


def test_damaged_cells_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(cell(), records([True]))
    path = tmp_path / "cells" / f"{cell().key}.parquet"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1"):
        path.write_bytes(content)
        for act in (lambda: store.read(cell()), store.cells):
            with pytest.raises(BadInput, match=path.name):
                act()
    path.rename(path.with_name(f"{'0' * 32}.parquet"))
    (tmp_path / "cells" / f"{'0' * 32}.parquet").write_bytes(whole)
    with pytest.raises(BadInput, match="damaged"):  # another cell's content under this name
        store.cells()
    with pytest.raises(BadInput, match="no cell"):
        store.read(cell())


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_folder_is_said_in_one_line_and_finished_cells_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, step: str
) -> None:
    store = Store(tmp_path)
    store.write(cell(), records([True]))

    def refuse(*_: object) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(BadInput) as caught:
        store.write(cell(seed=1), records([True]))
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert [entry.cell for entry in store.cells()] == [cell()]
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{cell().key}.parquet"]


def test_other_faults_of_the_disk_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="I/O error"):
        store.write(cell(), records([True]))


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(BadInput, match="not a folder"):
        Store(tmp_path / "file" / "store")
    with pytest.raises(BadInput, match="not a folder"):
        Store(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadInput, match="cannot be written to"):
        Store(tmp_path / "store")
    tmp_path.chmod(0o700)


def test_half_written_files_are_ignored_and_removed_at_the_next_opening(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(cell(), records([True]))
    left = tmp_path / "cells" / f".{cell(seed=1).key}.parquet.0123456789abcdef.aside"
    left.write_bytes(b"PAR1 half")
    assert not store.has(cell(seed=1))
    assert len(store.cells()) == 1
    assert store.query("SELECT * FROM records").num_rows == 1
    assert Store(tmp_path, create=False).has(cell())
    assert left.exists()
    Store(tmp_path)
    assert not left.exists()


def test_opening_never_removes_the_file_of_a_living_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    replace, opened = os.replace, threading.Event()
    opener = threading.Thread(target=lambda: (Store(tmp_path), opened.set()))

    def slow(source: Path, target: Path) -> None:
        if target.suffix == ".parquet":
            opener.start()
            assert not opened.wait(0.2)  # it waits for the lock that this writer holds
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    assert store.write(cell(), records([True]))
    opener.join()
    assert store.has(cell())


def test_a_claim_keeps_other_processes_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    hold = (
        "import sys; from seatrial.bench.store import Store\n"
        "with Store(sys.argv[1]).claim('work') as mine:\n    print(mine, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with store.claim("work", wait=False) as mine:
            assert not mine
        with store.claim("other work", wait=False) as mine:
            assert mine
        holder.kill()
        with store.claim("work") as mine:
            assert mine


def test_timings_stand_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load_timings() == {}
    store.save_timings({"float": {"median": 1.5}, "w8a8": None})
    store.save_timings({"w8a8": {"median": 0.5}})
    assert Store(tmp_path).load_timings() == {"float": {"median": 1.5}, "w8a8": {"median": 0.5}}
    assert store.cells() == []
    (tmp_path / "timings.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        store.load_timings()


def picture(value: int, side: int = 16) -> Picture:
    return Picture(np.full((side, side, 3), value, np.uint8), (value, 2 * value))


def test_the_cache_gives_back_what_was_put(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path / "cache", 100_000)
    assert cache.get("a") is None
    cache.put("a", [picture(1), None, picture(2)], {"s1": "empty file"})
    kept = cache.get("a")
    assert kept is not None
    (first, missing, last), bad = kept
    assert missing is None
    assert bad == {"s1": "empty file"}
    for mine, value in ((first, 1), (last, 2)):
        assert mine is not None
        assert mine.source_size_px == (value, 2 * value)
        np.testing.assert_array_equal(mine.pixels, picture(value).pixels)


def test_the_cache_is_bounded_and_drops_the_oldest(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, 12_000)
    for i, key in enumerate("abcdef"):
        cache.put(key, [picture(1), picture(2)], {})
        os.utime(tmp_path / f"{key}.npz", (i, i)) if key != "a" else None
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 12_000
        assert cache.get(key) is not None
    kept = {path.stem for path in tmp_path.iterdir()}
    assert kept < set("abcdef")
    assert "f" in kept
    cache.put("large", [picture(1, 128)], {})
    assert cache.get("large") is None


def test_a_damaged_cache_entry_counts_as_missing(tmp_path: Path) -> None:
    cache = PictureCache(tmp_path, 100_000)
    cache.put("a", [picture(1)], {})
    path = tmp_path / "a.npz"
    whole = path.read_bytes()
    assert damage(tmp_path) == ()
    for content in (b"", b"PK", whole[:-30], whole[:200], whole + b"x"):
        path.write_bytes(content)
        assert cache.get("a") is None
        assert not path.exists()
    assert damage(tmp_path) == ("a cached file was damaged, first a.npz; the pictures were loaded again from the data",)
    cache.put("b", [picture(1)], {})
    (tmp_path / "b.npz").write_bytes(whole[1:])
    assert cache.get("b") is None
    assert damage(tmp_path)[0].startswith("2 cached files were damaged, first a.npz;")


def test_no_changed_bit_of_a_cache_entry_goes_unseen(tmp_path: Path) -> None:
    """The header of an array included, which a zip's own sums do not hold: another shape reads as a whole file."""
    cache = PictureCache(tmp_path, 100_000)
    cache.put("a", [picture(1, 4), None], {"s1": "empty file"})
    path = tmp_path / "a.npz"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cache.get("a") is None
    path.write_bytes(whole)
    assert cache.get("a") is not None


def test_changed_records_of_a_cell_are_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(cell(), records([index % 3 > 0 for index in range(500)]))
    path = next((tmp_path / "cells").iterdir())
    whole = path.read_bytes()
    starts = [whole.index(b"\x28\xb5\x2f\xfd"), whole.rindex(b"\x28\xb5\x2f\xfd")]  # zstd frames: the pages
    for place in (place for start in starts for place in range(start, start + 12)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BadInput, match="is damaged; wanted a file as seatrial wrote it"):
            store.read(cell())


def test_a_sweep_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        """
        models = ["timm:resnet18", { name = "net.pt2", weights = "net.safetensors" }]
        data = "pictures"
        targets = ["onnxruntime", "openvino"]
        bits = ["w8a8", "W4A8", "float32"]
        noise = ["pgd:linf:2/255", "gaussian_noise:3", "resize:opencv-bilinear"]
        limit = 100
        """
    )
    read = read_sweep(path)
    assert [(model.name, model.weights) for model in read.models] == [
        ("timm:resnet18", None),
        ("net.pt2", "net.safetensors"),
    ]
    assert read.bits == ["w8a8", "w4a8", "float32"]
    assert read.noise == ["pgd:linf:2/255", "gaussian_noise:3", "resize:opencv-bilinear"]
    assert (read.limit, read.seed, read.methods) == (100, 0, ["nearest"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('models = ["a"]\ntarget = ["openvino"]', "did you mean 'targets'"),
        ('models = [{ name = "a", weigths = "b" }]', "did you mean 'weights'"),
        ("data = 'x'", "models"),
        ("models = []", "models"),
        ('models = ["a"]\nbits = ["w1a1"]', "w1a1"),
        ('models = ["a"]\nnoise = "ful"', "did you mean 'full'"),
        ('models = ["a"]\nnoise = ["pgd linf"]', "pgd linf"),
        ('models = ["a"]\nlimit = 0', "limit"),
        ('models = ["a"]\nlimit = "ten"', "limit"),
        ('models = ["a"', "sweep.toml"),
        ("\x00", "sweep.toml"),
    ],
)
def test_a_wrong_sweep_file_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_sweep(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_sweep_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file"):
        read_sweep(tmp_path / "none.toml")
