"""Prototype attention on a CPU, compiled from prototype.c when it is first needed."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pem.cores import cpuinfo
from pem.outputs import Attended

SOURCE = Path(__file__).with_name("prototype.c")
FLAGS = ("-O3", "-fopenmp", "-fPIC", "-shared")
SECONDS_TO_COMPILE = 10.0  # it takes half a second
_log = logging.getLogger("pem")
SIZES = ("images", "positions", "height", "width", "dim", "heads", "queries")
PARAMETERS = (  # by their names in the layer's state_dict
    *("query_norm.weight", "query_norm.bias", "query_proj.weight", "query_proj.bias"),
    *("key_norm.weight", "key_norm.bias", "key_norm.running_mean", "key_norm.running_var"),
    *("key_conv.weight", "key_conv.bias", "key_proj.weight", "key_proj.bias"),
    *("proj.weight", "proj.bias", "alpha", "final.weight", "final.bias"),
)
INPUTS = ("query", "query_embed", "source", "position", "banned")
OUTPUTS = ("new_query", "target", "index", "similarity", "key")


class Layer(ctypes.Structure):
    """struct layer of prototype.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in SIZES),
        ("release", ctypes.c_bool),
        *((name, ctypes.c_float) for name in ("query_norm_eps", "key_norm_eps")),
        *((name, ctypes.c_void_p) for name in (*PARAMETERS, *INPUTS, *OUTPUTS)),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, or None, with a warning, where no C compiler can make it.

    The environment variable PEM_MARCH names another processor than this machine's: "x86-64-v3", as gcc's -march.
    """
    compiler = shutil.which("cc")
    try:
        if compiler is None:
            raise FileNotFoundError("there is no C compiler: apt-get install gcc libc6-dev")
        loaded = compiled_by(compiler, (*FLAGS, f"-march={os.environ.get('PEM_MARCH') or 'native'}"))
        loaded.layer_size.restype = loaded.workspace.restype = ctypes.c_size_t
        if loaded.layer_size() != ctypes.sizeof(Layer):
            raise RuntimeError(f"its struct layer has {loaded.layer_size()} bytes, not {ctypes.sizeof(Layer)}")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning("Prototype attention is slower without its C code (%s); it computes the same.", error)
        return None
    loaded.workspace.argtypes = (ctypes.POINTER(Layer), ctypes.c_int)
    loaded.attend.argtypes = (ctypes.POINTER(Layer), ctypes.c_int, ctypes.c_void_p)
    return loaded


def compiled_by(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """The code made with these flags, kept for the next time in ~/.cache/pem where that can be written to.

    Raises OSError, and SubprocessError for a compiler that fails or takes longer than SECONDS_TO_COMPILE.
    """
    deadline = time.monotonic() + SECONDS_TO_COMPILE
    # The name of the file has a hash of what it was made of, and a hash of its content. Machines may share a cache.
    version = run_briefly([compiler, "--version"], deadline)
    made_of = (SOURCE.read_bytes(), version, " ".join(flags).encode(), cpuinfo("flags", "Features").encode())
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


def takes(query: Tensor, source: Tensor, num_heads: int) -> bool:
    """Whether ``attend`` takes these tensors and there is a compiler.

    It knows float32 on a CPU. Autocast wants other products, and torch.compile does not look into it.
    """
    if source.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    dim, compiled = source.shape[1], library()
    is_float32 = query.dtype == source.dtype == torch.float32
    return compiled is not None and is_float32 and dim % compiled.panel() == 0 and dim % num_heads == 0


def attend(
    parameters: Sequence[Tensor],
    num_heads: int,
    release: bool,
    query_norm_eps: float,
    key_norm_eps: float,
    query: Tensor,
    query_embed: Tensor,
    source: Tensor,
    position: Tensor,
    banned: Tensor,
    trace: bool,
) -> tuple[Tensor, Attended | None]:
    """What PrototypeCrossAttention returns, where ``takes`` says that this may be called.

    ``parameters`` are PARAMETERS, in this order; ``release`` lifts the bans of each empty query by itself. The rest is
    as of PrototypeCrossAttention.
    """
    compiled, threads = library(), torch.get_num_threads()
    assert compiled is not None
    (batch, queries, dim), (height, width) = query.shape, source.shape[2:]
    maps = source.permute(0, 2, 3, 1), position.permute(0, 2, 3, 1), banned.transpose(1, 2)
    inputs = [x.contiguous() for x in (*parameters, query, query_embed, *maps)]
    new_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    attended, outputs = None, [new_query, new_query]  # without a trace, targets lie where the new queries come later
    if trace:
        # Tokens are computed in groups, and the last group goes beyond the last image.
        tokens = batch * height * width
        key = query.new_empty(tokens + compiled.group(), dim)[:tokens].view(batch, -1, dim)
        similarity = query.new_empty(batch, num_heads, queries)
        index = torch.empty_like(similarity, dtype=torch.int64)
        attended = Attended(index, similarity, torch.empty_like(new_query), key)
        outputs = [new_query, attended.target, index, similarity, key]
    sizes = (batch, len(position), height, width, dim, num_heads, queries)
    pointers = (x.data_ptr() for x in (*inputs, *outputs))
    layer = Layer(*sizes, release, query_norm_eps, key_norm_eps, *pointers)
    memory = query.new_empty(compiled.workspace(layer, threads))  # torch's, so that it is counted
    compiled.attend(layer, threads, memory.data_ptr())
    return new_query, attended
