"""Work has limited places and memory. Other work waits for a while or is told that the server is busy."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from halves_model import HalvesModel
from PIL import Image
from processes import run

from ui.engine import Engine
from ui.gate import Busy, Gate, bytes_for
from ui.storage import Storage
from ui.viewer.server import server_functions

BUSY = "The server is busy; please try again in a moment."


@contextmanager
def held(gate: Gate, num_bytes: int = 1) -> Iterator[threading.Event]:
    """A place that another thread holds until the event is set, at the latest at the end of the block."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with gate.place(num_bytes):
            entered.set()
            leave.wait()

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert entered.wait(60)
        try:
            yield leave
        finally:
            leave.set()
            holding.result(60)


def test_no_more_work_runs_than_there_are_places_and_all_work_gets_its_turn() -> None:
    gate, inside, most, lock = Gate(places=3), 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with gate.place(1):
            with lock:
                inside += 1
                most = max(most, inside)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(work, range(200)))) == 200
    assert 1 <= most <= 3


def test_work_that_does_not_fit_beside_other_work_waits_for_it() -> None:
    gate = Gate(places=9, budget_bytes=100, wait_seconds=60)
    with held(gate, 60) as leave, ThreadPoolExecutor(1) as pool:
        with gate.place(40):  # together exactly the budget
            pass
        entered = threading.Event()

        def enter() -> None:
            with gate.place(41):
                entered.set()

        waiting = pool.submit(enter)
        assert not entered.wait(0.2)
        leave.set()
        waiting.result(60)
        assert entered.is_set()


def test_work_that_needs_more_than_the_budget_runs_alone() -> None:
    gate = Gate(places=9, budget_bytes=100, wait_seconds=0.01)
    with gate.place(10**12):
        pass
    with held(gate), pytest.raises(Busy, match=BUSY), gate.place(10**12):
        pass


def test_waiting_is_limited_in_time_and_in_number() -> None:
    gate = Gate(places=1, wait_seconds=0.01)
    with held(gate):
        with pytest.raises(Busy), gate.place():
            pass
        gate.max_waiting, gate.wait_seconds = 0, 3600.0
        with pytest.raises(Busy), gate.place():
            pass
    with gate.place():
        pass


def test_in_order_nobody_overtakes_those_who_wait() -> None:
    """Otherwise the next round of a measurement would overtake waiting photos."""
    gate, order = Gate(places=1, in_order=True, wait_seconds=60), []

    def enter(name: str) -> None:
        with gate.place():
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with gate.place():
            photos = []
            for number in range(2):
                photos.append(pool.submit(enter, f"photo {number}"))
                while len(gate._waiting) <= number:
                    time.sleep(0.001)
        enter("measurement")
        for photo in photos:
            photo.result(60)
    assert order == ["photo 0", "photo 1", "measurement"]


def test_a_thread_that_is_inside_needs_no_second_place() -> None:
    gate = Gate(places=1, max_waiting=0)
    with gate.place(), gate.place(), held(Gate()):
        pass
    with pytest.raises(ValueError, match="gives its place back"), gate.place():
        raise ValueError("gives its place back")
    with gate.place():
        pass


def test_every_request_for_work_passes_the_gate(tmp_path: Path) -> None:
    engine = Engine(HalvesModel())  # type: ignore[arg-type]
    photo = np.zeros((96, 128, 3), np.uint8)
    result_id = engine.run(photo)
    read, other, choice, export = server_functions(engine, Storage(tmp_path))
    engine.gate = Gate(places=1, max_waiting=0)
    with held(engine.gate):
        for function, arguments in (
            (read, [result_id, "panoptic", 0.5, 0.5]),
            (other, [result_id, "panoptic"]),
            (choice, [result_id, 0, 0, 0]),
            (export, [result_id, "panoptic", 0.5, 0.5, 0.5, "trace-json"]),
        ):
            assert function(arguments) == {"error": BUSY}
        with pytest.raises(Busy):
            engine.run(photo)
    assert "error" not in read([result_id, "panoptic", 0.5, 0.5])


MEASURE = """
import sys
from pathlib import Path
from halves_model import HalvesModel
from ui.engine import Engine
from ui.export import export_file
from ui.memory import hand_back, use_few_arenas
from ui.storage import Storage

def memory_mib(which):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024

use_few_arenas()
engine = Engine(HalvesModel())
small, large, folder = map(Path, sys.argv[1:])
for photo in (small, large):
    hand_back()
    at_rest = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    result = engine.result(engine.run(photo))
    export_file(engine, result, "all", Storage(folder), "panoptic")
print(memory_mib("VmHWM") - at_rest)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="This system does not measure the peak memory of a process."
)
def test_a_photo_of_40_megapixels_is_decoded_read_and_exported_within_500_mib(tmp_path: Path) -> None:
    photos = [tmp_path / "small.jpg", tmp_path / "large.jpg"]
    for photo, size in zip(photos, ((128, 96), (7300, 5475))):
        Image.linear_gradient("L").resize(size).convert("RGB").save(photo)
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    done = run([sys.executable, "-c", MEASURE, *photos, tmp_path], env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500
    assert bytes_for((5475, 7300)) < 512 * 2**20 < 2 * bytes_for((5475, 7300))  # so the gate lets one in at a time
