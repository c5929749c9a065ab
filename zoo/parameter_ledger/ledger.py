"""Where every parameter of a model comes from: one row a layer, with the arithmetic, for any Keras model.

    book = zoo.ledger(model)
    print(book)                 a table for the terminal
    book.rows, book.parameters, book.macs, book.training_memory()
    book.to_dict(), book.to_markdown(), book.to_html()

Sizes are for one example unless a batch is named. A multiply-accumulate (MAC) is one multiplication and one addition
inside a matrix product or a convolution; elementwise work, normalisation and look-ups are not counted, as is usual.
"""

import dataclasses
import math
import re

import keras
from keras import tree

from zoo.errors import UserError
from zoo.parameter_ledger import formulas as arithmetic
from zoo.parameter_ledger import trace as call_trace
from zoo.parameter_ledger.formulas import unique

# The batch that a model is followed with: a prime, so that it is told from other sizes.
BATCH = 11
# What gives another view of the same memory instead of new values.
VIEWS = {"InputLayer", "Flatten", "Reshape", "Identity", "Squeeze", "ExpandDims", "GetItem"}
# What is said of weights that a layer holds and that no call was seen to use.
UNSEEN = "no call was seen to use these"
# What keeps the shape of its input, so that a picture flattened before it is still that picture.
ELEMENTWISE = {"Dropout", "Activation", "ReLU", "LeakyReLU", "ELU", "Identity", "GaussianNoise", "GaussianDropout"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer or operation where it is called.

    Attributes:
        path: its name after those of the models it is nested in, e.g. "classifier/conv1".
        kind: name of its class, e.g. "Conv2D".
        depth: how many models it is nested in.
        group: True for a nested model: a heading for the rows below it, which hold the parameters.
        inputs, outputs: shapes without the batch; None for sizes that stay open.
        sources: indices of the rows whose outputs it takes.
        formulas: `arithmetic.Formula`s of its parameters.
        parameters: their sum, which is the layer's `count_params()`.
        counted: those parameters that no earlier row has; `trainable` of them are learned.
        note: why `counted` is less than `parameters`.
        mac_formulas, macs: multiply-accumulates for one example; `macs` is None where unknown.
        activation_bytes: what is kept for the backward pass, for one example; None where unknown.
        layer: the layer or operation itself.
    """

    path: str
    kind: str
    depth: int = 0
    group: bool = False
    inputs: tuple = ()
    outputs: tuple = ()
    sources: tuple = ()
    formulas: tuple = ()
    parameters: int = 0
    counted: int = 0
    trainable: int = 0
    note: str = ""
    mac_formulas: tuple = ()
    macs: int | None = 0
    activation_bytes: int | None = 0
    layer: object = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def name(self):
        return self.path.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The rows of a model and their totals; see the head of this module.

    Attributes:
        name: the model's name.
        rows: tuple of `Row`s in the order of calls.
        parameters, trainable: of the whole model, each tensor once.
        weight_bytes, trainable_bytes: the same in bytes.
        input_bytes: one example; None where a size is open.
        batch_size: the batch that `training_memory` is for unless told otherwise.
    """

    name: str
    rows: tuple
    parameters: int
    trainable: int
    weight_bytes: int
    trainable_bytes: int
    input_bytes: int | None
    batch_size: int

    @property
    def layers(self):
        """The rows that are not headings."""
        return [row for row in self.rows if not row.group]

    @property
    def macs(self):
        """Multiply-accumulates for one example, over the rows where they are known."""
        return sum(row.macs or 0 for row in self.layers)

    @property
    def unknown(self):
        """Rows whose MACs or activations are unknown: a size is open, or the layer is of an unknown kind."""
        return [row for row in self.layers if None in (row.macs, row.activation_bytes)]

    def share(self, row):
        """A row's part of all parameters, 0 to 1."""
        return row.counted / self.parameters if self.parameters else 0.0

    def training_memory(self, batch_size=None, slots=2):
        """Bytes that training takes at a batch size: a dict of parts and their "total".

        Args:
            batch_size: the ledger's own if None.
            slots: numbers that the optimizer keeps for each trainable weight: Adam 2, momentum 1, plain SGD 0.

        Returns:
            "weights", "gradients" (one for each trainable weight), "optimizer", "activations" (the batch, and what
            the layers keep from the forward for the backward pass), "backward" (the largest pair of gradients that
            lives at once: of a layer's outputs and of its inputs), "total".
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        pairs = [_bytes(row.outputs) + _bytes(row.inputs) for row in self.layers if row.kind not in VIEWS]
        parts = {
            "weights": self.weight_bytes,
            "gradients": self.trainable_bytes,
            "optimizer": slots * self.trainable_bytes,
            "activations": batch_size
            * ((self.input_bytes or 0) + sum(row.activation_bytes or 0 for row in self.layers)),
            "backward": batch_size * max(pairs, default=0),
        }
        return parts | {"total": sum(parts.values())}

    def to_dict(self):
        """Everything as plain values, for JSON."""
        totals = ("name", "parameters", "trainable", "weight_bytes", "macs", "batch_size")
        return {
            **{key: getattr(self, key) for key in totals},
            "training_memory": self.training_memory(),
            "unknown": [row.path for row in self.unknown],
            "rows": [self._row_dict(row) for row in self.rows],
        }

    def _row_dict(self, row):
        keys = ("path", "kind", "depth", "group", "inputs", "outputs", "parameters", "counted", "trainable", "note")
        return {
            **{key: getattr(row, key) for key in keys},
            "share": self.share(row),
            "formulas": [formula.to_dict() for formula in row.formulas],
            "macs": row.macs,
            "mac_formulas": [formula.to_dict() for formula in row.mac_formulas],
            "activation_bytes": row.activation_bytes,
        }

    def to_text(self, width=None):
        """A table for a terminal of `width` columns; the terminal's own width if None."""
        from zoo.parameter_ledger import text as ledger_text

        return ledger_text.table(self, width)

    def to_markdown(self):
        """A Markdown table."""
        from zoo.parameter_ledger import text as ledger_text

        return ledger_text.markdown(self)

    def to_html(self):
        """One self-contained page."""
        from zoo.parameter_ledger import page as ledger_page

        return ledger_page.page(self)

    __str__ = to_text


def ledger(model, batch_size=64, input_shape=None):
    """Open a model's books.

    Args:
        model: a built `keras.Model`: functional, sequential or subclassed, with nested and shared layers.
        batch_size: the batch that the memory of training is stated for.
        input_shape: shape of one example, e.g. (48, 48, 3), for a model that leaves sizes open; a list of shapes, one
            for each of several inputs, or one shape for all of them. The model's own if None.

    Returns:
        `Ledger`.

    Raises:
        UserError: if this is not a built model, or it does not take such examples.

    Example:
        >>> zoo.ledger(zoo.create_model("cnn")).rows[1].formulas[0].numbers
        '(3·3·3 + 1)·32'
    """
    if not isinstance(model, keras.Model):
        raise UserError(f"A ledger is made of a keras.Model, got {type(model).__name__}: pass the model itself.")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}.")
    if not model.built:
        raise UserError(f"The model {model.name!r} has no weights yet: call model.build(input_shape) first.")
    inputs = _symbolic_inputs(model, input_shape)
    try:
        calls = call_trace.trace(model, inputs)
    except Exception as error:  # frameworks raise many kinds where shapes do not fit
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The model {model.name!r} does not take inputs {input_shape or ''}: {reason}") from error
    leaves = tree.flatten(inputs)
    books = _Books(batch=leaves[0].shape[0])
    rows = [books.row(call) for call in calls]
    rows += books.not_called(model)
    weights, trainable = unique(model.weights), unique(model.trainable_weights)
    return Ledger(
        name=model.name,
        rows=tuple(rows),
        parameters=sum(math.prod(weight.shape) for weight in weights),
        trainable=sum(math.prod(weight.shape) for weight in trainable),
        weight_bytes=sum(math.prod(weight.shape) * width(weight.dtype) for weight in weights),
        trainable_bytes=sum(math.prod(weight.shape) * width(weight.dtype) for weight in trainable),
        input_bytes=books.bytes(leaves),
        batch_size=batch_size,
    )


