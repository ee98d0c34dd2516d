"""The network's way on a GPU, with tensors that have a device and a shape and no values, so that none is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_model import small_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pem

GPU = torch.device("cuda:0")


class OnGpuAlone(TorchDispatchMode):
    """Fails where an operator is given a tensor in the CPU's memory: it would have to be copied, and waited for."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            assert not isinstance(x, Tensor) or x.device == GPU, f"{operator} is given a tensor in the CPU's memory."
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a small model with fake weights on fake pixels, on a GPU that is not there."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)

    def run(use: Callable[[nn.Module, Tensor], Any], **changes: Any) -> Any:
        model = pem.accelerate(small_model(**changes))
        with FakeTensorMode(), torch.no_grad():
            for module in model.modules():
                for tensors in (module._parameters, module._buffers):
                    for name, tensor in tensors.items():
                        if tensor is not None:
                            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)
                            tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake
            pixels = torch.empty(2, 3, 64, 96, device=GPU)
            with OnGpuAlone():
                return use(model, pixels)

    return run


@pytest.mark.parametrize(
    ("dtype", "trace"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)], ids=str
)
@pytest.mark.parametrize(
    "changes",
    [{}, {"empty_mask": "release"}, {"attention": "masked"}, {"backbone": "resnet50"}],
    ids=["prototype", "release", "masked", "resnet50"],
)
def test_the_network_waits_for_nothing(forward: Any, changes: dict[str, str], dtype: torch.dtype, trace: bool) -> None:
    """Reading a value back, for an if or a shape, raises DataDependentOutputException."""

    def use(model: nn.Module, pixels: Tensor) -> Any:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            output = model(pixels, trace)
            return output, output.pred_masks

    output, masks = forward(use, **changes)
    assert masks.device == GPU and masks.shape == (2, 12, 16, 24)
    assert output.mask_features.dtype == dtype
    assert trace == (output.trace is not None)


def test_waiting_would_be_seen(forward: Any) -> None:
    with pytest.raises(DataDependentOutputException):
        forward(lambda model, pixels: model(pixels).pred_logits.sum().item())
    with pytest.raises(AssertionError, match="in the CPU's memory"):
        forward(lambda model, pixels: pixels * torch.tensor(2.0))
