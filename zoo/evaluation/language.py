"""Evaluation of a language model: nats per token, perplexity, bits per character; plot of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.evaluation.figures import new_figure, save_figure, set_epoch_axis
from zoo.typing import StrPath

if TYPE_CHECKING:
    import numpy.typing as npt


def scores(token_nll: npt.ArrayLike, *, num_characters: int) -> dict[str, Any]:
    """Scores of a text from the negative log-likelihood of its tokens.

    Args:
        token_nll: nats of each token (N,).
        num_characters: number of characters of the tokens.

    Returns:
        {"loss": mean nats per token, "perplexity": exp of it, "bits_per_character", "tokens": N}. Bits per character
        compare models with different tokenizers; the spelling of the <unk> tokens of a word model is left out.
    """
    token_nll = np.asarray(token_nll, np.float64)
    return {
        "loss": float(token_nll.mean()),
        "perplexity": math.exp(token_nll.mean()),
        "bits_per_character": float(token_nll.sum() / math.log(2) / num_characters),
        "tokens": len(token_nll),
    }


def format_report(metrics: Mapping[str, Any]) -> str:
    """A table of the validation and test scores.

    Args:
        metrics: what `evaluate_language_model` returned.

    Returns:
        the table.
    """
    lines = [f"{'':12}{'nats/token':>14}{'perplexity':>12}{'bits/character':>18}{'tokens':>10}"]
    for split in ("validation", "test"):
        loss, perplexity, bits, tokens = (
            metrics[f"{split}_{key}"] for key in ("loss", "perplexity", "bits_per_character", "tokens")
        )
        lines.append(f"{split:12}{loss:14.4f}{perplexity:12.3f}{bits:18.4f}{tokens:10,}")
    return "\n".join(lines)


def plot_training_curves(path: StrPath, history: list[dict[str, Any]]) -> None:
    """Plot training and validation loss by epoch as PNG, the best epoch annotated.

    Args:
        path: PNG file.
        history: rows of `history.csv`, dicts.
    """
    epochs = [row["epoch"] for row in history]
    figure = new_figure(6.5, 3.8)
    axes = figure.add_subplot()
    for key, label in (("loss", "training (with dropout)"), ("val_loss", "validation")):
        axes.plot(epochs, [row[key] for row in history], marker="o", ms=4, label=label)
    best = min(history, key=lambda row: row["val_loss"])
    axes.annotate(
        f"{best['val_loss']:.4f}",
        (best["epoch"], best["val_loss"]),
        textcoords="offset points",
        xytext=(0, -13),
        ha="center",
        fontsize=8,
    )
    axes.set(ylabel="nats per token")
    set_epoch_axis(axes, history)
    axes.legend(fontsize=8)
    save_figure(figure, path)
