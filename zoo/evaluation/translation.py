"""Evaluation of translations: BLEU, samples; plots of the training and of attention weights."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import require
from zoo.evaluation.figures import new_figure, save_figure, set_epoch_axis
from zoo.typing import StrPath


def bleu(translations: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU: Papineni et al. 2002 as sacreBLEU computes it (Post 2018), cased, 13a tokens.

    Args:
        translations: N texts.
        references: N texts.

    Returns:
        (BLEU from 0 to 100, sacreBLEU's signature).
    """
    require("sacrebleu", what="BLEU")
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return float(score), str(metric.get_signature())


def bleu_confidence(translations: Sequence[str], references: Sequence[str]) -> float:
    """Half the width of the 95 % confidence interval of `bleu`: 1,000 bootstrap samples (Koehn 2004), as sacreBLEU's.

    Args:
        translations: N texts.
        references: N texts.

    Returns:
        a difference of BLEU, on the scale from 0 to 100.
    """
    require("sacrebleu", what="BLEU")
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(translations), [list(references)], n_bootstrap=1000)
    described = json.loads(score.format(is_json=True, signature=metric.get_signature().format()))
    return float(described.get("confidence_var", 0.0))  # left out where no sample of the texts has a score


def moses_bleu(translations: Sequence[str], references: Sequence[str], language: str) -> float:
    """BLEU of lower-cased texts, split as Moses does it: the convention of many papers on Multi30k.

    Among them Wu et al. 2021, "Good for Misconceived Reasons" (github.com/LividWo/Revisit-MMT: 41.02 from English to
    German on test2016), whose tokenized references this reproduces.

    Args:
        translations: N texts.
        references: N texts.
        language: of both, e.g. "de".

    Returns:
        BLEU from 0 to 100.
    """
    require("sacrebleu", "sacremoses", what="BLEU")
    from sacrebleu.metrics import BLEU

    tokenized = [moses_tokens(texts, language) for texts in (translations, references)]
    # force: no warning that the texts are tokenized
    return float(
        BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(tokenized[0], [tokenized[1]]).score
    )


def moses_tokens(texts: Sequence[str], language: str) -> list[str]:
    """Lower-case texts, normalize their punctuation and split them into the tokens of Moses, joined by spaces.

    Args:
        texts: N texts.
        language: of the texts, e.g. "de"; of an unknown one the rules for English are used.

    Returns:
        N texts.
    """
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normalizer, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)
    return [tokenizer.tokenize(normalizer.normalize(text.lower()), return_str=True) for text in texts]


def format_report(metrics: Mapping[str, Any], triples: Sequence[tuple[str, str, str]], count: int = 5) -> str:
    """A table of scores, sacreBLEU's signature, and sample translations.

    Args:
        metrics: test_bleu_beam_N, test_exact_beam_N and sentences_per_second_beam_N for some N, signature,
            test_bleu_beam_5_confidence and test_moses_bleu_beam_5.
        triples: list of (source, reference, translation).
        count: number of samples, spread evenly over the triples.

    Returns:
        the report.
    """
    lines = [f"{'':8}{'BLEU':>8}{'exact':>9}{'sentences/s':>14}"]
    for key in (key for key in metrics if re.fullmatch(r"test_bleu_beam_\d+", key)):
        name = key.removeprefix("test_bleu_")
        exact, speed = metrics[f"test_exact_{name}"], metrics[f"sentences_per_second_{name}"]
        lines.append(f"{name.replace('_', ' '):8}{metrics[key]:8.2f}{exact:9.1%}{speed:14,.1f}")
    lines.append(metrics["signature"])
    lines.append(
        f"beam 5: 95 % confidence ± {metrics['test_bleu_beam_5_confidence']:.2f}; lower-cased, tokens of Moses: "
        f"{metrics['test_moses_bleu_beam_5']:.2f}"
    )
    for index in np.unique(np.linspace(0, len(triples) - 1, count).astype(int)):
        lines.append("")
        for role, text in zip(("source", "reference", "translation"), triples[index]):
            lines += textwrap.wrap(f"  {role:11} {text}", 80, subsequent_indent=" " * 14, break_on_hyphens=False)
    return "\n".join(lines)


def plot_training_curves(path: StrPath, history: list[dict[str, Any]]) -> None:
    """Plot the loss and the validation BLEU by epoch as PNG.

    Args:
        path: PNG file.
        history: rows of `history.csv`, dicts.
    """
    epochs = [row["epoch"] for row in history]
    figure = new_figure(8, 3.6)
    loss, score = figure.subplots(1, 2)
    for key, label in (("loss", "training (with dropout)"), ("val_loss", "validation")):
        loss.plot(epochs, [row[key] for row in history], marker="o", ms=3, label=label)
    loss.set(ylabel="nats per token, smoothed labels")
    loss.legend(fontsize=8)
    score.plot(epochs, [row["val_bleu"] for row in history], marker="o", ms=3, color="C2")
    for axes in (loss, score):
        set_epoch_axis(axes, history)
    score.set(ylabel="validation BLEU, greedy", ylim=(0, 1.1 * max(1, *(row["val_bleu"] for row in history))))
    save_figure(figure, path)


def plot_attention(
    path: StrPath, weights: Mapping[str, np.ndarray], source_pieces: Sequence[str], target_pieces: Sequence[str]
) -> None:
    """Plot attention weights as PNG: the mean over the heads of each layer.

    Args:
        path: PNG file.
        weights: {name of an attention layer: (N, T, S)} with N heads, T target and S source tokens.
        source_pieces: texts of the S source tokens.
        target_pieces: texts of the T target tokens.
    """
    columns = min(len(weights), 3)
    rows = -(-len(weights) // columns)
    side = 0.19 * max(len(source_pieces), len(target_pieces)) + 1.6
    figure = new_figure(side * columns, side * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, weight) in zip(grid, weights.items()):
        axes.imshow(weight.mean(axis=0), cmap="Blues", vmin=0, aspect="auto")
        axes.set_xticks(range(len(source_pieces)), source_pieces, rotation=90, fontsize=7)
        axes.set_yticks(range(len(target_pieces)), target_pieces, fontsize=7)
        axes.set_title(name.replace("_", " "), fontsize=8)
    for axes in list(figure.axes)[len(weights) :]:
        axes.axis("off")
    save_figure(figure, path)
