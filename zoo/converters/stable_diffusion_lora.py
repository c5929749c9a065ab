"""The names that LoRA files of Stable Diffusion have for the layers of the zoo's denoiser and text encoder.

Layouts, with {module} the name of a layer in diffusers or transformers, such as down_blocks.0.attentions.0.
transformer_blocks.0.attn1.to_q; every tensor "down" (A) is (rank, inputs[, height, width]), every "up" (B) is
(outputs, rank[, 1, 1]):

PEFT        unet.{module}.lora_A.weight, .lora_B.weight; text_encoder.text_model.{module}.… what diffusers writes, and
            the zoo. alpha and rank are in the file's metadata, "lora_adapter_metadata"; without, alpha is the rank
diffusers   unet.{module}.lora.down.weight, .lora.up.weight; text_encoder.….lora_linear_layer.down.weight, .up.weight;
            older: unet.….attn1.processor.to_q_lora.down.weight, text_encoder.….self_attn.to_q_lora.down.weight, and
            files of a U-Net alone without "unet."
Kohya       lora_unet_{module}.lora_down.weight, .lora_up.weight, .alpha; lora_te_text_model_{module}.…, with "_" for
            each "." of a module; so LyCORIS, beside transformers 5 without "text_model_"

Source: diffusers 0.42, loaders/lora_conversion_utils.py, utils/state_dict_utils.py and loaders/peft.py; peft 0.21;
lycoris-lora 4.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zoo.converters.stable_diffusion import layer_key

if TYPE_CHECKING:
    import keras

# Kinds of adapters that are no LoRA: a regular expression found in their tensors' names -> what they are called. Those
# of LyCORIS by the names that lycoris-lora 4.1 writes.
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a Tucker decomposition",
    "oft_": "OFT",
    r"\.[ab][12]\.weight$": "GLoRA",
    r"\.on_input$": "(IA)3",
    r"\.diff(_b)?$": "differences of whole weights",
    r"\.[wb]_norm$": "normalization layers beside LoRA",
    "lora_te2_": "LoRA of Stable Diffusion XL",
    r"text_encoder_2\.": "LoRA of Stable Diffusion XL",
}
# Layers that tell the two models from others.
_LAYERS_OF = {
    "denoiser": {"time_inner", "time_outer", "conv_in", "conv_out"},
    "text_encoder": {"token_embedding", "position_embedding", "final_norm"},
}
_PREFIXES = {"denoiser": "unet.", "text_encoder": "text_encoder.text_model."}
_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # old name -> transformers'
_KEY = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|(?:[._]lora|\.lora_linear_layer)\.(?P<diffusers>down|up)\.weight"
    r"|\.lora_(?P<kohya>down|up)\.weight"
    r"|(?:[._]lora|\.lora_linear_layer)?\.(?P<alpha>alpha))"
)


def component_of(model: keras.Model) -> str | None:
    """Which part of a Stable Diffusion a model is, by its layers.

    Args:
        model: any built model.

    Returns:
        "denoiser" or "text_encoder", or None for another model.
    """
    names = {layer.name for layer in model.layers}
    return next((component for component, needed in _LAYERS_OF.items() if needed <= names), None)


def module_names(model: keras.Model, component: str) -> dict[str, keras.layers.Layer]:
    """The layers with kernels by their names in diffusers.

    Args:
        model: a denoiser or text encoder of the zoo.
        component: of `component_of`.

    Returns:
        {name with "unet." or "text_encoder.text_model." before it: layer}.

    Raises:
        UserError: if the model has a layer that diffusers has no name for.
    """
    layers = (layer for layer in model.layers if hasattr(type(layer), "kernel"))
    return {_PREFIXES[component] + layer_key(model, layer.name, component): layer for layer in layers}


def parse_key(key: str) -> tuple[str, str] | None:
    """The module and the kind of a tensor in one of the layouts above.

    Args:
        key: name of the tensor.

    Returns:
        (module, "down", "up" or "alpha"): the module by a name of `module_names` or, of Kohya's layout, one of
        `kohya_name`; None if the tensor is of none of the layouts.
    """
    if not (match := _KEY.fullmatch(key)):
        return None
    kind = match["diffusers"] or match["kohya"] or match["alpha"] or {"A": "down", "B": "up"}[match["peft"]]
    module = match["module"]
    if module.startswith("lora_te1_"):  # as scripts for Stable Diffusion XL call the first text encoder
        module = module.replace("lora_te1_", "lora_te_", 1)
    if module.startswith("lora_te_encoder_"):  # as modules are called in transformers 5
        module = module.replace("lora_te_", "lora_te_text_model_", 1)
    if module.startswith("lora_"):
        return module, kind
    module = module.replace(".processor.", ".")
    if module.startswith("text_encoder."):
        head, _, last = module.rpartition(".")
        module = f"{head}.{_ATTENTION.get(last, last)}"
        prefix = _PREFIXES["text_encoder"]
        return (module if module.startswith(prefix) else module.replace("text_encoder.", prefix, 1)), kind
    if module.endswith(".to_out"):
        module += ".0"
    if module.startswith(("down_blocks.", "mid_block.", "up_blocks.")):
        module = _PREFIXES["denoiser"] + module
    return module, kind


def kohya_name(module: str) -> str:
    """The name of a module in Kohya's layout.

    Args:
        module: a name of `module_names`.

    Returns:
        e.g. "lora_unet_mid_block_attentions_0_proj_in".
    """
    component, _, rest = module.partition(".")
    return f"lora_{'unet' if component == 'unet' else 'te'}_{rest.replace('.', '_')}"
