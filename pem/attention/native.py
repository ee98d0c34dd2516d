"""Prototype attention on a CPU, compiled from prototype.c when it is first needed."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pem.layers import is_watched
from pem.outputs import Attended

if TYPE_CHECKING:
    from pem.attention.prototype import PrototypeCrossAttention

SOURCE = Path(__file__).with_name("prototype.c")
FLAGS = ("-O3", "-fopenmp", "-fPIC", "-shared")
PANEL, GROUP = 32, 12  # as in prototype.c; no build has larger ones
SECONDS_TO_COMPILE = 10.0  # it takes half a second
_log = logging.getLogger("pem")
LAYER = struct.Struct("7i ? 2f 27P")  # struct layer of prototype.c


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, or None where there is no C compiler that can make it.

    The environment variable PEM_MARCH names another processor than this machine's: "x86-64-v3", as gcc's -march.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    try:
        loaded = compiled_by(compiler, (*FLAGS, f"-march={os.environ.get('PEM_MARCH') or 'native'}"))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning(
            "%s cannot compile prototype attention (%s); PyTorch's operators compute the same.", compiler, error
        )
        return None
    loaded.workspace.argtypes, loaded.workspace.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_size_t
    loaded.attend.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)
    return loaded


def compiled_by(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """The code made with these flags, kept for the next time in ~/.cache/pem where that can be written to.

    Raises OSError, and SubprocessError for a compiler that fails or takes longer than SECONDS_TO_COMPILE.
    """
    deadline = time.monotonic() + SECONDS_TO_COMPILE
    # The name tells what it was made of and for which machine, and then what it must contain.
    version = run_briefly([compiler, "--version"], deadline)
    made_of = (SOURCE.read_bytes(), version, " ".join(flags).encode(), cpu_flags())
    name = f"prototype-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pem"
    for kept in folder.glob(f"{name}-*.so"):
        if is_trusted(folder) and is_trusted(kept) and kept.stem == f"{name}-{digest(kept)}":
            return ctypes.CDLL(str(kept))  # its OpenMP is the one that torch has already loaded
    can_keep = can_write_to(folder) and is_trusted(folder)
    with tempfile.TemporaryDirectory(dir=folder if can_keep else None) as scratch:  # others may make it as well
        made = Path(scratch) / f"{name}.so"
        run_briefly([compiler, *flags, str(SOURCE), "-o", str(made), "-lm"], deadline)
        made.chmod(0o700)
        if can_keep:
            made = made.rename(folder / f"{name}-{digest(made)}.so")
        return ctypes.CDLL(str(made))  # which stays when the file is gone


def run_briefly(command: list[str], deadline: float) -> bytes:
    """What the command prints. Raises CalledProcessError, and TimeoutExpired when it and its children were ended."""
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except BaseException:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if code != 0:
            raise subprocess.CalledProcessError(code, command[0])
        printed.seek(0)
        return printed.read()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def is_trusted(path: Path) -> bool:
    """Whether nobody else can have written it, as far as the system tells."""
    found = path.stat()
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def can_write_to(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def cpu_flags() -> bytes:
    """What the CPU can do: a cache may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_bytes().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def can_run(query: Tensor, source: Tensor, num_heads: int) -> bool:
    """Whether ``attend`` can do it: without gradients, in float32 on a CPU, unwatched, and where it compiles.

    Autocast wants other products, and what traces or counts operators would see none.
    """
    dim = source.shape[1]
    return (
        source.device.type == "cpu"
        and query.dtype == source.dtype == torch.float32
        and dim % PANEL == 0
        and dim % num_heads == 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not is_watched()
        and library() is not None
    )


def attend(
    layer: PrototypeCrossAttention,
    query: Tensor,
    query_embed: Tensor,
    source: Tensor,
    position: Tensor,
    banned: Tensor,
    trace: bool,
) -> tuple[Tensor, Attended | None]:
    """What ``layer`` computes, out of training; ``can_run`` tells whether it may be called."""
    norm, conv = layer.key_norm, layer.key_conv
    assert norm.running_mean is not None and norm.running_var is not None and conv.bias is not None
    (batch, queries, dim), (height, width) = query.shape, source.shape[2:]
    inputs = [
        *(layer.query_norm.weight, layer.query_norm.bias, layer.query_proj.weight, layer.query_proj.bias),
        *(norm.weight, norm.bias, norm.running_mean, norm.running_var),
        *(conv.weight, conv.bias, layer.key_proj.weight, layer.key_proj.bias),
        *(layer.proj.weight, layer.proj.bias, layer.alpha, layer.final.weight, layer.final.bias),
        *(query, query_embed, source.permute(0, 2, 3, 1), position.permute(0, 2, 3, 1), banned.transpose(1, 2)),
    ]
    inputs = [x.contiguous() for x in inputs]
    new_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    attended = None
    outputs = [new_query.data_ptr()] * 2 + [0] * 3  # without a trace targets lie where the new queries come in the end
    if trace:
        # Tokens are computed in groups, and the last one goes beyond the last image.
        tokens = batch * height * width
        key = query.new_empty(tokens + GROUP, dim)[:tokens].view(batch, -1, dim)
        similarity = query.new_empty(batch, layer.num_heads, queries)
        attended = Attended(
            torch.empty_like(similarity, dtype=torch.int64), similarity, torch.empty_like(new_query), key
        )
        outputs[1:] = (x.data_ptr() for x in (attended.target, attended.prototype_index, similarity, key))
    call = LAYER.pack(
        *(batch, len(position), height, width, dim, layer.num_heads, queries),
        *(layer.empty_mask == "release", layer.query_norm.eps, norm.eps),
        *[x.data_ptr() for x in inputs],
        *outputs,
    )
    compiled, threads = library(), torch.get_num_threads()
    assert compiled is not None
    memory = query.new_empty(compiled.workspace(call, threads))  # torch's, so that it is counted
    compiled.attend(call, threads, memory.data_ptr())
    return new_query, attended
