"""The fast way of the CPU equals torchvision's operator, which the published weights were run with."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from pem.deform_conv import modulated_deform_conv2d
from pem.fast.deform_conv import fast_deform_conv2d


def inputs(size: tuple[int, int], spread: float, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x, offset, modulation, weight; the offsets are of ``spread`` cells, so large ones leave the image."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *size, generator=rng, dtype=dtype)
    offset = torch.randn(2, 18, *size, generator=rng, dtype=dtype) * spread
    modulation = torch.rand(2, 9, *size, generator=rng, dtype=dtype)
    weight = torch.randn(6, 4, 3, 3, generator=rng, dtype=dtype)
    return [t.requires_grad_() for t in (x, offset, modulation, weight)]


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (9, 1), (1, 1), (24, 32)])  # the last in several blocks
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_values_and_gradients_equal_torchvision(size, spread) -> None:
    ours, theirs = inputs(size, spread), inputs(size, spread)
    result = fast_deform_conv2d(*ours)
    x, offset, modulation, weight = theirs
    expected = deform_conv2d(x, offset, weight, padding=1, mask=modulation)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)

    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(result, ours, direction)
    expected_gradients = torch.autograd.grad(expected, theirs, direction)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-8)


def test_a_bias_is_added() -> None:
    x, offset, modulation, weight = inputs((5, 7), 0.3)
    bias = torch.arange(6, dtype=x.dtype)
    result = fast_deform_conv2d(x, offset, modulation, weight, bias)
    torch.testing.assert_close(result, fast_deform_conv2d(x, offset, modulation, weight) + bias[:, None, None])


@pytest.mark.parametrize("convolve", [modulated_deform_conv2d, fast_deform_conv2d])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_an_offset_that_is_not_finite_spoils_its_own_cell_only(convolve, odd: float) -> None:
    """It shows in the result, and reads no memory out of bounds."""
    with torch.no_grad():
        x, offset, modulation, weight = inputs((5, 7), 0.3)
        offset[0, 3, 2, 4] = odd
        result = convolve(x, offset, modulation, weight)
    assert result[0, :, 2, 4].isnan().all() and result.isnan().sum() == 6


def test_without_offsets_it_is_a_plain_convolution() -> None:
    x, offset, modulation, weight = inputs((6, 8), 0.0)
    result = fast_deform_conv2d(x, offset, torch.ones_like(modulation), weight)
    torch.testing.assert_close(result, F.conv2d(x, weight, padding=1))


def test_even_channels_are_row_offsets() -> None:
    """Every tap reads one row further down: the convolution of the image moved up by one."""
    x, _, modulation, weight = inputs((6, 8), 0.0)
    offset = torch.zeros(2, 18, 6, 8, dtype=x.dtype)
    offset[:, 0::2] = 1
    moved = F.pad(x, (0, 0, 0, 1))[:, :, 1:]
    result = fast_deform_conv2d(x, offset, torch.ones_like(modulation), weight)
    # Not the first row: its upper taps read row 0 of x, which the moved image has lost.
    torch.testing.assert_close(result[:, :, 1:], F.conv2d(moved, weight, padding=1)[:, :, 1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torchvision_s_kernel_takes_half_precision_beside_float32(dtype) -> None:
    with torch.no_grad():
        x, offset, modulation, weight = inputs((5, 7), 1.0, torch.float32)
        result = modulated_deform_conv2d(x.to(dtype), offset, modulation, weight)
        expected = fast_deform_conv2d(x.to(dtype).float(), offset, modulation, weight)
    torch.testing.assert_close(result, expected.to(dtype), rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda_equals_cpu(dtype) -> None:
    with torch.no_grad():
        x, offset, modulation, weight = inputs((6, 8), 1.0, torch.float32)
        expected = fast_deform_conv2d(x, offset, modulation, weight)
        result = fast_deform_conv2d(x.cuda().to(dtype), offset.cuda(), modulation.cuda(), weight.cuda())
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(result.cpu().float(), expected, rtol=tolerance, atol=tolerance)
