"""Translation: a transformer, its tokenizer and a decoding loop together."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict, Unpack, overload

import keras
import numpy as np

from zoo.errors import UserError
from zoo.fast_paths import inference_function
from zoo.generation.seq2seq import Seq2SeqGenerator
from zoo.io.cards import TOKENIZER_FILE
from zoo.models.transformer import (
    attention_names,
    attention_weights_model,
    cross_attention_cache_model,
    decode_step_model,
    infer_config,
)
from zoo.tasks.base import Task
from zoo.tokenizers import MarianTokenizer, SharedBPETokenizer, load_tokenizer

_SAMPLING = ("temperature", "top_k", "top_p")


class TranslateOptions(TypedDict, total=False):
    """Keyword arguments of `Translator.translate`."""

    num_beams: int | None
    length_penalty: float | None
    max_length: int | None
    greedy: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    batch_size: int


FIXED_LENGTH = 64  # source tokens, and target positions, of exports whose shapes are fixed


class Translator(Task):
    """Translates with a model and the tokenizer it was trained with.

    Args:
        model: a transformer encoder-decoder.
        tokenizer: `SharedBPETokenizer` or `MarianTokenizer`.
        card: dict, what is known about the model.
        generation_config: dict of settings that take the place of `DEFAULTS`. By the names of transformers it may also
            say decoder_start_token_id, eos_token_id, forced_eos_token_id (None to end no translation by force),
            suppress_tokens and renormalize_logits.

    Raises:
        UserError: if the model is no transformer encoder-decoder, or the two do not belong together.

    Example:
        >>> zoo.Translator.from_preset("transformer_multi30k_de_en").translate("Ein Hund läuft.", num_beams=5)
    """

    task = "translation"
    DEFAULTS = {"num_beams": 5, "length_penalty": 1.0, "max_length": None, **dict.fromkeys(_SAMPLING)}

    def __init__(
        self,
        model: keras.Model,
        tokenizer: SharedBPETokenizer | MarianTokenizer,
        *,
        card: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, card=card, generation_config=generation_config)
        try:
            self._config = infer_config(model)
        except ValueError as error:
            raise UserError(
                f"{model.name} is not a translation model: give one of recipes/transformer_multi30k.py."
            ) from error
        sizes = (
            self._config["source_vocabulary_size"] or self._config["vocabulary_size"],
            self._config["vocabulary_size"],
        )
        own = (getattr(tokenizer, "source_vocabulary_size", 0), getattr(tokenizer, "vocabulary_size", 0))
        # Marian pads its embeddings to a round number of rows.
        fits = own == sizes or (isinstance(tokenizer, MarianTokenizer) and own[0] <= sizes[0] and own[1] <= sizes[1])
        if not fits or tokenizer.pad_id != self._config["pad_id"]:
            raise UserError(
                f"The tokenizer has {own[1]:,} entries and pads with {getattr(tokenizer, 'pad_id', None)}, the model "
                f"has {sizes[1]:,} and expects {self._config['pad_id']}: this tokenizer belongs to another model."
            )
        rules = self.generation_config
        end_id = rules.get("eos_token_id", tokenizer.end_id)
        self._start_id = rules.get("decoder_start_token_id", tokenizer.start_id)
        self._force_end = rules.get("forced_eos_token_id", end_id) is not None
        self._token_rules = {
            "start_id": self._start_id,
            "end_id": end_id,
            "suppress_tokens": rules.get("suppress_tokens", tokenizer.suppress_tokens),
            "renormalize_logits": rules.get("renormalize_logits", False),
        }
        self._generator = Seq2SeqGenerator(model, **self._token_rules)

    # A str is an iterable of str, too: hence the first signature comes first.
    @overload
    def translate(self, text: str, **options: Unpack[TranslateOptions]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def translate(self, text: Iterable[str], **options: Unpack[TranslateOptions]) -> list[str]: ...
    def translate(
        self,
        text: str | Iterable[str],
        *,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
        greedy: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = 0,
        batch_size: int = 64,
    ) -> str | list[str]:
        """Translate a sentence. What is empty stays empty.

        Args:
            text: one sentence, or several.
            num_beams: of the beam search; 1 is greedy. The preset's, or 5, if None.
            length_penalty: beam search compares translations by log-probability / tokens^length_penalty; above 0
                favours longer ones. The preset's, or 1, if None.
            max_length: most tokens of a translation, start and end included; the preset's, or twice those of its source
                and 20, if None.
            greedy: take the most likely token at each step, as num_beams=1 and temperature=0 do.
            temperature: sample at this temperature instead of searching; 0 is greedy.
            top_k: sample from the k most likely tokens only.
            top_p: sample from the fewest most likely tokens that make up this probability.
            seed: of the sampling; sentence i of a list uses seed + i. None for fresh randomness.
            batch_size: sentences decoded at once, those of like length together; changes speed and memory, never the
                translations.

        Returns:
            the translation; for several, a list of them.

        Raises:
            UserError: if an argument is out of range, or two do not fit each other.
        """
        options = self._options(num_beams, length_penalty, max_length, greedy, temperature, top_k, top_p)
        options |= {"seed": self._seed(seed), "batch_size": batch_size}
        text = text if self._is_item(text) or not hasattr(text, "__iter__") else list(text)
        count = len(text) if isinstance(text, list) else 1
        return self._map(lambda texts, _: self._translate(texts, **options), text, max(1, count))

    def stream(self, text: str, **options: Unpack[TranslateOptions]) -> Iterator[str]:
        """Translate one sentence; an iterator of one piece, since a beam search knows its result at its end.

        Args:
            text: one sentence.
            **options: as in `translate`.

        Returns:
            iterator of the translation.

        Raises:
            UserError: as `translate`.
        """
        if not isinstance(text, str):
            raise UserError(f"stream takes one sentence, a str, got {type(text).__name__}: use translate for a list.")
        return iter([self.translate(text, **options)])

    def cross_attention_weights(
        self, source: str, translation: str
    ) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
        """The weights of each cross-attention when a translation is generated.

        Args:
            source: one sentence.
            translation: its translation, by this model or another.

        Returns:
            ({name of the attention: weights (N, T, S)}, the S tokens of the source, the T tokens of the translation);
            row t belongs to the step that generates token t.
        """
        source_ids, target_ids = self.preprocess(source), self.tokenizer.encode_target(translation)
        inputs = [np.array([source_ids], "int32"), np.array([[self._start_id, *target_ids[:-1]]], "int32")]
        weights = {
            name: keras.ops.convert_to_numpy(inference_function(attention_weights_model(self.model, name))(inputs))[0]
            for name in attention_names(self.model)
            if name.endswith("cross_attention")
        }
        return weights, self.tokenizer.ids_to_tokens(source_ids), self.tokenizer.target_ids_to_tokens(target_ids)

    def preprocess(self, text: str) -> list[int]:
        """What the model takes.

        Args:
            text: a sentence to translate.

        Returns:
            its token ids.
        """
        return self.tokenizer.encode(text.strip())

    def postprocess(self, token_ids: Iterable[int]) -> str:
        """The text of generated tokens.

        Args:
            token_ids: their ids.

        Returns:
            the text.
        """
        return self.tokenizer.decode(token_ids)

    def _export_plan(self):
        from zoo.exporters.export_folder import ExportedPart, ExportPlan

        encoder, step = cross_attention_cache_model(self.model), decode_step_model(self.model)
        layers = range(self._config["decoder_layers"])
        names = {
            kind: [f"{kind}_{part}_{i}" for i in layers for part in ("keys", "values")] for kind in ("cross", "new")
        }
        size, (source, target) = self._config["hidden_dim"] // self._config["num_heads"], self._padded_batch()
        heads, length = self._config["num_heads"], FIXED_LENGTH
        if self._config["positions"] == "learned":
            length = min(length, self._config["max_length"])
        source = np.pad(source[1:], [(0, 0), (0, length - 9)], constant_values=self._config["pad_id"])
        cache = [(1, heads, length, size)] * 2 * len(layers)
        fixed_shapes: dict[str, list[tuple[int, ...]]] = {
            "encoder": [(1, length)],
            "decode_step": [(1, 1), (1,), (1, length), (1, 1, length), *cache, *cache],
        }
        languages = {name: self.card.get(name) for name in ("source_lang", "target_lang")}
        return ExportPlan(
            parts={
                "model": ExportedPart(self.model, ["logits"]),
                "encoder": ExportedPart(encoder, ["padding_mask", *names["cross"]]),
                "decode_step": ExportedPart(step, ["logits", *names["new"]]),
            },
            recorded={"model": self.model, "padded_batch": self.model},
            inputs={"padded_batch": self._padded_batch()},
            replays=[
                (kind, parts, record)
                for record in ("model", "padded_batch")
                for kind, parts in (("call", ["model"]), ("decoder_steps", ["encoder", "decode_step"]))
            ],
            config=self._export_config(
                **self._token_rules,
                pad_id=self._config["pad_id"],
                force_end=self._force_end,
                max_positions=self._config["max_length"] if self._config["positions"] == "learned" else None,
                **languages,
            ),
            left_out={"litert": ["model"]},
            fixed_shapes=fixed_shapes,
            fixed_inputs={"padded_batch": [source, target[1:]]},
            save_tokenizer=self._save_tokenizer,
        )

    def _padded_batch(self):
        """Sources and targets (2, 9) of random tokens, the second source padded: a record may be of one sentence."""
        sizes = [self._config["source_vocabulary_size"] or self._config["vocabulary_size"]]
        sizes.append(self._config["vocabulary_size"])
        source, target = (np.random.default_rng(0).integers(0, size, (2, 9)).astype("int32") for size in sizes)
        source[source == self._config["pad_id"]] += 1 if self._config["pad_id"] == 0 else -1
        source[1, 5:] = self._config["pad_id"]
        return [source, target]

    def _translate(self, texts, *, seed, max_length, **options):
        full = [row for row, text in enumerate(texts) if text.strip()]
        sources, translations = [self.preprocess(texts[row]) for row in full], [""] * len(texts)
        if max_length is None:
            longest = self._config["max_length"] + 1 if self._config["positions"] == "learned" else np.inf
            max_length = [min(2 * len(source) + 20, longest) for source in sources]
        seeds = [seed + row for row in full]
        targets = self._generator.generate(
            sources, max_length=max_length, seed=seeds, force_end=self._force_end, **options
        )
        for row, token_ids in zip(full, targets):
            translations[row] = self.postprocess(token_ids)
        return translations

    def _options(self, num_beams, length_penalty, max_length, greedy, temperature, top_k, top_p):
        """Arguments of `Seq2SeqGenerator.generate`: beam search, greedy or sampling."""
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if num_beams is None and not greedy:
            sampling = self._settings(**sampling)
        sampling = {name: sampling[name] for name in _SAMPLING if sampling[name] is not None}
        greedy = greedy or sampling.get("temperature") == 0
        if (greedy or sampling) and num_beams not in (None, 1):
            raise UserError(
                f"Beam search neither is greedy nor samples, got num_beams={num_beams} too: leave it out, or greedy, "
                "temperature, top_k and top_p."
            )
        options = self._settings(num_beams=num_beams, length_penalty=length_penalty, max_length=max_length)
        options = {name: options[name] for name in ("num_beams", "length_penalty", "max_length")}
        if greedy or sampling:
            options["num_beams"] = 1
        return options | ({} if greedy or not sampling else {"do_sample": True, **sampling})

    @classmethod
    def _constructor_arguments(cls, preset, model):
        return {"tokenizer": load_tokenizer(preset.file(TOKENIZER_FILE))}
