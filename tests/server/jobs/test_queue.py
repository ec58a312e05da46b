"""The order of jobs, without a model: the store and the events are real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from diffusette.server.jobs.events import EventLog
from diffusette.server.jobs.queue import Queue
from diffusette.server.jobs.records import Identifiers, Job, Options, Refused
from diffusette.server.jobs.store import Store
from diffusette.server.limits import Limits

OPTIONS = Options(seed=1, variation_seed=1)
IDENTIFIERS = Identifiers()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "diffusette.sqlite3")
    yield found
    found.close()


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store, EventLog(0), Limits(queue=100))


def job(prompt: str, client: str = "", *, live: bool = False) -> Job:
    return Job(
        id=IDENTIFIERS.new(), kind="generate", status="queued", model="m", prompt=prompt, client=client, live=live, created=time.time()
    )


def order(queue: Queue) -> list[str]:
    return [one.prompt for one in queue.current()]


def test_clients_take_turns(queue: Queue) -> None:
    for prompt in ("a1", "a2", "a3", "b1", "c1", "b2", "a4"):
        queue.submit(job(prompt, prompt[0]), OPTIONS)
    assert order(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_the_running_job_counts_as_a_turn(queue: Queue) -> None:
    queue.submit(job("a1", "a"), OPTIONS)
    assert queue.take() is not None
    for prompt in ("a2", "b1"):
        queue.submit(job(prompt, prompt[0]), OPTIONS)
    assert order(queue) == ["a1", "b1", "a2"]


def test_what_people_moved_stays_where_it_is(queue: Queue) -> None:
    ids = [queue.submit(job(prompt, prompt[0]), OPTIONS).id for prompt in ("a1", "b1", "a2")]
    queue.move(ids[2], ids[0])
    queue.submit(job("c1", "c"), OPTIONS, front=True)
    assert order(queue) == ["c1", "a2", "a1", "b1"]


def test_the_order_survives_the_server(queue: Queue, store: Store) -> None:
    ids = [queue.submit(job(f"j{number}"), OPTIONS).id for number in range(40)]
    for number in range(200):  # halving the distance between two places would run out of numbers
        queue.move(ids[number % 39 + 1], ids[0])
    expected = order(queue)
    again = Queue(store, EventLog(0), Limits())
    again.restore(store.waiting())
    assert order(again) == expected


def test_a_job_whose_client_waited_ends_with_the_server(queue: Queue, store: Store) -> None:
    queue.submit(job("held"), msgspec.structs.replace(OPTIONS, waits=True))
    queue.submit(job("kept"), OPTIONS)
    again = Queue(store, EventLog(0), Limits())
    again.restore(store.waiting())
    assert order(again) == ["kept"]


def test_a_full_queue_refuses_and_a_live_job_replaces_its_own(store: Store) -> None:
    queue = Queue(store, EventLog(0), Limits(queue=2))
    queue.submit(job("live 1", "a", live=True), OPTIONS)
    queue.submit(job("b", "b"), OPTIONS)
    queue.submit(job("live 2", "a", live=True), OPTIONS)
    assert sorted(order(queue)) == ["b", "live 2"]
    with pytest.raises(Refused, match="full") as caught:
        queue.submit(job("c", "c"), OPTIONS)
    assert caught.value.code == "queue_full"


def test_ids_sort_by_time_even_if_the_clock_jumps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    identifiers = Identifiers()
    first = identifiers.new()
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    made = [identifiers.new() for _ in range(100)]
    assert [first, *made] == sorted([first, *made])
    assert Identifiers(made[-1]).new() > made[-1]


def test_events_are_numbered_and_replayed_and_progress_only_in_its_latest_state() -> None:
    log = EventLog(1000)
    log.publish("job", {"n": 1})
    for step in range(5):
        log.publish("progress", {"step": step}, fading=("progress", "j"))
    log.publish("job", {"n": 2})
    found = log.after(1000)
    assert found is not None
    assert [(event.number, event.kind) for event in found] == [(1001, "job"), (1006, "progress"), (1007, "job")]
    assert log.after(1006) == found[2:]
    log.fade("j")
    assert [event.number for event in log.after(1000) or []] == [1001, 1007]
    assert log.after(999) is None
    assert log.after(1008) is None


def test_what_is_kept_for_replay_is_bounded() -> None:
    log = EventLog(0)
    for number in range(3000):
        log.publish("job", {"n": number, "prompt": "x" * 10_000})
    assert log.after(0) is None
    found = log.after(log.number - 100)
    assert found is not None
    assert len(found) == 100
