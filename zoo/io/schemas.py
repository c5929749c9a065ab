"""Typed schemas of the JSON that comes from outside: what each file may say, within which bounds.

A file is parsed once, before anything is built of it. Its size and depth are limited, counts and widths have a sane
most, and what it says is compared with the tensors beside it before memory is taken for them. Unknown entries are
ignored, and null means the default, as in transformers and diffusers.
"""

from __future__ import annotations

import json
import pathlib
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from zoo.errors import UserError, error_summary
from zoo.typing import StrPath

MOST_BYTES = 2**26  # of a JSON file; tokenizers of large vocabularies have 2**24
MOST_DEPTH = 64

Flag = bool
Count = Annotated[int, Meta(ge=1, le=512)]  # layers, heads, groups, channels of images
Width = Annotated[int, Meta(ge=1, le=2**16)]
Length = Annotated[int, Meta(ge=1, le=2**17)]  # positions, tokens of a text
VocabularySize = Annotated[int, Meta(ge=1, le=2**22)]
TokenId = Annotated[int, Meta(ge=0, lt=2**22)]
Epsilon = Annotated[float, Meta(gt=0, le=1)]
Beta = Annotated[float, Meta(gt=0, lt=1)]
Factor = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(max_length=1000)]
_PATTERNS = {
    r"^[^/\\]+$": "the name of a file in its folder",
    r"^(?!\.\.?/)[^/\\]+(/(?!\.\.?(/|$))[^/\\]+)*$": "the name of a file in its folder or in one below",
    "^[0-9a-f]{64}$": "a sha256",
    "^(https?|file)://": "a URL",
}
_FILE_NAME, _FILE_PATH, _SHA256, _URL = _PATTERNS
FileName = Annotated[str, Meta(pattern=_FILE_NAME, max_length=255)]
FilePath = Annotated[str, Meta(pattern=_FILE_PATH, max_length=1000)]  # below a folder
Sha256 = Annotated[str, Meta(pattern=_SHA256)]
Url = Annotated[str, Meta(pattern=_URL)]
Widths = Annotated[list[Width], Meta(min_length=1, max_length=16)]
Counts = Count | Annotated[list[Count], Meta(min_length=1, max_length=16)]

# A mapping from the name of each tensor to its shard, and one from each piece to its id.
WEIGHT_MAP = dict[str, FileName]
VOCABULARY = dict[str, TokenId]


class Supported(Struct):
    """A schema of which some entries have to have one of a few values, that of `ONLY`.

    The first of the values is what an absent entry means.
    """

    ONLY: ClassVar[Mapping[str, tuple]] = {}


# --------------------------------------------------------------------------------------- the formats of transformers


class MarianConfig(Struct):
    """config.json of a Marian model: the defaults of transformers' MarianConfig."""

    model_type: Text = ""
    vocab_size: VocabularySize = 58101
    decoder_vocab_size: Annotated[int, Meta(ge=0, le=2**22)] = 0  # 0: vocab_size
    max_position_embeddings: Length = 1024
    d_model: Width = 1024
    encoder_layers: Count = 12
    decoder_layers: Count = 12
    encoder_ffn_dim: Width = 4096
    decoder_ffn_dim: Width = 4096
    encoder_attention_heads: Count = 16
    decoder_attention_heads: Count = 16
    activation_function: Text = "gelu"
    scale_embedding: Flag = False
    share_encoder_decoder_embeddings: Flag = True
    tie_word_embeddings: Flag = True
    pad_token_id: TokenId = 58100


