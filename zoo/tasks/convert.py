"""Published weights in other formats to presets."""

import pathlib

from zoo import backends
from zoo.errors import UserError, did_you_mean
from zoo.io import cards, files
from zoo.typing import Log, StrPath

KINDS = ("marian", "stable-diffusion", "torch-rnn")


def convert(
    kind: str,
    source: StrPath,
    folder: StrPath,
    *,
    key: str | None = None,
    prefix: str | None = None,
    log: Log | None = None,
) -> pathlib.Path:
    """Convert published weights to a preset.

    Args:
        kind: "marian", a translation model in the format of transformers; "stable-diffusion", a Stable Diffusion 1 or 2
            in the format of diffusers; "torch-rnn", the state dict of a torch.nn.LSTM, GRU or RNN, or of a model with
            one: a language model with the names of PyTorch's example becomes a whole model, of any other the recurrent
            layers alone.
        source: folder with config.json or model_index.json, the weights and so on; for "torch-rnn" a .pt or
            .safetensors file.
        folder: folder of the preset, made if need be; what it held is replaced.
        key: of the state dict in a checkpoint of a training, such as "model_state"; for "torch-rnn".
        prefix: what precedes "weight_ih_l0" in the names, such as "rnn."; found if None; for "torch-rnn".
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
    if kind != "torch-rnn" and (key, prefix) != (None, None):
        raise UserError(f"key and prefix are for torch-rnn, and the kind is {kind!r}: leave them out.")
    source, folder, log = pathlib.Path(source), pathlib.Path(folder), log or (lambda line: None)
    if cards.read_card(folder).get("command"):
        raise UserError(f"{folder / cards.CARD_FILE} is the card of a trained model: choose another folder.")
    if kind == "marian":
        _convert_marian(source, folder, log)
    elif kind == "torch-rnn":
        _convert_torch_rnn(source, folder, key, prefix, log)
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


def _convert_torch_rnn(source, folder, key, prefix, log):
    backends.import_keras()
    from zoo.converters import torch_rnn
    from zoo.io.model_files import save_model

    arrays = torch_rnn.read_state_dict(source, key=key)
    prefixes = torch_rnn.recurrent_prefixes(arrays)
    if prefix is None:
        if len(prefixes) != 1:
            found = f"several recurrent modules, under {' and '.join(map(repr, prefixes))}: choose one with prefix"
            raise UserError(f"{source} holds {found if prefixes else 'no weights of a torch.nn.LSTM, GRU or RNN'}.")
        (prefix,) = prefixes
    model, left_out = torch_rnn.build_model(arrays, prefix)
    files.prepare_folder(folder)
    save_model(model, folder / cards.MODEL_FILE)
    log(f"{folder / cards.MODEL_FILE}: {model.count_params():,} parameters, {torch_rnn.describe(model)}")
    if left_out:
        log(f"Not converted: {', '.join(left_out)}")
