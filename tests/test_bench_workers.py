"""Sweeps by many workers: local processes and a Ray cluster give the files that one process gives."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from test_bench_sweep import Fleet, a_plan, files

from seatrial.bench.processes import run_in_processes
from seatrial.bench.store import Store
from seatrial.bench.sweep import sweep
from seatrial.bench.worker import Agenda
from seatrial.errors import BadInput, SeatrialError


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What one process gives."""
    store = Store(tmp_path_factory.mktemp("alone"))
    sweep(Fleet(), a_plan(), store)
    return store


def test_local_processes_give_the_same_files(alone: Store, tmp_path: Path) -> None:
    store, seen = Store(tmp_path), []
    sweep(Fleet(), a_plan(), store, jobs=2, progress=lambda *each: seen.append(each))
    assert files(store) == files(alone)
    assert sorted(name for *_, name in seen) == sorted(str(group) for group in a_plan().groups)
    assert [done for done, *_ in seen] == list(range(1, 10))


def test_long_groups_are_dealt_first_to_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dealt: list[int] = []

    def deal(_opener: object, _plan: object, _folder: object, agenda: Agenda, **_: object) -> None:
        dealt.extend(agenda.take()[0] for _ in range(len(agenda)))

    monkeypatch.setattr("seatrial.bench.sweep.run_in_processes", deal)
    plan = a_plan()
    sweep(Fleet(), plan, Store(tmp_path), jobs=2)
    assert sorted(dealt) == list(range(len(plan.groups)))
    families = [None if (spec := plan.groups[index].spec) is None else spec.family for index in dealt]
    ranks = [(None, "attack", "system", "corruption").index(family) for family in families]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == 4


def test_faults_of_local_processes_reach_the_caller(tmp_path: Path) -> None:
    wrong = BadInput("this", "that", "do it")
    for fleet, error, said in (
        (Fleet(fault=wrong), BadInput, "this; wanted that; do it"),
        (Fleet(deadly=True), SeatrialError, "code -9"),
    ):
        agenda = Agenda(["clean"], None)
        with pytest.raises(error, match=said):
            run_in_processes(fleet, a_plan(), Store(tmp_path).folder, agenda, jobs=1, retry_failed=False)


def test_a_ray_cluster_of_two_workers_gives_the_same_files(
    alone: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))  # else Ray leaves one in the home folder
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the workers find these toys
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    try:
        store = Store(tmp_path / "store")
        address = ray.get_runtime_context().gcs_address
        sweep(Fleet(), a_plan(), store, ray_address=address)
        assert files(store) == files(alone)
        wrong = BadInput("this", "that", "do it")
        with pytest.raises(BadInput, match="this; wanted that; do it"):
            sweep(Fleet(fault=wrong), a_plan(noises=()), Store(tmp_path / "other"), ray_address=address)
        unseen = Store(tmp_path / "unseen")
        (unseen.folder / "store.json").unlink()
        with pytest.raises(BadInput, match="all nodes share"):
            sweep(Fleet(), a_plan(noises=()), unseen, ray_address=address)
    finally:
        ray.shutdown()
