"""Published weights in other formats to presets."""

import pathlib

from zoo.errors import UserError, did_you_mean
from zoo.io import cards
from zoo.typing import Log, StrPath

KINDS = ("marian", "stable-diffusion")


def convert(kind: str, source: StrPath, folder: StrPath, *, log: Log | None = None) -> pathlib.Path:
    """Convert published weights to a preset.

    Args:
        kind: "marian", a translation model in the format of transformers, or "stable-diffusion", a Stable Diffusion 1
            or 2 in the format of diffusers.
        source: folder with config.json or model_index.json, the weights and so on.
        folder: folder of the preset, made if need be; what it held is replaced.
        log: function that is called with each line of what was done.

    Returns:
        pathlib.Path of the folder, for `from_preset`.

    Raises:
        UserError: if the kind is unknown; a file of the source is missing, damaged or of another kind of model; a
            tensor is missing, left over or of another shape; or the folder cannot be written to or holds a trained
            model.

    Example:
        >>> zoo.Translator.from_preset(zoo.convert("marian", "opus-mt-en-de", "en_de")).translate("A dog.")
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind {kind!r}: choose one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    source, folder, log = pathlib.Path(source), pathlib.Path(folder), log or (lambda line: None)
    if cards.read_card(folder).get("command"):
        raise UserError(f"{folder / cards.CARD_FILE} is the card of a trained model: choose another folder.")
    if kind == "marian":
        _convert_marian(source, folder, log)
    else:
        from zoo.converters import stable_diffusion

        stable_diffusion.convert(source, folder, log=log)
    return folder


def _convert_marian(source, folder, log):
    from zoo.converters.marian import load_marian, unsupported_settings

    model, tokenizer, generation_config = load_marian(source)
    from zoo.models.transformer import infer_config
    from zoo.tasks.translator import Translator

    Translator(model, tokenizer, generation_config=generation_config).save_to_preset(folder)
    config = infer_config(model)
    layers = f"{config['num_layers']} + {config['decoder_layers']} layers"
    sizes = f"hidden_dim {config['hidden_dim']}, intermediate_dim {config['intermediate_dim']}"
    log(
        f"{folder / cards.MODEL_FILE}: {model.count_params():,} parameters, {layers}, {sizes}, {config['num_heads']} "
        f"heads, {config['activation']}"
    )
    entries = f"{tokenizer.vocabulary_size:,} pieces"
    if tokenizer.target_vocabulary:
        entries += f" ({tokenizer.source_vocabulary_size:,} of the source)"
    if tokenizer.source_lang and tokenizer.target_lang:
        entries += f", {tokenizer.source_lang} to {tokenizer.target_lang}"
    if tokenizer.languages:
        entries += f", with codes for {', '.join(tokenizer.languages)}"
    log(f"{folder / cards.TOKENIZER_FILE}: {entries}")
    beams = f"{generation_config['num_beams']} beams, length penalty {generation_config['length_penalty']:g}"
    log(f"{folder / cards.GENERATION_CONFIG_FILE}: {beams}, at most {generation_config['max_length']} tokens")
    if names := unsupported_settings(generation_config):
        log(f"Not applied when translating: {', '.join(names)}")
