"""Evaluation of a trained model on its test set: figures, a text report and pictures in a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.data.batches import PrefetchedBatches
from zoo.errors import UserError, did_you_mean
from zoo.evaluation import classification, language, translation
from zoo.fast_paths.layers import use_fast_paths
from zoo.io import files
from zoo.models.rnn_language_model import copy_weights, infer_config, rnn_language_model
from zoo.tokenizers.text import encode
from zoo.typing import StrPath

if TYPE_CHECKING:
    import numpy.typing as npt
    import tokenizers

    from zoo.data import ImageDataset, ImageFolder, PairDataset, TextDataset
    from zoo.tasks.translator import Translator


def evaluate_classifier(
    model: keras.Model,
    dataset: ImageDataset | ImageFolder,
    folder: StrPath,
    *,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluate on the test images, or the first `limit`.

    Args:
        model: an image classifier, from raw images (N, H, W, C) to logits (N, K).
        dataset: `zoo.data.ImageDataset` or `zoo.data.ImageFolder`.
        folder: where report.txt, confusion_matrix.png and worst_mistakes.png go.
        limit: most images; None for all.
        class_names: what the model's classes are called, which must be those of the data set, in any order; None for
            those of the data set in their order.

    Returns:
        dict of the metrics.

    Raises:
        UserError: if the model does not fit the data set.
    """
    channels, num_classes = dataset.x_test.shape[-1], len(dataset.class_names)
    if (model.input_shape[-1], model.output_shape[-1]) != (channels, num_classes):
        raise UserError(
            f"{model.name} maps {model.input_shape} to {model.output_shape}, but {dataset.name} needs (batch, height, "
            f"width, {channels}) to (batch, {num_classes}): this is a model of another architecture."
        )
    if class_names is not None and sorted(class_names) != sorted(dataset.class_names):
        unknown = next((name for name in dataset.class_names if name not in class_names), "")
        raise UserError(
            f"{model.name} knows no class {unknown!r}, which {dataset.name} has: evaluate it on data of its own "
            f"classes, or fine-tune it with --init-from and --new-head.{did_you_mean(unknown, class_names)}"
        )
    columns = None if class_names is None else [list(class_names).index(name) for name in dataset.class_names]
    folder = files.prepare_folder(folder)
    images, labels = dataset.x_test[:limit], dataset.y_test[:limit]
    use_fast_paths(model)
    if not isinstance(images, np.ndarray):  # files: decoded batch by batch
        images_in_batches = PrefetchedBatches(images, labels, batch_size=250, seed=None)
        logits = np.asarray(model.predict(images_in_batches, verbose=0))
    else:
        logits = np.asarray(model.predict(images, batch_size=250, verbose=0))
    if columns is not None:
        logits = logits[:, columns]
    scores = classification.scores(labels, logits)
    report = classification.format_report(labels, logits, dataset.class_names)
    print(f"\n{report}\nTest loss {scores['loss']:.4f}, test accuracy {scores['accuracy']:.2%}", flush=True)
    files.write_text(folder / "report.txt", report)
    classification.plot_confusion_matrix(folder / "confusion_matrix.png", labels, logits, dataset.class_names)
    classification.plot_worst_mistakes(folder / "worst_mistakes.png", images, labels, logits, dataset.class_names)
    return {
        "dataset": dataset.name,
        "data_sha256": dataset.fingerprint(),
        "parameters": model.count_params(),
        "test_loss": scores["loss"],
        "test_accuracy": scores["accuracy"],
        "test_images": len(labels),
        "class_names": list(dataset.class_names),
    }


