"""LoRA, low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): few trained weights beside frozen ones.

    W x + (alpha / rank) B A x          section 4.1, with W (d_out, d_in), B (d_out, rank), A (rank, d_in)

    add_lora(model, rank=8)             # then compile and fit: only A and B are trained
    save_lora(model, "adapter.safetensors")
    load_lora(model, "adapter.safetensors", scale=0.8)      # adds it to the weights of a base model
    merge_lora(model)                   # to save a model that was trained so as a .keras file

In a Keras layer the kernel is Wᵀ (d_in, d_out), and `enable_lora` of the stock layers holds `lora_kernel_a` = Aᵀ and
`lora_kernel_b` = Bᵀ: r·(d_in + d_out) weights.

An adapter file is a safetensors file with A as `{module}.lora_A.weight` (rank, d_in[, height, width]) and B as
`{module}.lora_B.weight` (d_out, rank[, 1, 1]), the layout of peft. {module} of a denoiser or text encoder is the name
that diffusers has for the layer, "unet.…" or "text_encoder.…", so that diffusers reads the file;
`zoo.converters.stable_diffusion_lora` describes these and the other layouts that are read. For any other model it is
the path of the layer's kernel without "/kernel". Metadata of the file, both in JSON:

lora_adapter_metadata   r, lora_alpha, rank_pattern and alpha_pattern (where layers differ), target_modules: peft's
                        LoraConfig, as diffusers writes it; before the names stands "unet." or "text_encoder."
zoo                     of each model, by "unet", "text_encoder" or "model": its name, the sha256 of its structure (the
                        paths and shapes of its weights) and that of the weights, which are rounded to bfloat16 first
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.compat.keras import flatten_layers, lora_base_kernel, remove_lora
from zoo.converters.stable_diffusion import is_conv1x1
from zoo.converters.stable_diffusion_lora import (
    OTHER_KINDS,
    component_of,
    kohya_name,
    module_names,
    parse_key,
)
from zoo.errors import UserError, did_you_mean, listed, require
from zoo.io import files, schemas
from zoo.io.tensor_files import TensorFile, read_float_tensor
from zoo.typing import StrPath

if TYPE_CHECKING:
    import keras

# The projections of every attention of the zoo's models, which diffusers' training scripts adapt too.
ATTENTION_PROJECTIONS = r".*attention.*_(query|key|value|output)"
_METADATA_KEY = "lora_adapter_metadata"


def add_lora(
    model: keras.Model,
    rank: int = 8,
    alpha: float | None = None,
    targets: str = ATTENTION_PROJECTIONS,
    *,
    seed: int = 0,
) -> list[str]:
    """Add A and B to layers of a model, and freeze all other weights. Compile the model afterwards.

    B is zero, so that the outputs stay as they are; A is drawn by NumPy from U(-1/√d_in, 1/√d_in), as by peft.
    `merge_lora` makes all weights trainable again.

    Args:
        model: a built model, changed in place.
        rank: r.
        alpha: the product is scaled by alpha / rank; `rank` if None, for a scale of 1.
        targets: regular expression that all of a layer's path matches, e.g. ".*_(query|value)"; a layer's path is that
            of its kernel without "/kernel". Any `Dense`, `EinsumDense` or convolution may be adapted.
        seed: of A, integer from 0 up.

    Returns:
        the paths of the layers with an adapter.

    Raises:
        UserError: if rank or alpha is no positive number, `targets` matches nothing, or a layer cannot have an adapter.

    Example:
        >>> add_lora(model, rank=8, targets=".*_(query|value)")
        >>> model.compile(...)
        >>> model.fit(...)
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UserError(f"The rank of a LoRA must be an integer from 1 up, got {rank!r}: try 8.")
    alpha = rank if alpha is None else alpha
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"The alpha of a LoRA must be a number above 0, got {alpha!r}: try {rank}, the rank.")
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UserError(f"targets is {targets!r}, which is no regular expression ({error}): try '.*_query'.") from error
    layers = _layers_with_kernel(model)
    chosen = {path: layer for path, layer in layers.items() if pattern.fullmatch(path)}
    if not chosen:
        known = f"its layers are {listed(layers, most=6)}" if layers else "it has no layer that can be adapted"
        raise UserError(
            f"targets {targets!r} matches no layer of {model.name}: {known}.{did_you_mean(targets, layers)}"
        )
    _enable(model, {path: (layer, rank, float(alpha)) for path, layer in chosen.items()})
    rng = np.random.default_rng(seed)
    for layer in chosen.values():
        shape = tuple(layer.lora_kernel_a.shape)
        bound = 1 / math.sqrt(math.prod(shape[:-1]))
        layer.lora_kernel_a.assign(rng.uniform(-bound, bound, shape).astype("float32"))
    return list(chosen)