class MarianGenerationConfig(Struct):
    """How Marian generates, from generation_config.json or else config.json.

    Defaults are those of MarianConfig and GenerationConfig; for lengths, of MarianTokenizer.
    """

    decoder_start_token_id: TokenId = 58100
    eos_token_id: TokenId = 0
    forced_eos_token_id: TokenId | None = 0  # generated where max_length is reached; None for none
    suppress_tokens: list[TokenId] = []  # ids never generated; joined by the bad_words_ids of one token
    bad_words_ids: list[Annotated[list[TokenId], Meta(min_length=1)]] = []  # of several tokens: never generated
    renormalize_logits: Flag = False
    num_beams: Count = 1
    length_penalty: Annotated[float, Meta(ge=-100, le=100)] = 1.0
    early_stopping: Flag | Literal["never"] = False
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=2**17)] = 0
    repetition_penalty: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    min_length: Annotated[int, Meta(ge=0, le=2**17)] = 0
    max_length: Length = 512


class AddedToken(Struct):
    """A token with its flags, as tokenizer_config.json writes it."""

    content: Text
    lstrip: Flag = False
    rstrip: Flag = False
    single_word: Flag = False
    normalized: Flag = False


Token = Text | AddedToken


class TokenizerConfig(Struct):
    """tokenizer_config.json and special_tokens_map.json."""

    bos_token: Token | None = None
    eos_token: Token | None = None
    unk_token: Token | None = None
    pad_token: Token | None = None
    added_tokens_decoder: dict[str, AddedToken] = {}
    model_max_length: float | None = None
    separate_vocabs: Flag = False
    source_lang: Text | None = None
    target_lang: Text | None = None
    clean_up_tokenization_spaces: Flag = False


class BPEModel(Struct):
    """The model in a tokenizer.json."""

    type: Literal["BPE"]
    vocab: VOCABULARY
    merges: list[str | list[str]]


class BPETokenizer(Struct):
    """A tokenizer.json of the package tokenizers with byte-pair encoding."""

    model: BPEModel
    added_tokens: list[AddedToken] = []


class WeightIndex(Struct):
    """model.safetensors.index.json and its like."""

    weight_map: Annotated[WEIGHT_MAP, Meta(min_length=1)]


class TextEncoderConfig(Supported):
    """text_encoder/config.json: the defaults of transformers' CLIPTextConfig."""

    vocab_size: VocabularySize = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 8
    max_position_embeddings: Length = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    ONLY = {"model_type": ("clip_text_model", "clip_text"), "use_attention_mask": (False, None)}


# ------------------------------------------------------------------------------------------- the format of diffusers


class AutoencoderConfig(Supported):
    """vae/config.json: the defaults of diffusers' AutoencoderKL."""

    in_channels: Count = 3
    out_channels: Count = 3
    block_out_channels: Widths = msgspec.field(default_factory=lambda: [64])
    layers_per_block: Count = 1
    latent_channels: Count = 4
    norm_num_groups: Count = 32
    scaling_factor: Factor = 0.18215
    shift_factor: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    down_block_types: list[Text] = msgspec.field(default_factory=lambda: ["DownEncoderBlock2D"])
    up_block_types: list[Text] = msgspec.field(default_factory=lambda: ["UpDecoderBlock2D"])

    ONLY = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
        "mid_block_add_attention": (True,),
        "use_quant_conv": (True,),
        "use_post_quant_conv": (True,),
    }


