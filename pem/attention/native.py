"""The choice of prototypes on a CPU, compiled from prototype.c when it is first needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pem.layers import norm_as_affine

SOURCE = Path(__file__).with_name("prototype.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
PANEL = 16  # as in prototype.c


class Layer(ctypes.Structure):
    """``struct layer`` of prototype.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("height", "width", "dim", "heads", "queries", "padded_queries")),
        *((name, ctypes.c_void_p) for name in ("scale", "shift", "taps", "conv_bias", "weight", "bias", "target")),
        *((name, ctypes.c_void_p) for name in ("source", "position", "banned")),
        ("release", ctypes.c_bool),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, or None where there is no C compiler that can make it."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    try:
        # Kept for the next time under a name that tells what it was made of and for which machine.
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
        made_of = (SOURCE.read_bytes(), version, " ".join(FLAGS).encode(), cpu_flags())
        name = f"prototype-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}.so"
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pem"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:  # another process may be making it as well
                made = Path(scratch) / name
                subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"], capture_output=True, check=True)
                made.rename(folder / name)
        loaded = ctypes.CDLL(str(folder / name))  # its OpenMP is the one that torch has already loaded
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None
    loaded.pick.restype = ctypes.c_bool
    return loaded


def cpu_flags() -> bytes:
    """What the CPU can do: a cache may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_bytes().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def can_run(source: Tensor, num_heads: int) -> bool:
    """Whether ``pick`` can do it: without gradients, in float32 on a CPU, unwatched, and where it compiles.

    Autocast wants other products, and what traces or counts operators would see none.
    """
    dim = source.shape[1]
    return (
        source.device.type == "cpu"
        and source.dtype == torch.float32
        and dim % PANEL == 0
        and dim % num_heads == 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is None
        and library() is not None
    )


def pick(
    norm: nn.BatchNorm2d,
    conv: nn.Conv2d,
    proj: nn.Linear,
    num_heads: int,
    target: Tensor,
    source: Tensor,
    position: Tensor,
    banned: Tensor,
    release: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best token of every head and query: index and score, both [B, h, Q]; its key [B, Q, D]; all keys [B, N, D].

    A key is ``proj(conv(norm(source + position)))`` at unit length. Its score is its product with target [B, Q, D] over
    a head's channels. What is banned [B, Q, N] is not chosen. A query that is banned from all tokens may choose any:
    with ``release`` each one, otherwise only if its image has no other; or else it takes the first, with score 0. Of
    equal scores the first token's wins.
    Raises MemoryError.
    """
    pick_in_image = library().pick  # type: ignore[union-attr]
    (batch, queries, dim), (height, width) = target.shape, source.shape[2:]
    assert conv.bias is not None
    scale, shift = norm_as_affine(norm)
    taps = conv.weight.flatten(1).t().contiguous()  # [9, D]
    weight = proj.weight.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()  # [D / PANEL, D, PANEL]
    padded = -(-queries // PANEL) * PANEL
    heads = F.pad(target, (0, 0, 0, padded - queries)).view(batch, -1, PANEL, num_heads, dim // num_heads)
    heads = heads.permute(0, 3, 1, 4, 2).contiguous()  # [B, h, padded / PANEL, D/h, PANEL]
    sources, positions = (x.permute(0, 2, 3, 1).contiguous() for x in (source, position))
    banned = banned.transpose(1, 2).contiguous()

    threads = torch.get_num_threads()
    key, prototype = torch.empty(batch, height * width, dim), torch.empty(batch, queries, dim)
    best = torch.full((batch, threads, num_heads, padded), -torch.inf)
    index = torch.zeros((batch, threads, num_heads, padded), dtype=torch.int32)
    for i in range(batch):
        layer = Layer(
            *(height, width, dim, num_heads, queries, padded),
            *(x.data_ptr() for x in (scale, shift, taps, conv.bias, weight, proj.bias, heads[i])),
            *(x.data_ptr() for x in (sources[i], positions[i % len(positions)], banned[i])),
            release,
        )
        memory = (ctypes.c_void_p(x[i].data_ptr()) for x in (key, prototype, best, index))
        if not pick_in_image(ctypes.byref(layer), threads, *memory):
            raise MemoryError("There is too little memory for prototype attention.")
    return index[:, 0, :, :queries].long(), best[:, 0, :, :queries], prototype, key