def merge_lora(model: keras.Model) -> None:
    """Add B A to the weights and remove A and B: the outputs stay as they are, and the model is a plain one again.

    All of its weights are trainable then.

    Args:
        model: with LoRA, changed in place.

    Raises:
        UserError: if it has none.
    """
    for layer in _lora_layers(model).values():
        scale = layer.lora_alpha / layer.lora_rank
        _add_to_kernel(layer, _Adapter(_array(layer.lora_kernel_a), _array(layer.lora_kernel_b), scale))
        remove_lora(layer)
    unfreeze(model)
    _note_changes(model)


def unfreeze(model: keras.Model) -> None:
    """Make all of a model trainable that it was built with as such, as whoever loads its file expects it.

    Args:
        model: changed in place.
    """
    model.trainable = False  # on TensorFlow, setting what a model has already does not reach its layers
    model.trainable = True


def save_lora(
    model: keras.Model | Sequence[keras.Model], path: StrPath, *, use_linear_projection: bool = False
) -> None:
    """Write A and B to a file of their own, in the layout above.

    Args:
        model: with LoRA; or several, the denoiser and the text encoder of a Stable Diffusion, for one file.
        path: of the file, which ends with .safetensors.
        use_linear_projection: whether the projections around a denoiser's transformers are linear layers in diffusers
            (Stable Diffusion 2) or 1x1 convolutions; it matters where they have an adapter.

    Raises:
        UserError: if a model has no LoRA, or weights beside A and B are trainable, which the file does not hold.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"LoRA is saved as a safetensors file, got {path}: name it {path.stem}.safetensors.")
    require("safetensors", what="Saving LoRA")
    from safetensors.numpy import save_file

    tensors, config, bases = {}, {}, {}
    for one in _models(model):
        prefix = _prefix(one)
        adapted = _lora_layers(one)
        own = {id(part) for layer in adapted.values() for part in (layer.lora_kernel_a, layer.lora_kernel_b)}
        if others := [variable.path for variable in one.trainable_variables if id(variable) not in own]:
            raise UserError(
                f"Weights of {one.name} beside its LoRA are trainable ({listed(others, most=6)}), which a LoRA file "
                "does not hold: freeze them, or merge the LoRA with merge_lora and save the whole model."
            )
        names = {id(layer): name for name, layer in _modules(one).items()}
        by_name = {names[id(layer)]: layer for layer in adapted.values()}
        for name, layer in by_name.items():
            is_convolution = bool(prefix) and is_conv1x1(layer.name, component_of(one) or "", use_linear_projection)
            down, up = _to_file(layer, is_convolution)
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = down, up
        config |= _config(by_name, prefix)
        bases[prefix.rstrip(".") or "model"] = _base(one)
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(config), "zoo": json.dumps(bases)}
    with files.atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_lora(
    model: keras.Model | Sequence[keras.Model],
    path: StrPath | Sequence[StrPath],
    scale: float | Sequence[float] = 1.0,
    *,
    merge: bool = True,
    check_base: bool = True,
) -> None:
    """Load adapter files into a base model: W + scale · (alpha / rank) B A. All is checked before anything is changed.

    Args:
        model: built, with its weights; or several, the parts of a Stable Diffusion that the files are for.
        path: safetensors file of `save_lora`, diffusers, peft or Kohya's scripts, or the folder of a run that holds
            `lora.safetensors`; or several, whose adapters are added.
        scale: weight of the adapter; or one for each file.
        merge: add the products to the weights, after which the model is as plain and as fast as before. False keeps A
            and B apart and freezes all else, as `add_lora`, to train on; alpha is then scaled. That takes one file.
        check_base: whether a file that `save_lora` wrote for another model than a Stable Diffusion is refused unless
            the model has the weights that the adapter was trained on. (Its structure is always compared.)

    Raises:
        UserError: if a file is missing, damaged, of another model, or of another kind of adapter (DoRA, LoHa, LoKr …).

    Example:
        >>> load_lora([task.components["text_encoder"], task.components["denoiser"]], "style.safetensors", 0.8)
    """
    paths: list[Any] = [path] if isinstance(path, (str, pathlib.PurePath)) else list(path)  # type: ignore[arg-type]
    scales: list[Any] = [scale] * len(paths) if isinstance(scale, (int, float)) else list(scale)
    if len(scales) != len(paths):
        raise UserError(f"There are {len(paths)} LoRA files and {len(scales)} scales: give one scale for each file.")
    for one in scales:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not math.isfinite(one):
            raise UserError(f"The scale of a LoRA must be a number, got {one!r}: try 1.")
    models = _models(model)
    modules = {name: (one, layer) for one in models for name, layer in _modules(one).items()}
    read = [_read(one, models, modules, check_base) for one in paths]
    if merge:
        for adapters, factor in zip(read, scales):
            for name, adapter in adapters.items():
                _add_to_kernel(modules[name][1], _Adapter(adapter.a, adapter.b, factor * adapter.scale))
        return
    if len(read) != 1:
        raise UserError(f"One LoRA can be kept apart from the weights, got {len(read)}: load them with merge=True.")
    for one in models:
        chosen = {name: adapter for name, adapter in read[0].items() if modules[name][0] is one}
        ranks = {name: adapter.b.shape[0] for name, adapter in chosen.items()}
        _enable(
            one,
            {n: (modules[n][1], ranks[n], scales[0] * adapter.scale * ranks[n]) for n, adapter in chosen.items()},
        )
        for name, adapter in chosen.items():
            modules[name][1].lora_kernel_a.assign(adapter.a)
            modules[name][1].lora_kernel_b.assign(adapter.b)


def parse_file_and_scale(text: str) -> tuple[str, float]:
    """The file and the scale that a command names.

    Args:
        text: FILE or FILE:SCALE.

    Returns:
        (file, scale), e.g. ("style.safetensors", 0.8); a scale of 1 where none is named.
    """
    path, colon, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0


# ------------------------------------------------------------------------------------------------- layers of a model


class _Adapter(NamedTuple):
    """The matrices of a layer as Keras holds them, and what their product is multiplied by."""

    a: np.ndarray  # (…, r): the axes of the kernel but for the last
    b: np.ndarray  # (r, d_out)
    scale: float


def _layers_with_kernel(model):
    """{path: layer} of the layers that `enable_lora` knows."""
    found: dict[str, Any] = {}
    for layer in flatten_layers(model, include_self=False):
        if not (layer.built and hasattr(layer, "enable_lora") and hasattr(type(layer), "kernel")):
            continue
        path = lora_base_kernel(layer).path.removesuffix("/kernel")
        if path in found:
            raise UserError(
                f"{model.name} has two layers with the path {path}, which a LoRA file could not tell apart: adapt the "
                "models inside it one by one."
            )
        found[path] = layer
    return found


def _lora_layers(model):
    """{path: layer} of those with A and B; UserError if there are none."""
    found = {path: layer for path, layer in _layers_with_kernel(model).items() if layer.lora_enabled}
    if not found:
        raise UserError(f"{model.name} has no LoRA: add it with zoo.lora.add_lora(model).")
    return found


def _enable(model, chosen):
    """Add zeros A and B to layers, {path: (layer, rank, alpha)}, and freeze all other weights."""
    for path, (layer, _, _) in chosen.items():
        if layer.lora_enabled:
            raise UserError(f"{path} of {model.name} has LoRA already: merge it first with merge_lora(model).")
        if layer.quantization_mode or layer.kernel_constraint:
            what = "is quantized" if layer.quantization_mode else "has a kernel constraint"
            raise UserError(f"{path} of {model.name} {what}, which LoRA cannot be added to: leave it out of targets.")
    unfreeze(model)  # else Keras freezes A and B too
    adapted = {id(layer) for layer, _, _ in chosen.values()}
    for layer in flatten_layers(model, include_self=False):
        if id(layer) not in adapted and not flatten_layers(layer, include_self=False):
            layer.trainable = False
    for variable in model.variables:
        variable.trainable = False
    for layer, rank, alpha in chosen.values():
        layer.enable_lora(rank, lora_alpha=alpha, a_initializer="zeros")
    _note_changes(model)


def _note_changes(model):
    """Forget what was compiled for the layers as they were."""
    from zoo.fast_paths import recompile_functions

    recompile_functions()
    model.train_function = model.test_function = model.predict_function = None


def _add_to_kernel(layer, adapter):
    """W + scale · A B, in float32."""
    kernel = lora_base_kernel(layer)
    product = np.tensordot(adapter.a, adapter.b, axes=1)
    kernel.assign(_array(kernel) + np.float32(adapter.scale) * product)


def _array(variable):
    from keras import ops

    return np.asarray(ops.convert_to_numpy(ops.cast(variable, "float32")), "float32")


# ----------------------------------------------------------------------------------------------------------- the file


def _models(model: Any) -> list[Any]:
    return list(model) if isinstance(model, (list, tuple)) else [model]


def _prefix(model):
    """What stands before the names of a model's modules in a file."""
    return {"denoiser": "unet.", "text_encoder": "text_encoder.", None: ""}[component_of(model)]


