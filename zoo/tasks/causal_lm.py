"""Text generation: a language model, its tokenizer and a sampling loop together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from zoo.errors import UserError
from zoo.generation.recurrent import RecurrentGenerator, encode_prompt, stream_text, top_next_tokens
from zoo.generation.sampling import check_sampling
from zoo.io.cards import TOKENIZER_FILE
from zoo.models.rnn_language_model import decode_step_model, infer_config
from zoo.tasks.base import Task
from zoo.tokenizers import load_tokenizer
from zoo.tokenizers.text import save_tokenizer

if TYPE_CHECKING:
    import keras
    import tokenizers


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `CausalLM.generate`."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    greedy: bool
    seed: int | None
    strip_prompt: bool
    stop_token_ids: Iterable[int] | None
    batch_size: int


class CausalLM(Task):
    """Generates text with a language model and the tokenizer it was trained with.

    Args:
        model: a recurrent language model.
        tokenizer: `tokenizers.Tokenizer`.
        card: dict, what is known about the model.
        generation_config: dict of settings that take the place of `DEFAULTS`; it may also have `stop_token_ids`.

    Raises:
        UserError: if the model is no language model, or the two do not belong together.

    Example:
        >>> zoo.CausalLM.from_preset("lstm_shakespeare").generate("ROMEO:", max_new_tokens=400, temperature=0.8, seed=1)
    """

    task = "text-generation"
    DEFAULTS = {"max_new_tokens": 400, "temperature": 0.8, "top_k": None, "top_p": None, "stop_token_ids": None}

    def __init__(
        self,
        model: keras.Model,
        tokenizer: tokenizers.Tokenizer,
        *,
        card: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, card=card, generation_config=generation_config)
        self._vocabulary_size = _vocabulary_size(model)
        if not hasattr(tokenizer, "get_vocab_size") or tokenizer.get_vocab_size() != self._vocabulary_size:
            raise UserError(
                f"The tokenizer does not have the {self._vocabulary_size:,} entries of {model.name}: it belongs to "
                "another model."
            )
        self._generator = RecurrentGenerator(model)

    # A str is an iterable of str, too: hence the first signature comes first.
    @overload
    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Iterable[str], **options: Unpack[GenerateOptions]) -> list[str]: ...
    def generate(
        self,
        prompt: str | Iterable[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        seed: int | None = 0,
        strip_prompt: bool = False,
        stop_token_ids: Iterable[int] | None = None,
        batch_size: int = 32,
    ) -> str | list[str]:
        """Generate text from a prompt.

        Args:
            prompt: one text, or several.
            max_new_tokens: most tokens to generate; the preset's, or 400, if None.
            temperature: sampling temperature; 0 is greedy. The preset's, or 0.8, if None.
            top_k: sample from the k most likely tokens only.
            top_p: sample from the fewest most likely tokens that make up this probability.
            greedy: take the most likely token at each step.
            seed: of the sampling; prompt i of a list uses seed + i. None for fresh randomness.
            strip_prompt: return the generated text without the prompt.
            stop_token_ids: token ids that end a text; they are not part of it.
            batch_size: prompts generated at once; changes speed and memory, never the texts.

        Returns:
            the prompt and the text that follows it; for several, a list of them.

        Raises:
            UserError: if a prompt is empty or has characters that the model does not know, or an argument is out of
                range.
        """
        options = self._options(max_new_tokens, temperature, top_k, top_p, greedy, stop_token_ids)
        seed = self._seed(seed)

        def generate(prompts, first):
            token_ids, texts = self._generate(prompts, seed + first, options), []
            for text, ids in zip(prompts, token_ids):
                texts.append(("" if strip_prompt else text) + self.postprocess(ids))
            return texts

        return self._map(generate, prompt, batch_size)

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        seed: int | None = 0,
        stop_token_ids: Iterable[int] | None = None,
    ) -> Iterator[str]:
        """Generate text from one prompt, piece by piece.

        Args:
            prompt: one text.
            max_new_tokens: as in `generate`.
            temperature: as in `generate`.
            top_k: as in `generate`.
            top_p: as in `generate`.
            greedy: as in `generate`.
            seed: as in `generate`.
            stop_token_ids: as in `generate`.

        Returns:
            iterator of pieces as they come; joined they are the text that `generate` gives after the prompt.

        Raises:
            UserError: as `generate`.
        """
        if not isinstance(prompt, str):
            raise UserError(f"stream takes one prompt, a str, got {type(prompt).__name__}: use generate for a list.")
        options = self._options(max_new_tokens, temperature, top_k, top_p, greedy, stop_token_ids)
        tokens = self._tokens([self.preprocess(prompt)], self._seed(seed), options)
        return stream_text(self.tokenizer, (token for _, token in tokens))

    def top_next_tokens(self, prompt: str, count: int = 5) -> list[tuple[str, float]]:
        """The most likely next tokens after a prompt.

        Args:
            prompt: one text.
            count: how many tokens.

        Returns:
            list of (text of the token, probability), the most likely first.

        Raises:
            UserError: if the prompt is empty or has characters that the model does not know, or `count` is below 1.
        """
        if count < 1:
            raise UserError(f"count must be at least 1, got {count}.")
        return top_next_tokens(self._generator, self.tokenizer, prompt, count=count)

    def preprocess(self, text: str) -> list[int]:
        """What the model takes.

        Args:
            text: a prompt.

        Returns:
            its token ids.

        Raises:
            UserError: if it is empty or has characters that the model does not know.
        """
        return encode_prompt(self.tokenizer, text)

    def postprocess(self, token_ids: Iterable[int]) -> str:
        """The text of generated tokens.

        Args:
            token_ids: their ids.

        Returns:
            the text.
        """
        return "".join(stream_text(self.tokenizer, token_ids))

    def _export_plan(self):
        from zoo.exporters.export_folder import ExportedPart, ExportPlan
        from zoo.exporters.quantization import QUANTIZATIONS

        step = decode_step_model(self.model)
        next_states = [f"{x.name}_next" for x in step.inputs[1:]]
        return ExportPlan(
            parts={
                "model": ExportedPart(self.model, ["logits"]),
                "decode_step": ExportedPart(step, ["logits", *next_states]),
            },
            recorded={"model": self.model},
            replays=[("call", ["model"], "model"), ("token_by_token", ["decode_step"], "model")],
            config=self._export_config(vocabulary_size=self._vocabulary_size),
            # The step is what quantizers handle, and what does not fix the length of the text.
            left_out=dict.fromkeys(("litert", "torch", *QUANTIZATIONS), ["model"]),
            save_tokenizer=self._save_tokenizer,
        )

    def _generate(self, prompts, seed, options):
        """Lists of generated ids."""
        generated = [[] for _ in prompts]
        for row, token in self._tokens([self.preprocess(prompt) for prompt in prompts], seed, options):
            generated[row].append(token)
        return generated

    def _tokens(self, prompts, seed, options):
        options = dict(options)
        seeds = None if options.pop("greedy") else range(seed, seed + len(prompts))
        return self._generator.generate(prompts, seeds=seeds, **options)

    def _options(self, max_new_tokens, temperature, top_k, top_p, greedy, stop_token_ids):
        """Checked arguments of `RecurrentGenerator.generate`, and whether to be greedy."""
        options = self._settings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_token_ids=stop_token_ids,
        )
        if not isinstance(options["max_new_tokens"], int) or options["max_new_tokens"] < 1:
            raise UserError(f"max_new_tokens must be an integer of at least 1, got {options['max_new_tokens']!r}.")
        greedy = greedy or options["temperature"] == 0
        options["temperature"] = 1.0 if greedy else options["temperature"]
        check_sampling(**{name: options[name] for name in ("temperature", "top_k", "top_p")})
        options["stop_token_ids"] = frozenset(options["stop_token_ids"] or ())
        if others := [id_ for id_ in options["stop_token_ids"] if id_ not in range(self._vocabulary_size)]:
            raise UserError(f"stop_token_ids must be ids from 0 to {self._vocabulary_size - 1}, got {others[0]!r}.")
        return options | {"greedy": greedy}

    @classmethod
    def _constructor_arguments(cls, preset, model):
        size = _vocabulary_size(model)
        return {"tokenizer": load_tokenizer(preset.file(TOKENIZER_FILE), vocabulary_size=size)}

    def _save_tokenizer(self, path):
        save_tokenizer(self.tokenizer, path)


def _vocabulary_size(model):
    try:
        return infer_config(model)["vocabulary_size"]
    except ValueError as error:
        raise UserError(
            f"{model.name} is not a recurrent language model: give one of recipes/rnn_shakespeare.py, e.g. "
            "lstm_shakespeare."
        ) from error