class DenoiserConfig(Supported):
    """unet/config.json: the defaults of diffusers' UNet2DConditionModel.

    attention_head_dim is the number of heads, a misnomer that diffusers keeps for the files that use it (its issue
    2011).
    """

    in_channels: Count = 4
    out_channels: Count = 4
    block_out_channels: Widths = msgspec.field(default_factory=lambda: [320, 640, 1280, 1280])
    norm_num_groups: Count = 32
    norm_eps: Epsilon = 1e-5
    use_linear_projection: Flag = False
    layers_per_block: Counts = 2
    attention_head_dim: Counts = 8
    transformer_layers_per_block: Counts = 1
    cross_attention_dim: Width | Widths = 1280
    down_block_types: list[Text] | None = None
    up_block_types: list[Text] | None = None
    sample_size: Width | list[Width] = 64
    diffusers_version: Text = msgspec.field(name="_diffusers_version", default="")

    ONLY = {
        "_class_name": ("UNet2DConditionModel",),
        "act_fn": ("silu", "swish"),
        "addition_embed_type": (None,),
        "attention_type": ("default",),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "downsample_padding": (1,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_scale_factor": (1,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "num_attention_heads": (None,),
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    }


BETA_SCHEDULES = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PREDICTION_TYPES = Literal["epsilon", "v_prediction", "sample"]
TIMESTEP_SPACINGS = Literal["leading", "trailing", "linspace"]
SAMPLERS = Literal["plms", "ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "lcm"]
TrainTimesteps = Annotated[int, Meta(ge=2, le=10**5)]


class SchedulerConfig(Supported):
    """scheduler/scheduler_config.json; absent betas and spacing are those of the scheduler's class."""

    class_name: Text = msgspec.field(name="_class_name", default="")
    beta_schedule: BETA_SCHEDULES = "linear"
    beta_start: Beta | None = None
    beta_end: Beta | None = None
    num_train_timesteps: TrainTimesteps = 1000
    prediction_type: PREDICTION_TYPES = "epsilon"
    timestep_spacing: TIMESTEP_SPACINGS | None = None
    set_alpha_to_one: Flag | None = None
    use_karras_sigmas: Flag = False

    ONLY = {
        "algorithm_type": ("dpmsolver++",),
        "euler_at_final": (False,),
        "final_sigmas_type": ("zero",),
        "lambda_min_clipped": (float("-inf"),),
        "interpolation_type": ("linear",),
        "lower_order_final": (True,),
        "rescale_betas_zero_snr": (False,),
        "sigma_max": (None,),
        "sigma_min": (None,),
        "solver_order": (2,),
        "solver_type": ("midpoint",),
        "thresholding": (False,),
        "timestep_type": ("discrete",),
        "trained_betas": (None,),
        "use_beta_sigmas": (False,),
        "use_exponential_sigmas": (False,),
        "use_flow_sigmas": (False,),
        "use_lu_lambdas": (False,),
        "variance_type": ("fixed_small", None),
    }


class ModelIndex(Struct):
    """model_index.json: the class of the pipeline, and the library and class of each part."""

    class_name: Text = msgspec.field(name="_class_name", default="")
    text_encoder: list[Text | None] = []
    tokenizer: list[Text | None] = []
    unet: list[Text | None] = []
    vae: list[Text | None] = []
    scheduler: list[Text | None] = []


# --------------------------------------------------------------------------------------------------- the zoo's own


# Of the components of the package tokenizers, those that the zoo writes. Their regular expressions are the zoo's own:
# another may take for ever.
TOKENIZER_PATTERNS = {
    "character": r"[\s\S]",
    # A word with the space before it, a run of line breaks, a punctuation mark with the space before it, other space.
    "word": r" ?\w+(?:['’-]\w+)*|\n+| ?[^\w\s]|\s",
    # CLIP's words, which are encoded as byte pairs each; what does not match are spaces.
    "clip": r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""",
    "space": r"\s+",
}


class TokenizerPattern(Struct):
    """One of the zoo's regular expressions."""

    Regex: Literal[tuple(TOKENIZER_PATTERNS.values())]  # type: ignore[valid-type]


class _Component(Struct, tag_field="type"):
    """A component says what it is in "type": the name of its class."""


class NFC(_Component, tag=True):
    """Unicode normalization form C."""


class Lowercase(_Component, tag=True):
    """Lower-case letters."""


class Replace(_Component, tag=True):
    """What matches, replaced by one character at most."""

    pattern: TokenizerPattern
    content: Annotated[str, Meta(max_length=1)]  # a text must not grow


class NormalizerSequence(_Component, tag="Sequence"):
    """Normalizers one after the other."""

    normalizers: Annotated[list[NFC | Lowercase | Replace], Meta(max_length=8)]


class Split(_Component, tag=True):
    """A text divided by a pattern."""

    pattern: TokenizerPattern
    behavior: Literal["Isolated", "Removed"]
    invert: Flag


class ByteLevel(_Component, tag=True):
    """Bytes as letters."""


class Whitespace(_Component, tag=True):
    """A text divided into words and punctuation."""


class PreTokenizerSequence(_Component, tag="Sequence"):
    """Divisions one after the other."""

    pretokenizers: Annotated[list[Split | ByteLevel | Whitespace], Meta(max_length=8)]


class TemplateProcessing(_Component, tag=True):
    """Special tokens around a text."""

    single: Annotated[list[dict[str, Any]], Meta(max_length=16)]


class RobertaProcessing(_Component, tag=True):
    """A start and an end around a text."""


class Fuse(_Component, tag=True):
    """Tokens joined as they are."""


class TokenizerModel(Struct):
    """The model of a tokenizer."""

    type: Literal["BPE", "WordLevel"]
    vocab: VOCABULARY


class NumberedToken(AddedToken, kw_only=True):
    """A token that is never split."""

    id: TokenId


class TokenizerFile(Struct):
    """tokenizer.json of a preset: a tokenizer of the package tokenizers that neither pads nor truncates."""

    model: TokenizerModel
    added_tokens: list[NumberedToken] = msgspec.field(default_factory=list)
    normalizer: NFC | Lowercase | Replace | NormalizerSequence | None = None
    pre_tokenizer: Split | ByteLevel | Whitespace | PreTokenizerSequence | None = None
    post_processor: TemplateProcessing | RobertaProcessing | ByteLevel | None = None
    decoder: ByteLevel | Fuse | None = None
    padding: None = None
    truncation: None = None


class NoiseSchedule(Struct):
    """The noise of a diffusion's training."""

    beta_schedule: BETA_SCHEDULES
    beta_start: Beta
    beta_end: Beta
    num_train_timesteps: TrainTimesteps


class PipelineConfig(Struct):
    """pipeline.json of a latent diffusion; see `zoo.converters.stable_diffusion`."""

    kind: Literal["stable_diffusion"]
    latent_channels: Count
    scaling_factor: Factor
    shift_factor: Annotated[float, Meta(ge=-1e6, le=1e6)]
    vae_scale_factor: Literal[1, 2, 4, 8, 16, 32, 64]
    image_size: Annotated[int, Meta(ge=1, le=2**14)]
    max_length: Annotated[int, Meta(ge=2, le=2**12)]
    start_id: TokenId
    end_id: TokenId
    pad_id: TokenId
    noise_schedule: NoiseSchedule
    prediction_type: PREDICTION_TYPES
    sampler: SAMPLERS
    timestep_spacing: TIMESTEP_SPACINGS
    steps_offset: Annotated[int, Meta(ge=0, le=1000)]
    set_alpha_to_one: Flag
    use_karras_sigmas: Flag


class CardFile(Struct):
    """What a card says of a file."""

    sha256: Sha256 | None = None
    bytes: Annotated[int, Meta(ge=0)] = 0
    url: Url | None = None


class _Shares(Struct):
    all: Share


class _Scores(Struct):
    held_out: _Shares | None = None


class Card(Struct):
    """card.json: what is read of it; more may be in it."""

    name: Text | None = None
    task: Text | None = None
    files: dict[FileName, CardFile] = {}
    parameters: Annotated[int, Meta(ge=0)] | None = None
    class_names: list[Text] | None = None
    preprocess_input: Text | None = None
    test_accuracy: Share | None = None
    test_bits_per_character: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    test_bleu_beam_5: Annotated[float, Meta(ge=0, le=100)] | None = None
    scores: _Scores | None = None
    components: dict[str, dict[str, Any]] = {}
    input: Text | None = None
    command: Annotated[str, Meta(max_length=10**4)] | None = None
    source_lang: Text | None = None
    target_lang: Text | None = None


class GenerationSettings(Struct):
    """generation_config.json of a preset, for all tasks."""

    max_new_tokens: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=2**22)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop_token_ids: TokenId | list[TokenId] | None = None
    num_beams: Count | None = None
    length_penalty: Annotated[float, Meta(ge=-100, le=100)] | None = None
    max_length: Length | None = None
    num_steps: Annotated[int, Meta(ge=1, le=10**4)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=1000)] | None = None
    eta: Annotated[float, Meta(ge=0, le=1)] | None = None
    negative_prompt: Text | None = None
    sampler: Text | None = None


def settings_schema(defaults: Mapping[str, Any]) -> type[Struct]:
    """The schema of the settings of a task, for values given in Python as well.

    Args:
        defaults: {name: value}; a setting has the type of its default, and any type where that is None.

    Returns:
        a class with these entries, each of which may be left out.
    """
    fields = [(name, Any if value is None else type(value) | None, None) for name, value in defaults.items()]
    return msgspec.defstruct("Settings", fields)


class RunMetrics(Struct):
    """What is read of the metrics.json of a run; more is in it."""

    class_names: list[Text] | None = None


class MarianTokenizerFile(Struct):
    """The tokenizer.json of `zoo.tokenizers.marian`, its SentencePiece models in base64."""

    source_model: bytes
    target_model: bytes
    vocabulary: dict[str, TokenId]
    target_vocabulary: dict[str, TokenId] | None = None
    unknown: Text = "<unk>"
    end: Text = "</s>"
    pad: Text = "<pad>"
    source_lang: Text | None = None
    target_lang: Text | None = None
    clean_up_tokenization_spaces: Flag = False


class CheckpointMeta(Struct):
    """What a checkpoint of a training says beside its arrays."""

    settings: dict[str, Any]
    history: list[dict[str, float | int | None]]


Alpha = Annotated[float, Meta(ge=-1e6, le=1e6)]
Rank = Annotated[int, Meta(ge=1, le=2**16)]


class LoraConfig(Supported):
    """What "lora_adapter_metadata" in a LoRA file says of one model: the defaults of peft's LoraConfig."""

    r: Rank = 8
    lora_alpha: Alpha = 8
    alpha_pattern: dict[Text, Alpha] = {}
    use_rslora: Flag = False  # divide alpha by the square root of the rank

    ONLY = {"use_dora": (False,), "peft_type": ("LORA",), "fan_in_fan_out": (False,), "lora_bias": (False,)}


class LoraBase(Struct):
    """What "zoo" in a LoRA file says of the model that it was trained on."""

    name: Text
    structure: Sha256
    weights: Sha256


class ParityMetadata(Struct):
    """What a parity record says beside its arrays."""

    backend: Text
    version: Text
    keras: Text
    sha256: Sha256
    functional: Flag
    values: Annotated[int, Meta(ge=0, le=10**6)]
    weights: dict[str, str]
    layers: list[tuple[str, str, Annotated[int, Meta(ge=0)]]]


class ExportedTensor(Struct):
    """An input or output of an exported model; open sizes have names."""

    name: Text
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=2**31)] | Text], Meta(max_length=16)]
    dtype: Literal["float32", "float16", "int32", "int64", "uint8", "bool"]