def _modules(model: Any) -> dict[str, Any]:
    """{name in a file: layer} of the layers that can be adapted."""
    component = component_of(model)
    return module_names(model, component) if component else _layers_with_kernel(model)


def _to_file(layer, is_conv1x1):
    """(A, B) of a layer as a file holds them."""
    a, up = _array(layer.lora_kernel_a), _array(layer.lora_kernel_b).T
    if is_conv1x1:
        a = a[None, None]
    down = np.moveaxis(a, (-1, -2), (0, 1)) if a.ndim == 4 else np.moveaxis(a, -1, 0)
    return np.ascontiguousarray(down), np.ascontiguousarray(up[:, :, None, None] if a.ndim == 4 else up)


def _config(layers, prefix):
    """peft's LoraConfig of {name: layer}."""
    # peft compares them with the end of a path; transformers 5 has no "text_model." in it.
    names = {name.removeprefix(prefix).removeprefix("text_model."): layer for name, layer in layers.items()}
    (rank, alpha), *_ = ((layer.lora_rank, layer.lora_alpha) for layer in names.values())
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: layer.lora_rank for name, layer in names.items() if layer.lora_rank != rank},
        "alpha_pattern": {name: layer.lora_alpha for name, layer in names.items() if layer.lora_alpha != alpha},
        "target_modules": list(names),
    }
    return {prefix + key: value for key, value in config.items()}


