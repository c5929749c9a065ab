"""What users call: a model together with its tokenizer, settings and card.

ImageClassifier  images to classes
CausalLM         a prompt to the text that follows
Translator       sentences to sentences
TextToImage      a prompt to images
load_task        the class that a preset's card asks for
convert          published weights in other formats to presets
export           a preset or model to another runtime's format, with a certificate
"""

from __future__ import annotations

from zoo.errors import UserError
from zoo.presets import Preset, find_preset
from zoo.tasks.base import TASK_CLASSES, Task, task_class
from zoo.typing import StrPath


def load_task(
    preset: StrPath | Preset, *, revision: str | None = None, dtype: str | None = None, load_weights: bool = True
) -> Task:
    """Load a preset as the class that its card asks for.

    Args:
        preset: as in `zoo.tasks.base.Task.from_preset`.
        revision: branch, tag or commit of an "hf://" repository.
        dtype: dtype policy of the layers, e.g. "bfloat16"; as saved if None.
        load_weights: False for fresh initial weights.

    Returns:
        `ImageClassifier`, `CausalLM`, `Translator` or `TextToImage`.

    Raises:
        UserError: as `from_preset`, or if the card says no task.
    """
    found = find_preset(preset, revision=revision)
    if found.task not in TASK_CLASSES:
        says = f"says task {found.task!r}" if found.task else "says no task"
        names = ", ".join(f"zoo.{name}" for _, name in TASK_CLASSES.values())
        raise UserError(f"The card of {found.name} {says}: load it with one of {names}.")
    return task_class(found.task).from_preset(found, dtype=dtype, load_weights=load_weights)
