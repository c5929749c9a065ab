"""The README.md of a published preset: a model card in the format of the Hugging Face Hub, written from card.json.

Format: https://huggingface.co/docs/hub/model-cards. YAML between two lines of dashes (license, library_name,
pipeline_tag, tags, language, model-index with the scores), then Markdown.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from zoo.io import cards
from zoo.tasks.base import TASK_CLASSES
from zoo.typing import StrPath

README_FILE = "README.md"
# Identifiers of https://huggingface.co/docs/hub/repositories-licenses; what is none of them is "other" with its name.
LICENSES = frozenset(
    "apache-2.0 mit openrail creativeml-openrail-m bigscience-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd "
    "bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc mpl-2.0 "
    "odc-by odbl osl-3.0 postgresql unlicense wtfpl zlib".split()
)
# {key of the card: (the Hub's name of the metric, what it is)}.
METRICS = {
    "test_accuracy": ("accuracy", "test accuracy"),
    "test_loss": ("loss", "test loss, nats"),
    "test_perplexity": ("perplexity", "test perplexity, per token"),
    "test_bits_per_character": ("bits_per_character", "test, bits per character"),
    "test_bleu_beam_1": ("bleu", "test BLEU, greedy"),
    "test_bleu_beam_5": ("bleu", "test BLEU, 5 beams"),
    "test_moses_bleu_beam_5": ("bleu", "test BLEU, 5 beams, lower-cased, tokens of Moses"),
}
# {key of the scores of a latent diffusion: what it is}.
PROMPTS = {
    "seen": "class and colors as prompted, trained combinations",
    "held_out": "class and colors as prompted, held-out combinations",
}
_CALLS = {
    "image-classification": 'classify("photo.png", top_k=3)',
    "text-generation": 'generate("Once ", max_new_tokens=100)',
    "translation": 'translate("…")',
    "text-to-image": 'generate("a red seven on white")',
}


def model_card(card: Mapping[str, Any], folder: StrPath, *, repository: str | None = None) -> str:
    """README.md of a preset.

    Args:
        card: of the preset, as `zoo.io.cards.read_card` gives it, with "license".
        folder: where the preset is; its name stands for it where there is no repository.
        repository: "owner/name" on the Hub.

    Returns:
        the text.
    """
    import huggingface_hub

    scores = metrics(card)
    dataset = str(card.get("dataset", "unknown"))
    results = [
        huggingface_hub.EvalResult(
            task_type=card["task"],
            dataset_type=_slug(dataset),
            dataset_name=dataset,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in scores
    ]
    licensed: dict[str, Any] = {**license_fields(card["license"])}
    languages = [card[key] for key in ("source_lang", "target_lang") if key in card]
    data = huggingface_hub.ModelCardData(
        **licensed,
        library_name="keras",
        pipeline_tag=card["task"],
        tags=["keras", "keras-model-zoo"],
        language=languages or None,
        model_name=card["name"],
        eval_results=results or None,
        ignore_metadata_errors=False,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(card, folder, repository, scores)}"


def metrics(card: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """The scores of a card.

    Args:
        card: of a preset.

    Returns:
        list of (the Hub's name of the metric, what it is, value).
    """
    found = [(kind, name, card[key]) for key, (kind, name) in METRICS.items() if key in card]
    scores = card.get("scores") or {}
    return found + [("accuracy", name, scores[key]["all"]) for key, name in PROMPTS.items() if key in scores]


def license_fields(text: str) -> dict[str, str]:
    """The license in the Hub's words.

    Args:
        text: as the user named it.

    Returns:
        {"license": an identifier of the Hub}, or "other" with "license_name".
    """
    identifier = re.sub(r"[\s_]+", "-", text.strip().lower())
    if identifier in LICENSES:
        return {"license": identifier}
    return {"license": "other", "license_name": _slug(text)}


def _slug(text):
    return re.sub(r"[^\w.-]+", "-", text.strip().lower()).strip("-") or "unknown"


def _body(card, folder, repository, scores):
    """The Markdown: use, results, training, files, licenses."""
    where = f"hf://{repository}" if repository else pathlib.Path(folder).name
    (_, task), call = TASK_CLASSES[card["task"]], _CALLS[card["task"]]
    versions = ", ".join(f"{name} {version}" for name, version in (card.get("versions") or {}).items())
    trained = {
        "data": card.get("dataset"),
        "sha256 of the data": card.get("data_sha256"),
        "started from": card.get("init_from"),
        "seed": card.get("seed"),
        "backend": card.get("backend"),
        "versions": versions,
        "machine": card.get("machine"),
    }
    parts = [
        f"# {card['name']}",
        f"A model of the Keras Model Zoo for {card['task'].replace('-', ' ')}, on TensorFlow, JAX and PyTorch: "
        f"{card['parameters']:,} parameters.",
        f"Input: {card['input']}. Output: {card['output']}.",
        "## Use",
        f'```python\nimport zoo\n\nprint(zoo.{task}.from_preset("{where}").{call})\n```',
        f"Each file is checked against the sha256 in `{cards.CARD_FILE}`; `zoo verify {where}` compares the outputs "
        "with the parity record.",
        "## Results" if scores else "",
        _table(("metric", "value"), [(name, f"{value:.6g}") for _, name, value in scores]) if scores else "",
        "## Training",
        f"```bash\n{card['command']}\n```",
        _table(("", ""), [(key, f"{value}") for key, value in trained.items() if value not in (None, "")]),
        "## Files",
        _table(("file", "bytes", "sha256"), [(n, e["bytes"], f"`{e['sha256']}`") for n, e in card["files"].items()]),
        "## License",
        f"Model: {card['license']}. Training data: {card['data_license']}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)
