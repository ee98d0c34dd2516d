"""Many visitors at once, as a command: what they wait, who is refused, and what memory stays.

    .venv/bin/python tests/soak.py --visitors 50 --seconds 210 --out soak.json --figure soak.png

Starts a server of its own with the bundled model, or several --workers behind HAProxy. Each visitor uploads a photo,
has it segmented, and then reads it again five times with other tasks and thresholds, with pauses of a second or two as
people make them. Prints the share of requests that were refused, the waiting times, and the memory of the server (of
all workers together) before, at its highest and 60 s after.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
import numpy as np
import processes
from PIL import Image
from proxied import wait_until_ready, workers
from stranger import as_file, component_ids

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pem.conditions import conditions  # noqa: E402

SECONDS_OF_REST = 60
POINTS = 400  # of the memory's course, in the file


class Page:
    """What a visitor's browser knows of the page."""

    def __init__(self, url: str) -> None:
        self.url = url
        ids = component_ids(url)
        self.viewer_id = ids["viewer"]
        # The event of the photo field that runs the network.
        self.upload_event = next(
            event["id"]
            for event in httpx.get(f"{url}/config").raise_for_status().json()["dependencies"]
            if [ids["photo"], "upload"] in event["targets"] and event["backend_fn"] and event["inputs"]
        )


class Visitor:
    """One session of a browser, without the browser."""

    def __init__(self, page: Page, number: int, photos: list[bytes]) -> None:
        self.client = httpx.Client(base_url=f"{page.url}/gradio_api/", timeout=120)
        self.session, self.page = f"visitor{number}", page
        self.random, self.photos = random.Random(number), photos
        self.waited_s: dict[str, list[float]] = {"segment": [], "read": []}
        self.answers: Counter[str] = Counter()

    def visit(self, end: float) -> None:
        while time.monotonic() < end:
            result_id = self._timed("segment", self._segment)
            for _ in range(5 if result_id else 0):
                time.sleep(self.random.uniform(1, 2))
                self._timed("read", partial(self._read, result_id))
            time.sleep(self.random.uniform(1, 2))

    def _timed(self, what: str, ask: Any) -> Any:
        start = time.monotonic()
        try:
            answer = ask()
        except httpx.HTTPError as error:
            answer = None
            self.answers[f"{what}: {type(error).__name__}"] += 1
        self.waited_s[what].append(time.monotonic() - start)
        return answer

    def _segment(self) -> str | None:
        photo = ("photo.jpg", self.random.choice(self.photos))
        uploaded = self.client.post("upload", files={"files": photo})
        if uploaded.status_code != 200:
            return self._count("segment", uploaded.text)
        file = as_file(uploaded.json()[0])
        event = {"session_hash": self.session, "fn_index": self.page.upload_event, "data": [file]}
        joined = self.client.post("queue/join", json=event)
        if joined.status_code != 200:
            return self._count("segment", joined.text)
        with self.client.stream("GET", "queue/data", params={"session_hash": self.session}) as messages:
            for line in messages.iter_lines():
                message = json.loads(line.removeprefix("data:") or "{}")
                if message.get("msg") == "process_completed":
                    break
            else:
                return self._count("segment", "The stream ended.")
        shown = message["output"]["data"][0] if message["success"] else {}
        if "id" not in shown:
            return self._count("segment", str(message["output"]))
        self.answers["segment: answered"] += 1
        return shown["id"]

    def _read(self, result_id: str) -> None:
        task, threshold = self.random.choice(("panoptic", "semantic", "instance")), self.random.random()
        body = {"session_hash": self.session, "component_id": self.page.viewer_id, "fn_name": "read"}
        answer = self.client.post("component_server", json=body | {"data": [result_id, task, threshold, 0.5]})
        self._count("read", answer.text if answer.status_code != 200 or "error" in answer.json() else "")

    def _count(self, what: str, refusal: str) -> None:
        self.answers[f"{what}: {refusal[:100]}" if refusal else f"{what}: answered"] += 1


def memory_mib(pids: list[int]) -> float:
    """What the processes hold together."""
    statuses = [Path(f"/proc/{pid}/status").read_text(encoding="utf-8") for pid in pids]
    return sum(int(kib) for status in statuses for kib in re.findall(r"VmRSS:\s+(\d+)", status)) / 1024