def _base(model):
    """Name, structure and weights of a model without its LoRA, as sha256."""
    import ml_dtypes

    structure, weights = hashlib.sha256(), hashlib.sha256()
    for variable in model.weights:
        if variable.name.startswith("lora_"):
            continue
        structure.update(f"{variable.path} {tuple(variable.shape)}\n".encode())
        weights.update(_array(variable).astype(ml_dtypes.bfloat16).tobytes())
    return {"name": model.name, "structure": structure.hexdigest(), "weights": weights.hexdigest()}


def _read(path, models, modules, check_base):
    """{name of a module: `_Adapter`} of a file, checked against the models."""
    if pathlib.Path(path).is_dir():  # of a run
        path = pathlib.Path(path) / "lora.safetensors"
    file = TensorFile(path)
    for pattern, kind in OTHER_KINDS.items():
        if key := next((key for key in file.shapes if re.search(pattern, key)), None):
            raise UserError(f"{path} holds {kind} ({key}), where LoRA was expected: give a file of plain LoRA.")
    own = len(models) == 1 and not component_of(models[0])
    names = {name: name for name in modules} | ({} if own else {kohya_name(name): name for name in modules})
    found: dict[str, dict[str, str]] = {}
    for key in file.shapes:
        if (parsed := parse_key(key)) is None:
            raise UserError(f"{path} holds {key}, which is no part of a LoRA: give a file of plain LoRA.")
        module, kind = parsed
        if module not in names:
            raise UserError(
                f"{path} is a LoRA of another model: it adapts {module}, which "
                f"{' and '.join(model.name for model in models)} {'do' if len(models) > 1 else 'does'} not have."
            )
        found.setdefault(names[module], {})[kind] = key
    if not found:
        raise UserError(f"{path} holds no tensors: save the LoRA again.")
    alphas = _alphas(file, [_prefix(model) for model in models])
    if own and "zoo" in file.metadata:
        _check_base(file, models[0], check_base)
    return {name: _read_adapter(file, name, keys, modules[name][1], alphas) for name, keys in sorted(found.items())}


