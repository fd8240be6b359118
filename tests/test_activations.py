"""GPT-2's activation written out: the model's own is what every number is compared with."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import NewGELUActivation

from lm_gym.activations import FEW, gelu_new


@pytest.mark.parametrize("size", [FEW // 2, FEW, 3 * FEW])
def test_values_are_those_of_the_models_activation(size: int) -> None:
    x = torch.cat([torch.linspace(-12, 12, size - 4), torch.tensor([-3e4, 3e4, 0.0, -0.0])])
    expected = NewGELUActivation()(x.double())
    torch.testing.assert_close(gelu_new(x).double(), expected, atol=1e-6, rtol=1e-6)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gelu_new(leaf).double(), expected, atol=1e-6, rtol=1e-6)


def test_gradient_is_that_of_the_models_activation() -> None:
    x = torch.cat([torch.linspace(-8, 8, FEW), torch.tensor([-3e4, 3e4])]).requires_grad_()
    wide = x.detach().double().requires_grad_()
    weight = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
    gelu_new(x).backward(weight)
    NewGELUActivation()(wide).backward(weight.double())
    assert x.grad is not None and wide.grad is not None
    torch.testing.assert_close(x.grad.double(), wide.grad, atol=2e-6, rtol=1e-5)


def test_sixteen_bits_come_back_in_sixteen_bits() -> None:
    x = torch.linspace(-5, 5, 2 * FEW).bfloat16().requires_grad_()
    y = gelu_new(x)
    y.backward(torch.ones_like(y))
    assert x.grad is not None and y.dtype == x.grad.dtype == torch.bfloat16
    exact = NewGELUActivation()(x.detach().double())
    torch.testing.assert_close(y.detach().double(), exact, atol=2e-2, rtol=1e-2)
