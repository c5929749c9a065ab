"""The one table of speed beside peers, from the JSON files in `benchmarks/results` that benchmarks write with --record.

    python benchmarks/table.py            print it
    python docs/receipts.py               write it into docs/speed.md

A cell is the median, and in brackets the lowest and highest, over the rounds of all files of a row. It is bold where
the median reaches what is wanted. Where a row has no file of rounds, an older figure stands for it, never bold, with †:
`results/transcribed.json` holds those of docs/speed.md and of the issues, medians and ranges alone.
"""

import dataclasses
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import read_runs

BACKENDS = ("tensorflow", "jax", "torch")
NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
NOT_MEASURED = "not measured in this form"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        title: the workload, in words.
        row: name of the row in the JSON files.
        peer: the contender that the zoo is compared with, the fastest of a round where it ends with "*"; "{backend}"
            stands for the backend of the column. None for figures of the zoo alone.
        peer_name: the peer, in words.
        wanted: the bound, one for each of `BACKENDS` or for all, None for none; at least for a speed, else at most.
        metric: the number of a contender that counts, where a round gives several.
        kind: "speed": seconds of the peer over those of the zoo; "cost": the zoo's number over the peer's; "value": the
            zoo's number itself.
        unit: of a value.
        remark: said beside what is wanted.
    """

    title: str
    row: str
    peer: str | None
    peer_name: str
    wanted: float | tuple | None
    metric: str | None = None
    kind: str = "speed"
    unit: str = ""
    remark: str = ""

    def bound(self, backend):
        """What is wanted of a backend, or None."""
        return self.wanted[BACKENDS.index(backend)] if isinstance(self.wanted, tuple) else self.wanted

    def reached(self, backend, number):
        """Whether a number is what is wanted of a backend."""
        bound = self.bound(backend)
        return bound is not None and (number >= bound if self.kind == "speed" else number <= bound)

    def wanted_text(self):
        sign, unit = ("≥" if self.kind == "speed" else "≤"), f" {self.unit}" * bool(self.unit)
        bounds = [self.bound(backend) for backend in BACKENDS]
        if len(set(bounds)) == 1:
            text = f"{sign} {bounds[0]:g}{unit}" if bounds[0] is not None else ""
        else:
            text = f"{sign} " + " / ".join("–" if bound is None else f"{bound:g}" for bound in bounds) + unit
        return f"{text}{', ' * bool(text and self.remark)}{self.remark}"


EAGER, COMPILED, CLASS = "PyTorch, eager", "PyTorch, `torch.compile`", "diffusers' class, eager"
PIPELINE, ZEROMODELS = "diffusers' pipeline", "ZeroModels, same backend"
LSTM, GRU = (0.85, 0.85, 1.0), 1.05
LINES = (
    Line("CNN training", "cnn_training", "pytorch", EAGER, 1.6, remark="in every run"),
    Line("CNN training", "cnn_training", "pytorch-compiled", COMPILED, 1.0),
    Line("LSTM training, 256 units", "lstm_training_256", "pytorch", EAGER, LSTM),
    Line("LSTM training, 512 units", "lstm_training_512", "pytorch", EAGER, LSTM),
    Line("GRU training, 256 units", "gru_training_256", "pytorch", EAGER, GRU),
    Line("GRU training, 512 units", "gru_training_512", "pytorch", EAGER, GRU),
    Line("LSTM generation, 256 units", "lstm_generation_256", "pytorch*", "PyTorch, its fastest way", 1.0),
    Line("LSTM generation, 512 units", "lstm_generation_512", "pytorch*", "PyTorch, its fastest way", 1.0),
    Line("GRU generation, 256 units", "gru_generation_256", "pytorch*", "PyTorch, its fastest way", 1.0),
    Line("GRU generation, 512 units", "gru_generation_512", "pytorch*", "PyTorch, its fastest way", 1.0),
    Line("translation training, published size", "translation_training_published", "pytorch", EAGER, 1.0),
    Line("translation training, tiny", "translation_training_tiny", "pytorch", EAGER, 1.0),
    Line("translation, greedy, 32 sentences", "translation_1_beam_32", "transformers", "transformers", 1.5),
    Line("translation, 5 beams, 32 sentences", "translation_5_beams_32", "transformers", "transformers", 1.5),
    Line("translation, greedy, one sentence", "translation_1_beam_1", "transformers", "transformers", 1.5),
    Line("translation, 5 beams, one sentence", "translation_5_beams_1", "transformers", "transformers", 1.5),
    Line("denoiser training", "denoiser_training", "diffusers", CLASS, 1.0),
    Line("small drawing, 1 picture", "text_to_image_tiny_1", "diffusers", PIPELINE, 1.1, "next"),
    Line("small drawing, 8 pictures", "text_to_image_tiny_8", "diffusers", PIPELINE, 1.1, "next"),
    Line("small drawing, first picture", "text_to_image_tiny_1", None, "–", 1.5, "first", "value", "s"),
    Line("SD 1.5, 512x512, 2 steps", "text_to_image_sd15_1", "diffusers", PIPELINE, 1.0, "next"),
    Line("SD 1.5, peak memory", "text_to_image_sd15_1", "diffusers", PIPELINE, 1.1, "peak", "cost"),
    Line("SD 1.5, loading", "text_to_image_sd15_1", "diffusers", PIPELINE, 2.0, "load", "cost"),
    Line("SD 1.5 U-Net, 32x32 latents", "unet_sd15", "zeromodels {backend}", ZEROMODELS, 1.0, "s"),
    Line("SD 1.5 U-Net, 32x32 latents", "unet_sd15", "diffusers", CLASS, None, "s"),
    Line(
        *("SD 1.5 U-Net, over the arithmetic floor", "unet_sd15", "matmul*", "its products alone", 1.6, "s", "cost"),
        remark="the best ≤ 1.3",
    ),
    Line(
        *("SD 1.5 U-Net, memory above Keras and weights", "unet_sd15", None, "–", 0.5, "GB above weights", "value"),
        unit="GB",
    ),
    Line("SD 1.5 text encoder", "text_encoder_sd15", "zeromodels {backend}", ZEROMODELS, None, "s"),
    Line("SD 1.5 text encoder", "text_encoder_sd15", "diffusers", "transformers' class, eager", None, "s"),
    Line("SD 1.5 decoder, 32x32 latents", "decoder_sd15", "zeromodels {backend}", ZEROMODELS, None, "s"),
    Line("SD 1.5 decoder, 32x32 latents", "decoder_sd15", "diffusers", CLASS, None, "s"),
    Line(
        "translation training, published size",
        "translation_training_published",
        "keras-hub {backend}",
        "KerasHub's layers",
        None,
    ),
    *(
        Line(
            *(f"start of `zoo generate` beyond `import keras`, {what}", f"start_{what}", None, "–", (None, 0.5, 0.5)),
            *("beyond import keras", "value", "s"),
        )
        for what in ("text", "image")
    ),
)


def number(result, metric):
    """The number of a metric in what a round gave."""
    return result[metric] if isinstance(result, dict) else result


def rounds_of(line, run, backend):
    """The line's figure in each round of a run, [] where the run has not measured the zoo or the peer there."""
    results = run["results"]
    mine = [number(result, line.metric) for result in results.get(f"zoo {backend}", [])]
    if line.peer is None:
        return mine
    name = line.peer.format(backend=backend)
    names = [one for one in results if one.startswith(name[:-1])] if name.endswith("*") else [name]
    if not mine or any(one not in results for one in names) or not names:
        return []
    peers = [min(number(result, line.metric) for result in results_of) for results_of in zip(*map(results.get, names))]
    return [peer / own if line.kind == "speed" else own / peer for own, peer in zip(mine, peers)]


