"""The kernels for a GPU compute what PyTorch's operators do, compile for GPUs, and give way where they do not run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pem.attention import PrototypeCrossAttention
from pem.fast import attention

triton = pytest.importorskip("triton", reason="PyTorch has no Triton on this system")
from pem.fast import kernels  # noqa: E402

CASES = Path(__file__).with_name("kernel_cases.py")


def run_cases(**environment: str) -> None:
    """In a process of their own: Triton asks how to run when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    run = processes.run(command, env=os.environ | environment)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(590)  # a busy machine takes minutes for it
def test_they_equal_pytorch_s_operators_in_triton_s_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_they_do_on_a_gpu() -> None:
    run_cases()


TYPES = {
    "convolve_kernel": "source position *T norm_weight norm_bias norm_mean norm_var *fp32 norm_eps fp32 "
    "conv_weight conv_bias *fp32 output *T height width position_stride i32",
    "compare_kernel": "key *T target *fp32 banned *i1 ban factor best *fp32 index *i32 num_tokens num_queries i32",
    "gather_kernel": "key *T factor best *fp32 index *i32 prototype *fp32 chosen *i64 similarity *fp32 "
    "num_tokens num_queries num_blocks i32",
}
CONSTANTS = {"DIM": 256, "HEADS": 8, "COLS": 16, "CHANNELS": 64, "TOKENS": 64, "QUERIES": 128, "BLOCKS": 512}


@pytest.mark.parametrize("token_type", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", TYPES)
def test_they_compile_for_gpus_of_two_generations(
    name: str, capability: int, token_type: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Down to machine code, which needs no GPU; what the interpreter takes, the compiler need not take."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # nobody may be able to write to the home
    kernel = getattr(kernels, name)
    signature, pending = {}, []
    for word in TYPES[name].split():
        if word in kernel.arg_names:
            pending.append(word)
        else:
            signature |= dict.fromkeys(pending, word.replace("T", token_type))
            pending = []
    constants = {argument: CONSTANTS[argument] for argument in kernel.arg_names if argument in CONSTANTS}
    source = triton.compiler.ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 8})
    assert compiled.asm["cubin"]
    assert ("mma" in compiled.asm["ptx"]) == (name == "compare_kernel")  # the matrix units multiply


def test_they_are_for_gpus_and_for_sizes_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), shape=(1, 256, 4, 4), requires_grad=False)
    query = torch.zeros(1, 7, 256)
    monkeypatch.setattr(attention, "works", lambda backend, device: True)
    assert attention.pick_backend(query, on_gpu, 8) is attention.by_kernels
    with FlopCounterMode(display=False):  # would see no operators
        assert attention.pick_backend(query, on_gpu, 8) is PrototypeCrossAttention.forward
    assert not attention.takes_kernels(query, torch.zeros(1, 256, 4, 4), 8)
    assert not attention.takes_kernels(query.double(), on_gpu, 8)
    assert not attention.takes_kernels(query, on_gpu, 32)  # 8 channels a head
    on_gpu.shape = (1, 192, 4, 4)
    assert not attention.takes_kernels(query, on_gpu, 4)


def test_without_triton_it_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "kernels", None)
    on_gpu = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), shape=(1, 256, 4, 4))
    assert not attention.takes_kernels(torch.zeros(1, 7, 256), on_gpu, 8)


@pytest.mark.parametrize("failure", ["raises", "differs"])
def test_where_they_fail_it_is_left_to_pytorch_with_a_warning(
    failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def choose(key, target, banned, ban, num_heads) -> tuple[torch.Tensor, ...]:
        if failure == "raises":
            raise RuntimeError("no kernel image is available\nfor execution on the device")
        index = torch.zeros(len(key), num_heads, target.shape[1], dtype=torch.int64)
        return target, index, index.float()

    def convolve(source, *rest) -> torch.Tensor:
        return torch.zeros(len(source), source[0, 0].numel(), source.shape[1])

    monkeypatch.setattr(kernels, "convolve", convolve)
    monkeypatch.setattr(kernels, "choose", choose)
    assert not attention.tried.__wrapped__(attention.by_kernels, torch.device("cpu"))
    reason = {"raises": "no kernel image is available", "differs": "Tensor-like"}[failure]
    assert f"Prototype attention does without by_kernels on cpu: {reason}" in caplog.text