class _Books:
    """Turns calls into rows; remembers which row made a tensor and which one counted a weight."""

    def __init__(self, batch):
        self.batch = batch
        self.rows = 0
        self.maker = {}  # id of a tensor -> index of the row that made it
        self.picture = {}  # id of a tensor -> (channels, height, width) that it was flattened from
        self.owner = {}  # id of a weight -> path of the row that counted it

    def row(self, call):
        layer, kind = call.operation, type(call.operation).__name__
        inputs, outputs = (tuple(self.sample(x.shape) for x in tensors) for tensors in (call.inputs, call.outputs))
        index, self.rows = self.rows, self.rows + 1
        common = {"path": call.path, "kind": kind, "depth": call.depth, "inputs": inputs, "outputs": outputs}
        common |= {"layer": layer}
        parameters = layer.count_params() if getattr(layer, "weights", None) else 0
        if call.group:
            return Row(**common, group=True, parameters=parameters, note=self.note_of_group(layer))
        picture = next((self.picture[id(x)] for x in call.inputs if id(x) in self.picture), None)
        formulas = arithmetic.parameter_formulas(layer, picture) if parameters else ()
        sources = tuple(dict.fromkeys(self.maker[id(x)] for x in call.inputs if id(x) in self.maker))
        macs = arithmetic.mac_formulas(layer, inputs, outputs, call.keywords)
        values = [None] if macs is None else [formula.value for formula in macs]
        counted, trainable, note = self.count(layer, call.path) if parameters else (0, 0, "")
        for x in call.outputs:
            self.maker[id(x)] = index
            if kind == "Flatten" and len(inputs[0]) in (2, 3):
                self.picture[id(x)] = (inputs[0][-1], *inputs[0][:-1])  # channels first, as texts write it
            elif kind in ELEMENTWISE and picture:
                self.picture[id(x)] = picture
        return Row(
            **common,
            sources=sources,
            formulas=formulas,
            parameters=parameters,
            counted=counted,
            trainable=trainable,
            note=note,
            mac_formulas=macs or (),
            macs=None if None in values else sum(values),
            activation_bytes=self.kept_bytes(call, kind, inputs),
        )

    def count(self, layer, path):
        """(parameters that no earlier row has, how many of those are trainable, a note if that is not all)."""
        weights = unique(layer.weights)
        old = [weight for weight in weights if id(weight) in self.owner]
        new = {id(weight): math.prod(weight.shape) for weight in weights if id(weight) not in self.owner}
        self.owner |= dict.fromkeys(new, path)
        trainable = sum(new.get(id(weight), 0) for weight in unique(layer.trainable_weights))
        note = ""
        if old and not new:
            note = f"shared: counted at {self.owner[id(old[0])]}"
        elif old:
            note = "tied: " + ", ".join(f"{weight.name} counted at {self.owner[id(weight)]}" for weight in old)
        return sum(new.values()), trainable, note

    def note_of_group(self, model):
        """A nested model whose weights were all met before is called a second time."""
        if model.weights and all(id(weight) in self.owner for weight in model.weights):
            return "shared: its parameters are counted above"
        return ""

    def not_called(self, model):
        """A row for each layer that keeps weights which no call reached: tensors of its own, and unused layers."""
        for layer in [*model._flatten_layers()][::-1]:  # the innermost first
            weights = [weight for weight in unique(layer.weights) if id(weight) not in self.owner]
            if not weights:
                continue
            whole = len(weights) == len(unique(layer.weights))
            formulas = arithmetic.parameter_formulas(layer) if whole else map(arithmetic.shape_formula, weights)
            size, trainable, _ = self.count(_Held(weights), layer.path or layer.name)
            yield Row(
                path=layer.path or layer.name,
                kind=type(layer).__name__,
                formulas=tuple(formulas),
                parameters=size,
                counted=size,
                trainable=trainable,
                note="kept by the layer itself"
                if layer._trainable_variables or layer._non_trainable_variables
                else UNSEEN,
                macs=None if any(len(weight.shape) > 1 for weight in weights) else 0,
                layer=layer,
            )

    def sample(self, shape):
        """A shape without the batch; a first axis that holds the batch and more keeps the rest of it."""
        first, rest = (shape[0], tuple(shape[1:])) if len(shape) else (None, ())
        if first is None or first == self.batch:
            return rest
        return (first // self.batch, *rest) if first % self.batch == 0 else tuple(shape)

    def bytes(self, tensors):
        sizes = [(self.sample(x.shape), width(x.dtype)) for x in tensors]
        return None if any(None in shape for shape, _ in sizes) else sum(math.prod(s) * w for s, w in sizes)

    def kept_bytes(self, call, kind, inputs):
        if kind in VIEWS or not call.outputs:
            return 0
        outputs, inside = self.bytes(call.outputs), arithmetic.values_kept_inside(call.operation, inputs)
        return None if None in (outputs, inside) else outputs + inside * width(call.outputs[0].dtype)


@dataclasses.dataclass
class _Held:
    """Weights on their own, counted as a layer's are."""

    weights: list

    @property
    def trainable_weights(self):
        return [weight for weight in self.weights if weight.trainable]


def _symbolic_inputs(model, input_shape):
    """The nest of `KerasTensor`s that the model takes, of the wanted shapes."""
    graph = call_trace.functional_graph(model)
    if graph is not None:
        own = [(tuple(x.shape), x.dtype) for x in graph.inputs]
    else:
        built = (getattr(model, "_build_shapes_dict", None) or {}).values()
        own = [(tuple(shape), model.input_dtype) for shape in built if shape and not isinstance(shape, dict)]
        if not own:
            if input_shape is None:
                raise UserError(f"What {model.name!r} takes is not known: pass input_shape, e.g. (48, 48, 3).")
            own = [(None, *shape) for shape in _list_of_shapes(input_shape)]
            own = [(shape, model.input_dtype) for shape in own]
    wanted = [shape[1:] for shape, _ in own] if input_shape is None else _list_of_shapes(input_shape)
    if len(wanted) == 1 < len(own):
        wanted *= len(own)  # one shape for every input
    fits = len(wanted) == len(own) and all(_fits(shape, own_shape[1:]) for shape, (own_shape, _) in zip(wanted, own))
    if not fits:
        takes = ", ".join(shape_text(shape[1:]) for shape, _ in own)
        raise UserError(f"input_shape is {input_shape}, but one example for {model.name!r} has shape {takes}.")
    batch = next((shape[0] for shape, _ in own if shape[0]), BATCH)
    tensors = [keras.KerasTensor((batch, *shape), dtype=dtype) for shape, (_, dtype) in zip(wanted, own)]
    if graph is not None:
        return tree.pack_sequence_as(graph._inputs_struct, tensors)
    return tensors[0] if len(tensors) == 1 else tensors


def _fits(shape, own):
    """Whether a shape has the rank of the model's own and its sizes wherever those are fixed."""
    return len(shape) == len(own) and all(size in (None, wanted) for wanted, size in zip(shape, own))


def _list_of_shapes(input_shape):
    several = bool(input_shape) and isinstance(input_shape[0], (tuple, list))
    return [tuple(shape) for shape in input_shape] if several else [tuple(input_shape)]


def _bytes(shapes):
    """Bytes of float32 tensors; open sizes count as nothing."""
    return 4 * sum(math.prod(shape) for shape in shapes if None not in shape)


def width(dtype):
    """Bytes of one number of a dtype, e.g. 4 for "float32"."""
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return max(1, int(bits.group()) // 8) if bits else 1


def shape_text(shape):
    """(48, 48, 3) as "48·48·3"; open sizes are "?"."""
    return "·".join("?" if size is None else str(size) for size in shape) or "one number"