def evaluate_language_model(
    model: keras.Model, tokenizer: tokenizers.Tokenizer, dataset: TextDataset, folder: StrPath
) -> dict[str, Any]:
    """Perplexity and bits per character on the validation and test splits.

    Args:
        model: a recurrent language model.
        tokenizer: the one it was trained with.
        dataset: `zoo.data.TextDataset`.
        folder: where report.txt goes.

    Returns:
        dict of the metrics.

    Raises:
        UserError: if a split is too short.
    """
    folder = files.prepare_folder(folder)
    metrics = {"parameters": model.count_params(), "dataset": dataset.name, "data_sha256": dataset.fingerprint()}
    for split in ("validation", "test"):
        text = dataset.split(split)
        ids = encode(tokenizer, text)
        if len(ids) < 2:
            raise UserError(f"The {split} part of the text holds {len(ids)} tokens: give a longer text.")
        scores = language.scores(token_nll(model, ids), num_characters=len(text) - len(tokenizer.decode(ids[:1])))
        metrics |= {f"{split}_{key}": value for key, value in scores.items()}
    report = language.format_report(metrics)
    print("\n" + report, flush=True)
    files.write_text(folder / "report.txt", report + "\n")
    return metrics


def token_nll(model: keras.Model, ids: npt.ArrayLike, *, sequence_length: int = 64) -> np.ndarray:
    """Negative log-likelihood of each token given all tokens before it, in nats.

    The text is read once from start to end with carried states, so that the result does not depend on how it is cut.

    Args:
        model: a recurrent language model.
        ids: token ids (N,), at least 2.
        sequence_length: tokens in one call of the model.

    Returns:
        float64 array (N - 1,).
    """
    stateful = rnn_language_model(**infer_config(model), stateful_batch_size=1)
    copy_weights(model, stateful)
    use_fast_paths(stateful)
    ids, losses = np.asarray(ids, np.int32), []
    for start in range(0, len(ids) - 1, sequence_length):
        inputs, targets = ids[start : start + sequence_length], ids[start + 1 : start + sequence_length + 1]
        # The last part is padded: what follows a token changes nothing, and a backend compiles for one length.
        padded = np.pad(inputs, (0, sequence_length - len(inputs)))[None]
        logits = stateful.predict_on_batch(padded)[0, : len(targets)]  # (T, V)
        log_normalizer = keras.ops.convert_to_numpy(keras.ops.logsumexp(logits, axis=-1))
        losses.append(log_normalizer - logits[np.arange(len(targets)), targets])
    return np.concatenate(losses).astype(np.float64)


def evaluate_translator(translator: Translator, dataset: PairDataset, folder: StrPath) -> dict[str, Any]:
    """BLEU on the test pairs, greedy and with 5 beams.

    Args:
        translator: `zoo.tasks.translator.Translator`.
        dataset: `zoo.data.PairDataset`.
        folder: where report.txt, translations.txt and attention.png go.

    Returns:
        dict of the metrics.
    """
    folder = files.prepare_folder(folder)
    sources, references = (list(side) for side in zip(*dataset.test))
    metrics = {
        "parameters": translator.model.count_params(),
        "dataset": dataset.name,
        "data_sha256": dataset.fingerprint(),
        "source_lang": dataset.source_lang,
        "target_lang": dataset.target_lang,
        "test_pairs": len(sources),
    }
    for num_beams in (1, 5):
        start_time = time.perf_counter()
        translations = translator.translate(sources, num_beams=num_beams)
        seconds = time.perf_counter() - start_time
        exact = float(np.mean([a == b for a, b in zip(translations, references)]))
        metrics[f"test_bleu_beam_{num_beams}"], metrics["signature"] = translation.bleu(translations, references)
        metrics[f"test_exact_beam_{num_beams}"] = exact
        metrics[f"sentences_per_second_beam_{num_beams}"] = round(len(sources) / seconds, 1)
    metrics["test_bleu_beam_5_confidence"] = translation.bleu_confidence(translations, references)
    metrics["test_moses_bleu_beam_5"] = translation.moses_bleu(translations, references, dataset.target_lang)
    report = translation.format_report(metrics, list(zip(sources, references, translations)))
    print("\n" + report, flush=True)
    files.write_text(folder / "report.txt", report + "\n")
    files.write_text(folder / "translations.txt", "\n".join(translations) + "\n")
    weights = translator.cross_attention_weights(sources[0], translations[0])
    translation.plot_attention(folder / "attention.png", *weights)
    return metrics
