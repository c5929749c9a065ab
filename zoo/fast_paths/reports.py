"""What `use_fast_paths` has taken of a model, and why the rest is as Keras made it."""

import collections
import dataclasses

import keras

from zoo.compat.keras import flatten_layers, replaced_update_step
from zoo.fast_paths import optimizers
from zoo.fast_paths.paths import FastCall, fast_paths

_NOT_USED = "eligible: call zoo.use_fast_paths(model)"


@dataclasses.dataclass(frozen=True)
class LayerPath:
    """How one layer, or the optimizer, is computed.

    Attributes:
        path: of the layer in the model, e.g. "encoder/attention/query"; the optimizer's name.
        kind: name of its class.
        means: what computes it, e.g. "linear"; "" if the stock way does.
        reason: why the stock way does; "" if not.
    """

    path: str
    kind: str
    means: str
    reason: str

    @property
    def is_fast(self) -> bool:
        """Whether a fast path computes it."""
        return bool(self.means)


@dataclasses.dataclass(frozen=True)
class FastPathReport:
    """Result of `report`; `print(report)` shows it.

    Attributes:
        model: name of the model.
        backend: of Keras.
        layers: tuple of a `LayerPath` for each layer that computes, nested ones included.
        optimizer: its `LayerPath`; None if the model is not compiled.
    """

    model: str
    backend: str
    layers: tuple[LayerPath, ...]
    optimizer: LayerPath | None

    def __str__(self) -> str:
        rows = [("layers", "class", "fast path, or why not")]
        counts = collections.Counter((one.kind, one.means or f"- {one.reason}") for one in self.layers)
        ordered = sorted(counts.items(), key=lambda row: (row[0][1].startswith("- "), -row[1], row[0]))
        rows += [(str(count), *row) for row, count in ordered]
        if self.optimizer:
            rows.append(("", self.optimizer.kind, self.optimizer.means or f"- {self.optimizer.reason}"))
        width = max(len(row[1]) for row in rows)
        taken = sum(one.is_fast for one in self.layers)
        title = f"{self.model} on {self.backend}: fast paths for {taken} of {len(self.layers)} layers"
        return "\n".join([title, *(f"{count:>6}  {kind:{width}}  {means}" for count, kind, means in rows)])


def report(model: keras.Model) -> FastPathReport:
    """Which layers of a model have a fast path, and why the others have none.

    Args:
        model: built `keras.Model`, before or after `use_fast_paths`.

    Returns:
        a `FastPathReport`.
    """
    rows = []
    for layer in flatten_layers(model, include_self=False):
        if type(layer) is not keras.layers.InputLayer and not isinstance(layer, keras.Model):
            rows.append(LayerPath(layer.path or layer.name, type(layer).__name__, *_means_and_reason(layer)))
    optimizer = optimizers.innermost(getattr(model, "optimizer", None))
    row = None
    if optimizer is not None:
        reason = optimizers.why_not(optimizer)
        is_fused = not reason and replaced_update_step(optimizer) is not None
        means = optimizers.MEANS[keras.backend.backend()] if is_fused else ""
        row = LayerPath(optimizer.name, type(optimizer).__name__, means, "" if is_fused else reason or _NOT_USED)
    return FastPathReport(model.name, keras.backend.backend(), tuple(rows), row)


def _means_and_reason(layer):
    """(what computes a layer, ""), or ("", why its stock way does)."""
    paths = fast_paths()
    path = paths.get(type(layer))
    if path is None:
        stock = next((kind for kind in paths if isinstance(layer, kind)), None)
        if stock is not None:
            return "", f"a class derived from {stock.__name__}"
        return "", "none for this class on this backend"
    if reason := path.why_not(layer):
        return "", reason
    if path.method not in vars(layer):
        return "", _NOT_USED
    if not isinstance(vars(layer)[path.method], FastCall):
        return "", f"its {path.method} has been replaced"
    return path.means, ""