@contextlib.contextmanager
def served(num_workers: int) -> Iterator[tuple[str, list[int]]]:
    """The address of a server, or of a proxy before several, and the ids of their processes."""
    threads = max(1, (os.cpu_count() or 1) // num_workers)

    def command(port: int) -> list[str]:
        return [sys.executable, str(ROOT / "app.py"), "--port", str(port), "--threads", str(threads)]

    if num_workers == 1:
        port = processes.free_port()
        with processes.started(command(port), cwd=ROOT, stdout=sys.stderr) as server:
            wait_until_ready(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}", [server.pid]
    else:
        names = [f"worker{number}" for number in range(num_workers)]
        with tempfile.TemporaryDirectory() as folder, workers(command, Path(folder), names) as (url, servers):
            yield url, [server.pid for server in servers.values()]


def make_photos() -> list[bytes]:
    """The examples at sizes from 0.3 to 12 megapixels."""
    made = []
    for path in sorted((ROOT / "assets" / "examples").glob("*.jpg")):
        for megapixels in (0.3, 2, 12):
            with Image.open(path) as photo:
                scale = (megapixels * 1e6 / (photo.width * photo.height)) ** 0.5
                file = io.BytesIO()
                photo.resize((round(photo.width * scale), round(photo.height * scale))).save(file, "JPEG")
                made.append(file.getvalue())
    return made


def draw(found: dict[str, Any], file: Path) -> None:
    """The course of the server's memory."""
    seconds, mib = zip(*found["memory_series_s_mib"])
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.plot(np.array(seconds) / 60, mib)
    axes.axvline(found["seconds"] / 60, color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel="minutes; no photo is sent after the line", ylabel="memory of the server, MiB", ylim=(0, None))
    axes.set_title(f"{found['visitors']} visitors on {found['cores']} cores, {found['workers']} worker(s)")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=210)
    parser.add_argument("--workers", type=int, default=1, help="behind HAProxy, if more than one")
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    with served(options.workers) as (url, pids):
        page, photos = Page(url), make_photos()
        visitors = [Visitor(page, number, photos) for number in range(options.visitors)]
        # What is loaded when it is first needed belongs to the rest. Each worker has one of the first visitors.
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(lambda visitor: visitor.visit(time.monotonic() + 1), visitors[: options.workers]))
        time.sleep(2)
        series = [(0.0, memory_mib(pids))]
        start, stop = time.monotonic(), threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                series.append((time.monotonic() - start, memory_mib(pids)))

        watching = threading.Thread(target=watch)
        watching.start()
        with ThreadPoolExecutor(options.visitors) as pool:
            list(pool.map(lambda visitor: visitor.visit(start + options.seconds), visitors))
        time.sleep(SECONDS_OF_REST)
        stop.set()
        watching.join()
    answers = sum((visitor.answers for visitor in visitors), Counter[str]())
    waited = {what: np.concatenate([v.waited_s[what] for v in visitors]) for what in ("segment", "read")}
    memory = [mib for _, mib in series]
    found = {
        "visitors": options.visitors,
        "seconds": options.seconds,
        "workers": options.workers,
        "cores": os.cpu_count(),
        "conditions": conditions("cpu"),
        "answers": dict(answers.most_common()),
        "refused_share": 1 - sum(n for a, n in answers.items() if a.endswith("answered")) / answers.total(),
        "waited_s": {
            what: dict(zip(("median", "p95", "most"), np.percentile(values, [50, 95, 100]).round(2).tolist()))
            for what, values in waited.items()
        },
        "memory_mib": {"before": memory[0], "most": max(memory), "after": memory[-1]},
        "memory_series_s_mib": [(round(s, 1), round(mib)) for s, mib in series[:: len(series) // POINTS + 1]],
    }
    options.out.write_text(json.dumps(found), encoding="utf-8")
    if options.figure:
        draw(found, options.figure)
    print(json.dumps({key: value for key, value in found.items() if key != "memory_series_s_mib"}, indent=1))


if __name__ == "__main__":
    main()
