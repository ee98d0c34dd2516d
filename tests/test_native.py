"""Prototype attention compiled for the CPU chooses and computes what PyTorch's operators do."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import processes
import pytest
import small_attention
import torch
from small_attention import attention, equal_tokens, random_inputs
from small_model import clear_choices, small_model
from torch.utils.flop_counter import FlopCounterMode

import pem
from pem.attention import PrototypeCrossAttention
from pem.fast import attention as fast_attention
from pem.fast import native
from pem.fast.attention import FastPrototypeCrossAttention, by_native

needs_compiler = pytest.mark.skipif(
    native.library() is None, reason="There is no C compiler (cc): apt-get install gcc libc6-dev."
)


def test_it_compiles_where_there_is_gcc() -> None:
    """Or every test below would be skipped without a word on the machines that it was written for."""
    if native.shutil.which("gcc") is None or native.shutil.which("cc") is None or platform.system() != "Linux":
        pytest.skip("there is no gcc")
    assert native.library() is not None


def assert_equals_plain(layer: PrototypeCrossAttention, inputs: tuple[torch.Tensor, ...]) -> None:
    assert native.takes(inputs[0], inputs[2], layer.num_heads)
    small_attention.assert_equals_plain(by_native, layer, inputs)


@needs_compiler
@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 4), (3, 1), (2, 2), (7, 5), (4, 131), (3, 133), (2, 270), (37, 2)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
@pytest.mark.parametrize("queries", [7, 16, 50])
def test_it_equals_the_plain_path_at_any_size(size: tuple[int, int], queries: int) -> None:
    """Borders, parts of groups of tokens, several blocks in a row, parts of panels of queries."""
    assert_equals_plain(attention(32, 4), random_inputs(size, queries=queries))


@needs_compiler
def test_it_does_with_the_paper_s_dimensions_in_any_layout_on_any_number_of_threads() -> None:
    layer, inputs = attention(256, 8), random_inputs((12, 20), dim=256, queries=100)
    assert_equals_plain(layer, inputs)
    query, query_embed, source, position, banned = inputs
    tokens_first = banned.transpose(1, 2).contiguous().transpose(1, 2)
    laid_out = source.to(memory_format=torch.channels_last), position.expand_as(source), tokens_first
    assert_equals_plain(layer, (query, query_embed, *laid_out))
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert_equals_plain(layer, inputs)
    finally:
        torch.set_num_threads(threads)


@needs_compiler
@pytest.mark.parametrize("rule", ["reference", "release"])
def test_empty_masks_follow_the_rule(rule: str) -> None:
    assert_equals_plain(attention(32, 4, rule), small_attention.with_empty_masks(random_inputs((5, 6), batch=3)))


@needs_compiler
def test_a_lone_empty_mask_takes_token_0_with_similarity_0() -> None:
    *inputs, banned = random_inputs((5, 6))
    banned[0, 2] = True
    attended = by_native(attention(32, 4), *inputs, banned, True)[1]
    assert (attended.prototype_index[0, :, 2] == 0).all() and (attended.similarity[0, :, 2] == 0).all()


@needs_compiler
def test_what_is_no_number_stays_none() -> None:
    layer = attention(32, 4)
    query, query_embed, source, *rest = random_inputs((2, 3))
    with torch.no_grad():
        for _ in range(100):  # one block of tokens: which thread gets it is chance, and the others have found nothing
            by_native(layer, query, query_embed, source, *rest, False)  # leaves numbers in the next call's memory
            new_query, _ = by_native(layer, query, query_embed, torch.full_like(source, torch.nan), *rest, False)
            assert new_query.isnan().all()


@needs_compiler
def test_what_lies_in_its_memory_is_not_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subnormal numbers there would not change the result, but cost some processors most of their speed."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("only there is it known how to ask the processor")
    libm, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()  # fenv_t, whose last number is MXCSR

    def met_subnormals() -> bool:
        """Since it was last asked, in this thread."""
        libm.fegetenv(environment)
        met = bool(environment[7] & 2)
        environment[7] &= ~2
        libm.fesetenv(environment)
        return met

    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *size: new_empty(self, *size).fill_(1e-40))
    layer, inputs = attention(32, 4), random_inputs((5, 31), queries=19)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.no_grad():
            met_subnormals()
            for trace in (False, True):
                by_native(layer, *inputs, trace)
                assert not met_subnormals()
            by_native(layer, torch.full_like(inputs[0], 1e-40), *inputs[1:], False)
            assert met_subnormals()  # so they are seen
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_of_equal_tokens_the_first_allowed_one_is_chosen() -> None:
    """Also across blocks, which threads take in turns."""
    layer, (*inputs, _) = attention(32, 4), random_inputs((40, 140), batch=1)
    score = equal_tokens(layer, num_queries=7)
    first = torch.tensor([0, 1, 69, 70, 140, 2900, 5599])
    banned = (torch.arange(5600) < first[:, None])[None]
    for _ in range(5):
        _, attended = by_native(layer, *inputs, banned, True)
        assert torch.equal(attended.prototype_index, first.expand(1, 4, 7))
        assert torch.equal(attended.similarity[0], score)


FEWER_THREADS = """
import sys
import torch