def _read_adapter(file, name, keys, layer, alphas):
    """The `_Adapter` of one layer."""
    for kind, names in (("down", "A (lora_A or lora_down)"), ("up", "B (lora_B or lora_up)")):
        if kind not in keys:
            raise UserError(f"{file.path} is damaged: it has no {names} of {name}, fetch or save it again.")
    down, up = file.shapes[keys["down"]], file.shapes[keys["up"]]
    *inputs, outputs = lora_base_kernel(layer).shape
    is_convolution = len(inputs) == 3
    expected = (inputs[-1], *inputs[:-1]) if is_convolution else tuple(inputs)  # (c_in, height, width)
    rank = down[0] if down else 0
    fits = rank >= 1 and down[1:] in (expected, (*expected, 1, 1)) and up in ((outputs, rank), (outputs, rank, 1, 1))
    if not fits:
        raise UserError(
            f"{file.path} is a LoRA of another model: its A and B of {name} have the shapes {down} and {up}, where "
            f"(r, {', '.join(map(str, expected))}) and ({outputs}, r) were expected."
        )
    a, b = (_read_finite(file, keys[kind]) for kind in ("down", "up"))
    a = a.reshape(rank, *expected)
    a = np.moveaxis(a, (0, 1), (-1, -2)) if is_convolution else np.moveaxis(a, 0, -1)
    scale = alphas(name, rank) / rank
    if "alpha" in keys:
        if math.prod(file.shapes[keys["alpha"]]) != 1:
            raise UserError(f"{file.path} is damaged: {keys['alpha']} is not one number, fetch or save it again.")
        alpha = file.get_tensor(keys["alpha"])
        scale = (alpha if alpha.dtype.kind in "iu" else _read_finite(file, keys["alpha"])).item() / rank
    return _Adapter(np.ascontiguousarray(a), np.ascontiguousarray(b.reshape(outputs, rank).T), scale)


def _read_finite(file, key):
    array = read_float_tensor(file, key)
    if not np.isfinite(array).all():
        raise UserError(f"{file.path} is damaged: {key} holds values that are no numbers, fetch or save it again.")
    return array


def _alphas(file: TensorFile, prefixes: Sequence[str]) -> Callable[[str, int], float]:
    """A function of (name of a module, rank) that gives the alpha which the metadata says; else the rank."""
    if _METADATA_KEY not in file.metadata:
        return lambda name, rank: rank
    raw = schemas.parse_object(file.metadata[_METADATA_KEY], f"{_METADATA_KEY} of {file.path}")
    configs = {}
    for prefix in prefixes:
        values = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
        if values:
            configs[prefix] = schemas.check(values, schemas.LoraConfig, f"{_METADATA_KEY} of {file.path}")

    def alpha(name: str, rank: int) -> float:
        for prefix, config in configs.items():
            if name.startswith(prefix):
                alphas = (
                    value
                    for pattern, value in config.alpha_pattern.items()  # names, which peft takes as the end of a path
                    if f".{name}".endswith(f".{pattern.removeprefix('^')}")
                )
                found = next(alphas, config.lora_alpha)
                return found * math.sqrt(rank) if config.use_rslora else found
        return rank

    return alpha


def _check_base(file, model, check_weights):
    """Raise UserError unless a file that `save_lora` wrote was trained on this model."""
    raw: Mapping[str, Any] = schemas.parse_object(file.metadata["zoo"], f"zoo of {file.path}").get("model", {})
    base, here = schemas.check(raw, schemas.LoraBase, f"zoo of {file.path}"), _base(model)
    if base.structure != here["structure"]:
        raise UserError(
            f"{file.path} is a LoRA of another model: it was trained on {base.name}, whose structure differs from that "
            f"of {model.name}."
        )
    if check_weights and base.weights != here["weights"]:
        raise UserError(
            f"{file.path} is a LoRA of another model: it was trained on {base.name} with the weights "
            f"{base.weights[:12]}… (sha256), and {model.name} here has {here['weights'][:12]}…: load the model it was "
            "trained on."
        )
