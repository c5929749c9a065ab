"""benchmarks/gpu.py on the CPU: a piece in its own process, what is said of pieces that fail, and all of --tiny."""

import json
import tarfile

import pytest

from benchmarks import gpu

pytestmark = pytest.mark.once
LSTM = {"part": 1, "kind": "recipe", "workload": "rnn_shakespeare, LSTM", "contender": "zoo", "backend": "torch"}
LSTM |= {"precision": "float32", "tiny": True, "name": "an LSTM"}


def main(*arguments):
    return gpu.main(gpu.parse_args([*map(str, arguments)]))


def test_pieces_fit_their_parts():
    for tiny in (False, True):
        pieces = gpu.pieces(gpu.BACKENDS, tiny)
        assert {piece["part"] for piece in pieces} == set(gpu.PARTS)
        names = [(piece["part"], piece["name"]) for piece in pieces]
        assert len(set(names)) == len(names)
        assert {piece["precision"] for piece in pieces} == set(gpu.PRECISIONS)
    recipes = {piece["workload"] for piece in pieces if piece["kind"] == "recipe"}
    files = {path.stem for path in (gpu.ROOT / "recipes").glob("[a-z]*.py")}
    parts = {name for name in files if name.startswith("diffusion_")} - {"diffusion_captions"}  # which runs them
    assert {name.split(",")[0].split(" and ")[0] for name in recipes} == files - parts
    assert json.loads(gpu.LOSSES.read_text())["losses"].keys() == recipes


@pytest.mark.heavy
def test_a_part_goes_on_after_a_piece_that_fails(tmp_path, capsys):
    """The losses of a recipe in a process of its own are those of the records; a broken piece is named."""
    broken = LSTM | {"workload": "rnn_shakespeare, QRNN", "name": "a QRNN"}
    rows = gpu.run_part(1, [broken, LSTM], minutes=5, jobs=2)
    assert "KeyError" in rows[0]["error"] and "a QRNN" in capsys.readouterr().out
    for row in rows[1:]:
        assert "error" not in row and row["largest_difference"] <= 5e-3 and len(row["losses"]["loss"]) == 10
    text = gpu.table(rows)
    assert text.splitlines()[2].startswith("| rnn_shakespeare, LSTM | torch | float32 |")
    assert text.splitlines()[-1].startswith("- FAILED: a QRNN: KeyError")


def test_losses_that_differ_are_an_error():
    known = json.loads(gpu.LOSSES.read_text())["losses"][LSTM["workload"]]
    assert gpu.check_losses(LSTM | {"losses": known})["largest_difference"] == 0
    moved = {name: [value * 1.01 for value in values] for name, values in known.items()}
    assert "differ from the CPU's by 1.0e-02" in gpu.check_losses(LSTM | {"losses": moved})["error"]
    assert "error" not in gpu.check_losses(LSTM | {"losses": moved, "precision": "bfloat16"})
    nothing = {name: [float("nan")] * len(values) for name, values in known.items()}
    assert "differ" in gpu.check_losses(LSTM | {"losses": nothing})["error"]
    assert "do not fit" in gpu.check_losses(LSTM | {"losses": {"loss": [1.0]}})["error"]


def test_time_that_is_up_is_said():
    (row,) = gpu.run_part(1, [LSTM], minutes=0, jobs=1)
    assert row["error"] == "not run: the time was up"


def test_the_table_compares_with_both_peers_in_the_same_precision(tmp_path, capsys):
    common = {"part": 2, "kind": "train", "workload": "CNN", "backend": "torch", "unit": "images", "peak_gb": 1.5}
    rows = [
        common | {"contender": contender, "precision": precision, "ms": ms, "per_second": 1000 / ms, "backend": backend}
        for contender, backend, precision, ms in (
            ("zoo", "jax", "float32", 4),
            ("pytorch", "torch", "float32", 6),
            ("pytorch-compiled", "torch", "float32", 5),
            ("zoo", "jax", "bfloat16", 2),
            ("pytorch", "torch", "bfloat16", 1),
        )
    ]
    (tmp_path / "1.json").write_text(json.dumps({"rows": rows[:3]}))
    (tmp_path / "2.json").write_text(json.dumps({"rows": rows[3:]}))
    main("--table", tmp_path / "1.json", tmp_path / "2.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| train CNN | zoo jax | float32 | 250.0 images/s | 4.00 | 1.50 | 1.50 | 1.25 |"
    assert lines[5] == "| train CNN | zoo jax | bfloat16 | 500.0 images/s | 2.00 | 1.50 | 0.50 |  |"


def test_what_is_carried_is_small_and_whole(tmp_path):
    main("--pack", tmp_path / "carry.tar")
    with tarfile.open(tmp_path / "carry.tar") as archive:
        names = set(archive.getnames())
    assert {"zoo/__init__.py", "recipes/cnn_mnist.py", "benchmarks/gpu.py", "benchmarks/gpu_losses.json"} <= names
    assert not any("__pycache__" in name or name.startswith("saved_models") for name in names)
    assert (tmp_path / "carry.tar").stat().st_size < 10e6


@pytest.mark.heavy
@pytest.mark.slow
def test_all_parts_at_tiny_sizes(tmp_path):
    """About 20 minutes on two cores."""
    assert main("--tiny", "--minutes", "60", "--output", tmp_path / "tiny.json") == 0
    report = json.loads((tmp_path / "tiny.json").read_text())
    assert {row["part"] for row in report["rows"]} == set(gpu.PARTS)
    assert {one["backend"] for one in report["devices"]} == set(gpu.BACKENDS) and report["machine"]["processor"]
