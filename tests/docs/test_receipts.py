"""The figures in README, docs/results.md and docs/speed.md are those of cards, docs/results and benchmarks/results."""

import json
import re
import shutil

import pytest

from docs import receipts

pytestmark = pytest.mark.once


def test_the_pages_say_what_their_sources_say():
    assert receipts.problems() == []


def test_every_card_is_in_the_results():
    cards = receipts.sources()["cards"]
    for template in ("readme_results.md", "results.md"):
        text = receipts.render(template)
        assert cards and all(f"`{name}`" in text for name in cards), template


def test_anchors_say_where_they_come_from():
    for name, anchor in receipts.sources()["anchors"].items():
        assert anchor["source"].startswith("https://") and anchor["convention"], name
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", anchor["read"]), name


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the pages and their sources."""
    for name in (*receipts.PAGES.values(), *(f"saved_models/{name}/card.json" for name in receipts.sources()["cards"])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((receipts.ROOT / name).read_bytes())
    shutil.copytree(receipts.ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    templates = tmp_path / "docs" / "results"
    templates.mkdir()
    for path in receipts.TEMPLATES.iterdir():
        (templates / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(receipts, "ROOT", tmp_path)
    monkeypatch.setattr(receipts, "TEMPLATES", templates)
    monkeypatch.setattr("sys.argv", ["receipts.py"])
    return tmp_path


def test_another_figure_in_a_page_or_a_card_is_seen(copy, monkeypatch, capsys):
    page, card = copy / "README.md", copy / "saved_models" / "cnn_mnist" / "card.json"
    accuracy = receipts.percent(json.loads(card.read_text("utf-8"))["test_accuracy"])
    page.write_text(page.read_text("utf-8").replace(f"**{accuracy}**", "**99.99 %**"), "utf-8")
    assert receipts.problems() == ["README.md differs from its sources: run python docs/receipts.py."]
    receipts.main()
    assert receipts.problems() == []

    card.write_text(json.dumps(json.loads(card.read_text("utf-8")) | {"test_accuracy": 0.5}), "utf-8")
    assert len(receipts.problems()) == 2  # README.md and docs/results.md
    monkeypatch.setattr("sys.argv", ["receipts.py", "--check"])
    assert receipts.main() == 1 and "README.md" in capsys.readouterr().out


def test_another_run_of_a_benchmark_is_seen(copy):
    (path,) = (copy / "benchmarks" / "results").glob("transcribed.json")
    run = {
        "row": "denoiser_training",
        "date": "2099-01-01",
        "machine": json.loads(path.read_text("utf-8"))[0]["machine"],
    }
    run["results"] = {"diffusers": [96.0], "zoo jax": [1.0]}
    (path.parent / "another.json").write_text(json.dumps(run), "utf-8")
    assert receipts.problems() == ["docs/speed.md differs from its sources: run python docs/receipts.py."]
    receipts.main()
    assert receipts.problems() == [] and "96.00" in (copy / "docs" / "speed.md").read_text("utf-8")


@pytest.mark.parametrize(
    "text", ["reached **98.1** %", "40.7 BLEU", "took 3 hours", "1,425 s", "1.2 nats", "up to 90%"]
)
def test_a_figure_in_a_template_is_seen(copy, text):
    template = copy / "docs" / "results" / "results.md"
    template.write_text(template.read_text("utf-8") + f"\n\nA run {text} in June.\n", "utf-8")
    (problem,) = [problem for problem in receipts.problems() if "states" in problem]
    assert problem.startswith("docs/results/results.md states ") and receipts.own_figures(text)


def test_words_that_are_no_figures():
    for text in ("test2016. BLEU as", "`--epochs 30`, 3 steps", "{{ run.test | percent }} of 10,000 images", "5 beams"):
        assert receipts.own_figures(text) == []
