"""The table of speed: what benchmarks record, and what is made of it."""

import argparse
import json

import pytest

from benchmarks import rows, table

pytestmark = pytest.mark.once
SURROUNDINGS = {"machine": {"processor": "CPU X", "vector_units": ["avx2"], "cores": 2, "threads": 2}}


def write(folder, row, date, **content):
    run = {"row": row, "date": date} | SURROUNDINGS | content
    (folder / f"{row}.{date}.json").write_text(json.dumps(run))


def cells(text, start):
    """The cells of the line of a table that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_speed_is_the_peer_over_the_zoo_round_by_round(tmp_path):
    write(tmp_path, "cnn_training", "2026-12-01", results={"pytorch": [4, 6, 8], "zoo jax": [2, 2, 2]})
    write(tmp_path, "cnn_training", "2026-12-03", results={"pytorch": [2.5], "zoo jax": [2], "zoo torch": [2.5]})
    text = table.table(tmp_path)
    # 2, 3, 4 and 1.25: the median is 2.5; the wanted 1.6 makes it bold
    assert cells(text, "CNN training | PyTorch, eager")[2:] == [
        *("–", "**2.50** (1.25–4.00)", "1.00", "≥ 1.6, in every run", "4 in 2 runs, 2026-12-01 to 2026-12-03")
    ]
    assert cells(text, "CNN training | PyTorch, `torch.compile`")[2] == table.NOT_MEASURED
    assert "Machines: CPU X, 2 cores, 2 threads, avx2 (2026-12-01, 2026-12-03)." in text


def test_the_fastest_of_several_peers_counts(tmp_path):
    results = {"pytorch": [4, 1], "pytorch-cell": [2, 3], "zoo tensorflow": [1, 2]}
    write(tmp_path, "gru_generation_256", "2026-12-01", results=results)
    assert cells(table.table(tmp_path), "GRU generation, 256")[2] == "**1.25** (0.50–2.00)"


def test_costs_and_values_are_better_below_the_bound(tmp_path):
    one = {"s": 3, "GB above weights": 0.25}
    results = {f"zoo {backend}": [one] for backend in table.BACKENDS}
    results |= {"zeromodels jax": [{"s": 6}], "matmul jax": [{"s": 2}], "matmul torch": [{"s": 1}]}
    write(tmp_path, "unet_sd15", "2026-12-01", results=results)
    text = table.table(tmp_path)
    assert cells(text, "SD 1.5 U-Net, 32x32 latents | Zero")[2:5] == ["–", "**2.00**", "–"]
    assert cells(text, "SD 1.5 U-Net, over")[2:6] == ["3.00", "3.00", "3.00", "≤ 1.6, the best ≤ 1.3"]
    assert cells(text, "SD 1.5 U-Net, memory")[2:6] == ["**0.25**", "**0.25**", "**0.25**", "≤ 0.5 GB"]


def test_transcribed_figures_stand_only_where_nothing_was_measured(tmp_path):
    old = {"rounds": 3, "figures": {"pytorch": {"jax": [1.7, 1.6, 1.8]}}}
    write(tmp_path, "gru_training_256", "2026-11-01", **old)
    write(tmp_path, "gru_training_512", "2026-11-01", **old)
    write(tmp_path, "gru_training_512", "2026-12-01", results={"pytorch": [3], "zoo jax": [2]})
    text = table.table(tmp_path)
    assert cells(text, "GRU training, 256")[3:] == ["1.70 (1.60–1.80)", "–", "≥ 1.05", "3 in 1 run, 2026-11-01 †"]
    assert cells(text, "GRU training, 512")[3] == "**1.50**" and "†" in text.splitlines()[-1]


def test_every_line_is_of_a_row_that_a_benchmark_records():
    """And every recorded file is of a line: a row that is spelled otherwise would be left out in silence."""
    known = {line.row for line in table.LINES}
    assert set(rows.read_runs()) <= known
    for row, runs in rows.read_runs().items():
        for run in runs:
            assert run["machine"]["processor"] and run["date"] and ("results" in run or run["rounds"]), row


def test_record_writes_what_was_measured_and_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    parser = argparse.ArgumentParser()
    rows.add_record_flag(parser)
    results = {"pytorch": [2.0, 2.0], "zoo torch": [1.0, 4.0]}
    arguments = {"workload": "a CNN", "unit": "s/step"}
    assert rows.record(parser.parse_args([]), "cnn_training", results, **arguments) is None
    path = rows.record(parser.parse_args(["--record"]), "cnn_training", results, **arguments)
    ((run,),) = rows.read_runs(tmp_path).values()
    assert run == json.loads(path.read_text()) and run["results"] == results and run["machine"]["cores"] >= 1
    assert {"keras", "torch", "python"} <= set(run["versions"]) and path.name in capsys.readouterr().out
    assert cells(table.table(tmp_path), "CNN training | PyTorch, eager")[4] == "1.25 (0.50–2.00)"
