"""What the four tasks share: presets, settings, one item or many, seeds."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from zoo.errors import UserError
from zoo.io import cards, files, model_files, schemas
from zoo.presets import find_preset, preset_folders
from zoo.typing import Log, StrPath

if TYPE_CHECKING:
    import keras

    from zoo.exporters.export_folder import ExportPlan
    from zoo.presets import Preset

# Hugging Face's `pipeline_tag` of a card to the class that loads it.
TASK_CLASSES = {
    "image-classification": ("zoo.tasks.image_classifier", "ImageClassifier"),
    "text-generation": ("zoo.tasks.causal_lm", "CausalLM"),
    "translation": ("zoo.tasks.translator", "Translator"),
    "text-to-image": ("zoo.tasks.text_to_image", "TextToImage"),
}
# The command's verb of each task.
_VERBS = {
    "image-classification": "classify",
    "text-generation": "generate",
    "translation": "translate",
    "text-to-image": "generate",
}


# A file, a file and its scale, or several of these.
LoraFiles = StrPath | tuple[StrPath, float] | list[StrPath | tuple[StrPath, float]]


def _adapters(lora):
    """[(file, scale)] of `from_preset`'s lora; the files are looked into before a model is loaded, which takes time."""
    if lora is None:
        return []
    from zoo.io.tensor_files import TensorFile

    listed = lora if isinstance(lora, list) else [lora]
    adapters = [one if isinstance(one, tuple) else (one, 1.0) for one in listed]
    for path, _ in adapters:
        TensorFile(path)
    return adapters


def task_class(task: str) -> type[Task]:
    """The class of a task.

    Args:
        task: its `pipeline_tag`, e.g. "translation"; a key of `TASK_CLASSES`.

    Returns:
        a subclass of `Task`.
    """
    module, name = TASK_CLASSES[task]
    return getattr(importlib.import_module(module), name)


class _Presets:
    """A class property: the sorted names of the presets that fit the class."""

    def __get__(self, instance: object, owner: type[Task]) -> list[str]:
        return [
            name
            for name, folder in sorted(preset_folders().items())
            if cards.read_card(folder).get("task") == owner.task
        ]