sys.path.insert(0, "tests")
from small_attention import assert_equals_plain, attention, random_inputs
from pem.fast.attention import by_native

for threads in (1, 4):
    torch.set_num_threads(threads)
    assert_equals_plain(by_native, attention(32, 4), random_inputs((20, 30)))
"""


@needs_compiler
@pytest.mark.parametrize("limit", [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}], ids=str)
def test_it_works_with_fewer_threads_than_it_asked_for(limit: dict[str, str]) -> None:
    done = processes.run([sys.executable, "-c", FEWER_THREADS], env=os.environ | limit)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_the_network_computes_the_same_with_it_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    fast = pem.accelerate(model)
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(10))
    with torch.no_grad():
        plain = clear_choices(model(pixels, trace=True), model.config.num_heads)
        ours = fast(pixels, trace=True)
        monkeypatch.setattr(native, "library", lambda: None)
        without = fast(pixels, trace=True)
    for output in (ours, without):
        torch.testing.assert_close(output.pred_logits, plain.pred_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.pred_masks, plain.pred_masks, rtol=1e-4, atol=1e-4)
        for layer, expected in zip(output.trace, plain.trace, strict=True):
            assert torch.equal(layer.prototype_index, expected.prototype_index)


@needs_compiler
def test_it_steps_aside_where_pytorch_must_see_the_operators() -> None:
    layer, inputs = attention(32, 4).requires_grad_(False), random_inputs((4, 5))
    query, source = inputs[0], inputs[2]
    pick = fast_attention.pick_backend
    assert pick(query, source, 4) is by_native
    assert pick(query.clone().requires_grad_(), source, 4) is PrototypeCrossAttention.forward
    assert not native.takes(query, source.double(), 4) and not native.takes(query, source.to("meta"), 4)
    assert not native.takes(query, source[:, :20], 4)  # not whole panels of channels, in any build
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not native.takes(query, source, 4)
    with FlopCounterMode(display=False) as counter:
        FastPrototypeCrossAttention(layer)(*inputs)
    batch, queries, dim, tokens = 2, 7, 32, 20
    products = tokens * dim * dim + tokens * queries * dim + 3 * queries * dim * dim  # keys, scores, three of queries
    convolution = 9 * tokens * dim
    assert counter.get_total_flops() == 2 * batch * (products + convolution)


@needs_compiler
@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_library_that_computes_something_else_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def attend(*args: Any) -> tuple[torch.Tensor, Any]:
        if fault == "raises":
            raise OSError("no room")
        new_query, attended = right(*args)
        return new_query + 0.01, attended

    right = native.attend
    monkeypatch.setattr(native, "attend", attend)
    assert not fast_attention.tried.__wrapped__(by_native, torch.device("cpu"))
    assert "Prototype attention does without by_native on cpu" in caplog.text


@needs_compiler
def test_a_library_of_another_layout_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Longer(ctypes.Structure):
        _fields_ = [*native.Layer._fields_, ("one_more", ctypes.c_void_p)]

    monkeypatch.setattr(native, "Layer", Longer)
    assert native.library.__wrapped__() is None
    assert "its struct layer has" in caplog.text


def test_without_a_working_compiler_it_is_left_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.library.__wrapped__() is None
    assert "slower without its C code (there is no C compiler" in caplog.text
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho broken\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(native.shutil, "which", lambda name: str(broken))
    assert native.library.__wrapped__() is None
    assert not list((tmp_path / "cache").rglob("*.so"))


@needs_compiler
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__() is not None
    (made,) = tmp_path.rglob("*.so")
    time = made.stat().st_mtime_ns
    assert native.library.__wrapped__() is not None
    assert [*tmp_path.rglob("*.so")] == [made] and made.stat().st_mtime_ns == time


@needs_compiler
@pytest.mark.parametrize("fault", ["damaged", "cut short", "foreign", "writable by others", "in a folder of others"])
def test_a_kept_file_that_is_not_what_it_was_is_never_loaded_but_made_anew(
    fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__() is not None
    (kept,) = tmp_path.rglob("*.so")
    content = kept.read_bytes()
    kept.unlink()  # this process runs what is in it
    kept.write_bytes(content)
    kept.chmod(0o700)
    if fault == "damaged":
        kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fault == "cut short":
        kept.write_bytes(content[: len(content) // 2])
    elif fault == "foreign":
        kept.write_bytes(b"no library")
    elif fault == "writable by others":
        kept.chmod(0o722)
    else:
        kept.parent.chmod(0o777)
    loaded = []
    load = native.ctypes.CDLL
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: loaded.append(Path(path).read_bytes()) or load(path))
    made = []
    monkeypatch.setattr(native, "run_briefly", lambda *call, run=native.run_briefly: made.append(call) or run(*call))
    assert native.library.__wrapped__() is not None
    assert len(made) == 2 and loaded[0].startswith(b"\x7fELF") and len(loaded) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_compiler_that_hangs_is_given_up_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "SECONDS_TO_COMPILE", 1.0)
    hanging, child = tmp_path / "cc", tmp_path / "child"
    sleep = f"{sys.executable} -c 'import time; time.sleep(3600)'"  # there may be no other program
    hanging.write_text(f"#!/bin/sh\n{sleep} &\necho $! > {child}\nwait\n", encoding="utf-8")
    hanging.chmod(0o755)
    monkeypatch.setattr(native.shutil, "which", lambda name: str(hanging))
    assert native.library.__wrapped__() is None
    assert "Prototype attention is slower without its C code" in caplog.text and "timed out" in caplog.text
    if child.exists():  # on a machine that was fast enough to start it
        status = Path(f"/proc/{child.read_text(encoding='utf-8').strip()}/status")
        while status.exists() and "State:\tZ" not in status.read_text(encoding="utf-8"):
            time.sleep(0.01)


@needs_compiler
def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.library.__wrapped__() is not None


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")
def test_it_can_be_compiled_for_another_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One without AVX, which every x86-64 processor can stand for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PEM_MARCH", "x86-64")
    other = native.library.__wrapped__()
    monkeypatch.setenv("PEM_MARCH", "no-such-processor")
    assert native.library.__wrapped__() is None
    assert len([*tmp_path.rglob("*.so")]) == 1
    monkeypatch.setattr(native, "library", lambda: other)
    assert_equals_plain(attention(32, 4), random_inputs((7, 5), queries=16))
