"""Workers behind the proxy of hosting/haproxy.cfg, on free ports."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import processes

ROOT = Path(__file__).parent.parent
NAMES = ("one", "two")  # of the workers in the file

Command = Sequence["str | os.PathLike[str]"]


def wait_until_ready(url: str, server: subprocess.Popen[str]) -> None:
    while server.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/health/ready").raise_for_status()
            return
        time.sleep(0.1)
    raise ChildProcessError("The server has ended.")


@contextlib.contextmanager
def workers(
    command: Callable[[int], Command], folder: Path, names: Sequence[str] = NAMES
) -> Iterator[tuple[str, dict[str, subprocess.Popen[str]]]]:
    """The address of the proxy, and the workers by their names; ``command`` starts one at a port."""
    front, *ports = processes.free_ports(1 + len(names))
    text = (ROOT / "hosting" / "haproxy.cfg").read_text(encoding="utf-8")
    text = text.replace("bind :7860", f"bind 127.0.0.1:{front}", 1)
    lines = [f"    server {name} 127.0.0.1:{port} cookie {name}\n" for name, port in zip(names, ports)]
    file = folder / "haproxy.cfg"
    file.write_text(re.sub(r"(    server .*\n)+", "".join(lines), text), encoding="utf-8")
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(processes.started(command(port), cwd=ROOT, stdout=sys.stderr)) for port in ports]
        for port, server in zip(ports, started):
            wait_until_ready(f"http://127.0.0.1:{port}", server)
        proxy = stack.enter_context(processes.started(["haproxy", "-f", file], stdout=sys.stderr))
        url = f"http://127.0.0.1:{front}"
        wait_until_ready(url, proxy)
        yield url, dict(zip(names, started))