class Task:
    """A model together with all that is needed to use it.

    Subclasses set `task` and `DEFAULTS` and add a method that is a verb. To load and save more than one model and a
    tokenizer they override `_from_preset` and `_save_files`.

    Args:
        model: `keras.Model`, kept as it is: `task.model` can be trained.
        tokenizer: the tokenizer it was trained with; None for models of images.
        card: dict, what is known about the model.
        generation_config: dict of settings that take the place of `DEFAULTS`.

    Attributes:
        task: Hugging Face's `pipeline_tag`.
        DEFAULTS: settings where neither the call nor the preset says otherwise.
        presets: names of the presets that fit the class.
    """

    task: ClassVar[str | None] = None
    DEFAULTS: ClassVar[dict[str, Any]] = {}
    presets = _Presets()

    def __init__(
        self,
        model: keras.Model,
        tokenizer: Any = None,
        *,
        card: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.card = dict(card or {})
        self.generation_config = dict(generation_config or {})
        schemas.check(self.generation_config, schemas.settings_schema(self.DEFAULTS), "generation_config")

    # ------------------------------------------------------------------------------------------------------- presets

    @classmethod
    def from_preset(
        cls,
        preset: StrPath | Preset,
        *,
        revision: str | None = None,
        dtype: str | None = None,
        load_weights: bool = True,
        lora: LoraFiles | None = None,
        **arguments: Any,
    ) -> Self:
        """Load a preset.

        Args:
            preset: a name of `presets`, the path of a folder or of a `.keras` file, "hf://owner/name", or what
                `zoo.presets.find_preset` found.
            revision: branch, tag or commit of an "hf://" repository.
            dtype: dtype policy of the layers, e.g. "bfloat16"; as saved if None.
            load_weights: False for fresh initial weights.
            lora: LoRA file whose adapter is added to the weights, a pair (file, scale), or a list of files and pairs;
                see `zoo.lora.load_lora`.
            **arguments: of the class, in place of what the preset says.

        Returns:
            the task, an instance of this class.

        Raises:
            UserError: if there is no such preset, it is one of another task, or a file is missing, altered, unusable
                or, of a LoRA, for another model.
        """
        found = find_preset(preset, revision=revision)
        cls._check_task(found)
        adapters = _adapters(lora)
        from zoo.fast_paths import set_compiler_flags, use_compilation_cache

        set_compiler_flags()  # before JAX starts
        use_compilation_cache()
        task = cls._from_preset(found, dtype=dtype, load_weights=load_weights, **arguments)
        if adapters:
            from zoo.lora import load_lora

            load_lora(task._adapted_models(), *zip(*adapters))
            task.card["lora"] = [f"{pathlib.Path(path).name}:{scale:g}" for path, scale in adapters]
        return task

    @classmethod
    def _check_task(cls, preset):
        """Raise UserError if the preset's card says that it is for another class."""
        if preset.task is None or preset.task == cls.task:
            return
        if preset.task not in TASK_CLASSES:
            raise UserError(f"{preset.name} is a preset for {preset.task!r}, which no class here does.")
        other = TASK_CLASSES[preset.task][1]
        raise UserError(
            f"{preset.name} is a preset for {preset.task}, not for {cls.task}: load it with zoo.{other}.from_preset "
            f"or use `zoo {_VERBS[preset.task]}`."
        )

    @classmethod
    def _from_preset(cls, preset, *, dtype, load_weights, **arguments):
        """Build the task from a `zoo.presets.Preset` of this task."""
        model = preset.load_model(dtype=dtype, load_weights=load_weights)
        read = {"card": preset.card, "generation_config": preset.generation_config}
        return cls(model, **read | cls._constructor_arguments(preset, model) | arguments)

    def _adapted_models(self):
        """The models that a LoRA file may be for."""
        return [self.model]

    @classmethod
    def _constructor_arguments(cls, preset, model):
        """Further arguments of the constructor, read from the preset: a dict, e.g. {"tokenizer": …}."""
        return {}

    def save_to_preset(self, folder: StrPath, *, card: Mapping[str, Any] | None = None) -> pathlib.Path:
        """Write a preset folder that `from_preset` loads; what it held is replaced.

        Args:
            folder: made if need be.
            card: dict that adds to, or replaces, what `self.card` says.

        Returns:
            pathlib.Path of the folder.

        Raises:
            UserError: if the folder cannot be written to.
        """
        path = files.prepare_folder(folder)
        # The card goes first and comes last: where it is, all is there. A parity record belongs to the old model.
        for name in (cards.CARD_FILE, cards.PARITY_FILE, cards.GENERATION_CONFIG_FILE):
            files.remove(path / name)
        names = self._save_files(path)
        if self.generation_config:
            files.write_json(path / cards.GENERATION_CONFIG_FILE, self.generation_config)
        described = {"name": path.resolve().name, "task": self.task, "parameters": self._count_params()}
        cards.write_card(path, {**self.card, **described, **(card or {})}, names)
        return path

    def export(
        self,
        folder: StrPath,
        *,
        format: str = "onnx",
        quantize: str | None = None,
        tolerance: float | None = None,
        log: Log | None = None,
    ) -> pathlib.Path:
        """Write the task for another runtime: model files, tokenizer, config.json and a certificate.

        The models as they are now, with any adapter, are run on synthetic inputs on this backend, and then in the
        runtime: if that gives other numbers, nothing is written. `zoo.export` compares with a preset's own parity
        records instead.

        Args:
            folder: where it goes; an export that is there is replaced, and anything else is an error.
            format: "onnx", "openvino", "litert", "saved_model" or "torch".
            quantize: "int8", "int4" or "float16" for smaller ONNX files; None for float32.
            tolerance: the largest difference that passes, as a fraction of the largest output (or of 1, if that is
                larger); 1e-4, or that of the quantization, if None.
            log: function that takes a line for each result.

        Returns:
            pathlib.Path of the folder; `zoo.verify` takes it.

        Raises:
            UserError: if the format is unknown, a package is missing, the folder cannot be written to, a model holds a
                layer or operation that cannot be exported, or a difference is over the tolerance.
        """
        return self._export(folder, {}, folder_format=format, quantize=quantize, tolerance=tolerance, log=log)

    def _export(self, folder, records, *, folder_format, quantize, **options):
        """`export` with the parity records of a preset, {name of a model: `zoo.parity.records.ParityRecord`}."""
        from zoo.exporters.export_folder import check_export, write_export

        check_export(folder, folder_format, quantize)
        options |= {"folder_format": folder_format, "quantize": quantize}
        return write_export(folder, self._export_plan(), records=records, **options)

    def _export_plan(self) -> ExportPlan:
        """What an export of this task consists of."""
        raise NotImplementedError

    def _export_config(self, **more):
        """What config.json says of every task, and more."""
        described = {"name": self.card.get("name", ""), "task": self.task, "generation_config": self._settings()}
        return described | more

    def _save_files(self, folder):
        """Write the model and the tokenizer; returns the names of the files."""
        model_files.save_model(self.model, folder / cards.MODEL_FILE)
        if self.tokenizer is None:
            return [cards.MODEL_FILE]
        self._save_tokenizer(folder / cards.TOKENIZER_FILE)
        return [cards.MODEL_FILE, cards.TOKENIZER_FILE]

    def _save_tokenizer(self, path):
        self.tokenizer.save(str(path))

    def _count_params(self):
        return self.model.count_params()

    # ------------------------------------------------------------------------------------------------------ settings

    def _settings(self, **arguments: Any) -> dict[str, Any]:
        """{name: the argument, else what the preset's generation_config says, else the class's default}.

        An argument of None counts as not given. All names of `DEFAULTS` are in the result.
        """
        layers = arguments, self.generation_config, self.DEFAULTS
        return {
            name: next((layer[name] for layer in layers if layer.get(name) is not None), None)
            for name in {**self.DEFAULTS, **arguments}
        }

    # ------------------------------------------------------------------------------------------- one item, or a list

    def _is_item(self, value: object) -> bool:
        """Whether a value is one item, not a batch of them."""
        return isinstance(value, str)

    def _map(self, function: Callable[[list[Any], int], list[Any]], items: Any, batch_size: int) -> Any:
        """Apply a function to one item or a list of them, `batch_size` at a time.

        Args:
            function: of a list of items and the index of the first, gives a list of as many results.
            items: one item, or an iterable of items.
            batch_size: most items of one call; changes speed and memory, never results.

        Returns:
            one result for one item, else a list.

        Raises:
            UserError: if `batch_size` is not a positive integer, or an item is none.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size must be a positive integer, got {batch_size!r}.")
        if self._is_item(items):
            return function([items], 0)[0]
        try:
            items = list(items)
        except TypeError:
            raise UserError(f"{type(self).__name__} takes one item or a list of them, got {items!r}.") from None
        for item in items:
            if not self._is_item(item):
                raise UserError(f"{type(self).__name__} takes one item or a list of them, got {item!r} in the list.")
        results = []
        for first in range(0, len(items), batch_size):
            results += function(items[first : first + batch_size], first)
        return results

    @staticmethod
    def _seed(seed: int | None) -> int:
        """A seed from 0 up: the one given, or a fresh one for None. Item i of a batch uses seed + i.

        Raises:
            UserError: if it is negative or no integer.
        """
        if seed is None:
            import secrets

            return secrets.randbits(31)
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
            raise UserError(f"seed must be an integer from 0 up, or None for a fresh one, got {seed!r}.")
        return int(seed)
