"""How good a language model is, as text and PNG: nats a token, perplexity, bits a character."""

import math

import numpy as np
from matplotlib.figure import Figure

from zoo.io import files


def scores(losses, *, characters):
    """Figures of a text from the negative log-likelihood of its tokens.

    Args:
        losses: nats of each token (N,).
        characters: how many characters those tokens stand for.

    Returns:
        {"loss": mean nats a token, "perplexity": exp of it, "bits_per_character", "tokens": N}. Bits a character
        compare models with different tokens; where a word-level model says <unk>, they leave out how it is spelt.
    """
    losses = np.asarray(losses, np.float64)
    return {
        "loss": float(losses.mean()),
        "perplexity": math.exp(losses.mean()),
        "bits_per_character": float(losses.sum() / math.log(2) / characters),
        "tokens": len(losses),
    }


def text_report(metrics):
    """A small table of the validation and test figures."""
    lines = [f"{'':12}{'nats a token':>14}{'perplexity':>12}{'bits a character':>18}{'tokens':>10}"]
    for part in ("validation", "test"):
        loss, perplexity, bits, tokens = (
            metrics[f"{part}_{key}"] for key in ("loss", "perplexity", "bits_per_character", "tokens")
        )
        lines.append(f"{part:12}{loss:14.4f}{perplexity:12.3f}{bits:18.4f}{tokens:10,}")
    return "\n".join(lines)


def save_training_curves(path, history):
    """PNG of the loss by epoch, training and validation, with the best epoch marked, from the rows of `history.csv`."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training (with dropout)"), ("val_loss", "validation")):
        axes.plot(epochs, [row[key] for row in history], marker="o", ms=4, label=label)
    best = min(history, key=lambda row: row["val_loss"])
    axes.annotate(
        f"{best['val_loss']:.4f}",
        (best["epoch"], best["val_loss"]),
        textcoords="offset points",
        xytext=(0, -14),
        ha="center",
        fontsize=8,
    )
    axes.set(xlabel="epoch", ylabel="nats a token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