class ExportedModel(Struct):
    """One model of an exported folder."""

    inputs: Annotated[list[ExportedTensor], Meta(min_length=1, max_length=4096)]
    outputs: Annotated[list[ExportedTensor], Meta(min_length=1, max_length=4096)]


EXPORT_FORMATS = Literal["onnx", "openvino", "litert", "saved_model", "torch"]
ExportedModels = Annotated[dict[FileName, ExportedModel], Meta(min_length=1, max_length=64)]


class ExportConfig(Struct):
    """config.json of an exported folder: what every task has; more is in it."""

    format: EXPORT_FORMATS
    models: ExportedModels
    name: Text = ""
    task: Text | None = None
    quantization: Literal["int8", "int4", "float16"] | None = None


class Replay(Struct):
    """How a parity record is run through exported models, and what came of it."""

    kind: Literal["call", "token_by_token", "decoder_steps"]
    models: Annotated[list[FileName], Meta(min_length=1, max_length=2)]
    record: FileName
    max_error: Annotated[float, Meta(ge=0)]


class CertifiedFile(Struct):
    """A file of an exported folder."""

    sha256: Sha256
    bytes: Annotated[int, Meta(ge=0)]


class Runtime(Struct):
    """What a certificate was made with."""

    name: Text
    version: Text


