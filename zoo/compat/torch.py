"""Private names of PyTorch, as of 2.13."""

import contextlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from zoo.compat import private
from zoo.typing import Tensor


def packed_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The function x -> x weightᵀ + bias with the weight packed once for oneDNN, as `torch.compile` packs it.

    PyTorch's own products on a CPU go through MKL, which reaches half the speed of oneDNN on an AMD processor. Since
    PyTorch 2.0. Public way: `torch.nn.functional.linear`, which is what this is where oneDNN is missing.

    Args:
        weight: (out, in) on the CPU, float32.
        bias: (out,) or None.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    linear = private(torch.ops.mkldnn, "_linear_pointwise")
    packed = private(torch.ops.mkldnn, "_reorder_linear_weight")(weight.contiguous())
    return lambda x: linear(x, packed, bias, "none", [], "")


def linear_operation() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """The function (x, weight, bias) -> x weightᵀ + bias by oneDNN, float32 on the CPU; None where oneDNN is missing.

    As `packed_linear`, for weights that change between calls. It has no gradient. Since PyTorch 2.0. Public way:
    `torch.nn.functional.linear`.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return None
    operation = private(torch.ops.mkldnn, "_linear_pointwise").default
    return lambda x, weight, bias: operation(x, weight, bias, "none", [], "")


def fused_adam(*tensors: Any, **options: Any) -> None:
    """One step of PyTorch's fused Adam kernel, the one behind `torch.optim.Adam(fused=True)`.

    Since PyTorch 2.0. Public way: `torch.optim.adam.adam(fused=True)`, which takes 30 us more for each variable: one
    part in a hundred of a transformer's step.

    Args:
        *tensors: lists of weights, gradients, first moments, second moments, an empty list, lists of step numbers.
        **options: lr, beta1, beta2, weight_decay, eps, amsgrad, maximize.
    """
    private("torch", "_fused_adam_")(*tensors, **options)


def tensor_version(tensor: Tensor) -> int:
    """A number that changes whenever a tensor is written in place.

    Since PyTorch 1.0. Public way: comparing a copy.
    """
    return private(tensor, "_version")


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Import Keras inside without importing PyTorch's compiler, which takes 2 seconds.

    Keras 3.15 imports `torch._dynamo` for its decorator `disable()`. In its place stands here, for the time, the
    decorator by which PyTorch marks its own functions, and which imports the compiler when one is first called. Since
    PyTorch 2.0. Public way: `torch.compiler.disable`, which Keras does not use, and which imports the compiler too.
    """
    name = "torch._dynamo"
    if os.environ.get("KERAS_BACKEND") != "torch" or name in sys.modules:
        yield
        return
    stand_in: Any = types.SimpleNamespace(disable=private("torch", "_compile._disable_dynamo"))
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]