def figures(line, runs):
    """({backend: (median, lowest, highest)}, the runs they are of) of a line; transcribed runs only if no others."""
    measured = [run for run in runs if "results" in run]
    found, used = {}, []
    for backend in BACKENDS:
        values = {run["date"]: rounds_of(line, run, backend) for run in measured}
        rounds = [value for one in values.values() for value in one]
        if rounds:
            found[backend] = (statistics.median(rounds), min(rounds), max(rounds))
            used += [run for run in measured if values[run["date"]] and run not in used]
    if found:
        return found, used
    key = f"{line.peer or ''} {line.metric or ''}".strip()
    for run in reversed(runs):  # the newest transcribed
        if key in run.get("figures", {}):
            return {backend: tuple(three) for backend, three in run["figures"][key].items()}, [run]
    return {}, []


def day(run):
    return run["date"][:10]


def source(runs):
    """The column that says how many rounds, and when."""
    if not runs:
        return ""
    days = sorted({day(run) for run in runs})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    if "figures" in runs[0]:
        return f"{runs[0]['rounds']} in 1 run, {when} †"
    count = sum(len(next(iter(run["results"].values()))) for run in runs)
    return f"{count} in {len(runs)} run{'s' * (len(runs) > 1)}, {when}"


def machines(runs):
    """A sentence for each machine that the runs used: processor, vector units, threads, days."""
    found = {}
    for run in runs:
        one = run["machine"]
        units = ", ".join(one["vector_units"]) or "vector units not noted"
        words = f"{one['processor']}, {one['cores']} cores, {one['threads']} threads, {units}"
        found.setdefault(words, set()).add(day(run))
    return [f"{words} ({', '.join(sorted(days))})" for words, days in found.items()]


def table(folder=None):
    """The table in Markdown, with a sentence on the machines below it."""
    runs = read_runs(folder)
    lines = [
        "| workload | peer | TensorFlow | JAX | PyTorch | wanted | rounds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    everything = []
    for line in LINES:
        found, used = figures(line, runs.get(line.row, []))
        everything += [run for run in used if run not in everything]
        measured = bool(used) and "results" in used[0]
        cells = [cell(line, backend, found, measured) for backend in BACKENDS] if found else [NOT_MEASURED, "", ""]
        lines.append(f"| {' | '.join([line.title, line.peer_name, *cells, line.wanted_text(), source(used)])} |")
    lines += ["", f"Machines: {'; '.join(machines(everything))}."] if everything else []
    if any("figures" in run for run in everything):
        lines += ["† An older measurement, transcribed: it was not made in this form."]
    return "\n".join(lines)


def cell(line, backend, found, measured):
    if backend not in found:
        return "–"
    median, lowest, highest = found[backend]
    text = f"**{median:.2f}**" if measured and line.reached(backend, median) else f"{median:.2f}"
    return text if lowest == median == highest else f"{text} ({lowest:.2f}–{highest:.2f})"


if __name__ == "__main__":
    print(table())