class Certificate(Struct):
    """certificate.json of an exported folder."""

    runtime: Runtime
    tolerance: Annotated[float, Meta(ge=0, le=1)]
    files: Annotated[dict[FilePath, CertifiedFile], Meta(min_length=1, max_length=256)]
    replays: Annotated[list[Replay], Meta(min_length=1, max_length=64)]


class NotebookCell(Struct):
    """A cell of a Jupyter notebook; more is in it."""

    cell_type: Text
    source: str | list[str] = ""
    outputs: list[dict[str, Any]] = []


class StudentNotebook(Struct):
    """What is read of a notebook that a student has handed in."""

    cells: Annotated[list[NotebookCell], Meta(max_length=10**4)]


# ------------------------------------------------------------------------------------------------------------ reading

_Schema = TypeVar("_Schema")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def read_object(path: StrPath, what: str, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: of the file.
        what: describes the file in an error message.
        optional: whether the file may be missing, which means {}.

    Returns:
        the object.

    Raises:
        UserError: if the file is missing, too large, not valid JSON, nested too deep, or not an object.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        if optional:
            return {}
        raise UserError(f"There is no {path.name} in {path.parent}, which is {what}: fetch it into that folder.")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"{path} has {size:,} bytes, too many for {what}: fetch it again.")
    return parse_object(path.read_bytes(), path)


