"""Units of rounding: what a difference between backends is measured in, so that it is told apart from a fault.

The unit of a tensor is what rounding to a precision makes of a float64 run, the largest of

- half the spacing of numbers at the tensor's largest value, e.g. 2^-24 of it for float32;
- the change of the float64 run when the output of every layer, and the gradient at it, is rounded to the precision;
- before anything is called a difference, a tenth of the largest change in up to `DRAWS` runs with random perturbations
  of inputs and outputs in place of the rounding (Monte Carlo arithmetic, Parker 1997; `zoo.parity.probes.perturb`);
- the difference of the backend that comes closest, where there are several: what arithmetic in this precision costs
  everybody, as where a saturated softmax leaves a gradient no digits.

A sum in another order makes a few units. Up to `ALARM` pass; above `SUSPECT` the layers are looked at one by one.

Why so many draws: where rounding is magnified, it may turn the sign of a ReLU's input, and the gradient jumps. What has
the same chance p to happen in a backend as in a draw is taken for a fault if it happens in the backend and in no draw,
which has the chance p (1 - p)^DRAWS: at most 1.1 % for 32 draws, whatever p is. A tenth, since the largest of many
draws, each larger than a rounding, needs no margin of `ALARM` beside it: ten times as much is a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zoo.parity.verify import max_difference

ALARM, SUSPECT = 100.0, 25.0
DRAWS, UNITS_OF_DRAWS = 32, 10.0
BITS = {"float32": 24, "bfloat16": 8, "float16": 11}  # of the mantissa, the leading one included


def changes(rights: Sequence[np.ndarray], others: Sequence[np.ndarray], is_draw: bool = False) -> np.ndarray:
    """What rounding changes of each tensor of a float64 run.

    Args:
        rights: tensors of the run.
        others: the same with rounding, or with random perturbations.
        is_draw: whether they are perturbed, so that a tenth counts.

    Returns:
        the largest change of each; 0 where that is not finite.
    """
    found = np.array([max_difference(other, right) for other, right in zip(others, rights, strict=True)])
    return np.where(np.isfinite(found), found, 0.0) / (UNITS_OF_DRAWS if is_draw else 1.0)


def measure(
    rights: Sequence[np.ndarray],
    rounding: Sequence[float] | np.ndarray,
    others: Mapping[str, Sequence[np.ndarray]],
    bits: int,
) -> dict[str, list[tuple[float, float]]]:
    """Differences of backends from a reference, in units of its rounding.

    Args:
        rights: tensors of the reference.
        rounding: what rounding changes of each, `changes`.
        others: {backend: its tensors}.
        bits: of the mantissa of the precision.

    Returns:
        {backend: (difference in units, difference over the largest value) of each tensor}; infinite where shapes, or
        values that are not finite, do not match.
    """
    results: dict[str, list[tuple[float, float]]] = {backend: [] for backend in others}
    tiny = float(np.finfo("float32").tiny)
    for i, right in enumerate(rights):
        errors = {b: max_difference(arrays[i], right) if i < len(arrays) else np.inf for b, arrays in others.items()}
        largest = float(np.abs(right[np.isfinite(right)]).max(initial=0.0)) if right.dtype.kind == "f" else 1.0
        closest = min(errors.values()) if len(errors) > 1 else 0.0
        unit = max(largest * 2.0**-bits, float(rounding[i]), closest if np.isfinite(closest) else 0.0, tiny)
        for backend, error in errors.items():
            results[backend].append((error / unit, error / max(largest, tiny)))
    return results