def parse_object(content: bytes | str, path: StrPath) -> dict[str, Any]:
    """Parse JSON that is an object.

    Args:
        content: the JSON.
        path: where it comes from, for an error message.

    Returns:
        the object.

    Raises:
        UserError: if it is not valid JSON, nested too deep, or not an object.
    """
    try:
        value = json.loads(content)  # not msgspec's, since diffusers writes -Infinity
        if re.search(r"\\u[dD][89a-fA-F]", content if isinstance(content, str) else content.decode("latin-1")):
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be written, as of an error message
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error_summary(error)}): fetch it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object: fetch it again.")
    level: list[Any] = [value]
    depth = 0
    while level:
        if (depth := depth + 1) > MOST_DEPTH:
            raise UserError(f"{path} is not valid JSON here (nested more than {MOST_DEPTH} deep): fetch it again.")
        items = (one for part in level for one in (part.values() if isinstance(part, dict) else part))
        level = [one for one in items if isinstance(one, (dict, list))]
    return value


def check(value: Any, schema: type[_Schema], path: StrPath, *, keep_null: Iterable[str] = ()) -> _Schema:
    """Check a value against a schema.

    Args:
        value: what was read from JSON.
        schema: a class of this module, or a type.
        path: where the value comes from, for an error message.
        keep_null: entries for which null is not the same as leaving them out.

    Returns:
        an instance of the schema.

    Raises:
        UserError: if an entry is missing, or not of its type or within its bounds; it is named.
    """
    if isinstance(value, dict) and isinstance(schema, type) and issubclass(schema, Struct):
        value = {key: one for key, one in value.items() if one is not None or key in keep_null}
        for name, values in getattr(schema, "ONLY", {}).items():
            if (found := value.get(name, values[0])) not in values or isinstance(found, bool) != isinstance(
                next(one for one in values if one == found), bool
            ):
                raise UserError(f"{path} says {name} is {found!r:.100}, where only {values[0]!r} is supported.")
    try:
        return msgspec.convert(value, type=schema)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise UserError(_sentence(str(error), value, schema, path)) from error


def load(path: StrPath, schema: type[_Schema], what: str) -> _Schema:
    """Read a JSON file and check it against a schema.

    Args:
        path: of the file.
        schema: a class of this module, or a type.
        what: describes the file in an error message.

    Returns:
        an instance of the schema.

    Raises:
        UserError: as `read_object` and `check`.
    """
    return check(read_object(path, what), schema, path)


def check_sizes(
    path: StrPath, sizes: Mapping[str, int], counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare what a configuration says with the tensors beside it, before memory is taken for a model.

    Args:
        path: of the configuration, for an error message.
        sizes: {name: size}; each has to be an axis of a tensor.
        counts: {name: number of layers}; there have to be as many tensors.
        shapes: {name: shape} of the tensors.

    Raises:
        UserError: if no tensor has such a size, or there are fewer tensors than layers.
    """
    axes = {axis for shape in shapes.values() for axis in shape}
    for name, size in sizes.items():
        if size not in axes:
            raise UserError(
                f"{path} says {name} is {size}, and no tensor of the weights has an axis of that size: they belong to "
                "different models."
            )
    if (total := sum(counts.values())) > len(shapes):
        raise UserError(
            f"{path} says {', '.join(f'{name} is {count}' for name, count in counts.items())}, and the weights have "
            f"{len(shapes)} tensors for {total} layers: they belong to different models."
        )


def _sentence(message, value, schema, path):
    """A message of msgspec, such as "Expected `int` >= 1, got `str` - at `$.d_model`", as a sentence."""
    words, _, where = message.partition(" - at ")
    before, _, where = where.strip("`").partition("$")
    of_key = "key" in before
    names = [index or name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", where)]
    found, place = value, ""
    for name in names:
        place += f"[{name}]" if name.isdigit() else f".{name}" if name != "..." else ""
        if name == "...":
            place, found = f"an entry of {place.strip('.') or 'the object'}", _UNKNOWN
        elif found is not _UNKNOWN:
            found = found[int(name)] if name.isdigit() else found[name]
    place = f"a key of {place.strip('.') or 'the object'}" if of_key else place.strip(".") or "all of it"
    if missing := re.match(r"Object missing required field `(.+)`", words):
        return f"{path} does not say {missing[1]}{f' in {place}' * bool(names)}: write or fetch it again."
    if "base64" in words:
        expected = "base64"
    elif words.startswith("Invalid"):  # enum value
        expected = _choices(schema, names) or "another value"
    else:
        expected = _expectation(words)
    if of_key or found is _UNKNOWN or not names:
        return f"In {path}, {place} is not {expected}: write or fetch it again."
    return f"{path} says {place} is {found!r:.100}, where {expected} was expected."


_UNKNOWN = object()


def _expectation(words):
    """What msgspec expected, e.g. "a whole number from 1 up" for "Expected `int` >= 1"."""
    for pattern, meaning in _PATTERNS.items():
        if repr(pattern) in words:
            return meaning
    expected = re.sub(r", got .*", "", words.removeprefix("Expected "))
    kinds = re.match(r"`([^`]+)`", expected)
    if kinds is None:
        return expected
    named = [_KINDS.get(kind, kind) for kind in kinds[1].split(" | ")]
    bounds = expected[kinds.end() :]
    bounds = re.sub(r" of length >= (\d+)", r" of at least \1", bounds)
    bounds = re.sub(r" of length <= (\d+)", r" of at most \1", bounds)
    bounds = re.sub(r" >= (\S+)", r" from \1 up", bounds)
    bounds = re.sub(r" <= (\S+)", r" of at most \1", bounds)
    bounds = re.sub(r" > (\S+)", r" above \1", bounds)
    bounds = re.sub(r" < (\S+)", r" below \1", bounds)
    return " or ".join(named) + bounds


def _choices(schema, names):
    """The values that an entry may have, in words; "" for an entry inside a list."""
    for name in names:
        if not (isinstance(schema, type) and issubclass(schema, Struct)):
            return ""
        field = next((one for one in msgspec.structs.fields(schema) if one.encode_name == name), None)
        if field is None:
            return ""
        schema = field.type
    return " or ".join(_literals(schema))


def _literals(kind):
    if typing.get_origin(kind) is Literal:
        return [str(value) for value in typing.get_args(kind)]
    return [value for one in typing.get_args(kind) for value in _literals(one)]
