"""Every bash and python block of the documentation runs as it stands, or says when it was last run.

The blocks of a page run in order in one folder, which has what the page names as the reader's own: a photo, a text, a
folder of published weights. Python blocks of a page share their names.
"""

import datetime
import importlib
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import write_verses
from tests.docs.blocks import PAGES, ROOT, blocks
from tests.parity.test_verify import run_child_here
from zoo.parity import verify

FIRST_COMMIT = datetime.date(2026, 11, 21)
# The README's tasks run in tests/cli/test_readme.py, CONTRIBUTING's in tests/docs/test_contributing.py.
ELSEWHERE = {"README.md": r"<!-- task: .*?<!-- end -->", "CONTRIBUTING.md": r".*"}
# Pages that run with --full only: the tasks run in tests/cli/test_readme.py too, the recipes in tests/recipes.
LONG_PAGES = [ROOT / "docs" / name for name in ("index.md", "guides/presets.md", "guides/text_to_image.md")]
CASES = [
    pytest.param(page, slow, id=f"{page.relative_to(ROOT)}{' (slow)' * slow}", marks=[pytest.mark.slow] * slow)
    for page in PAGES
    for slow in (False, True)
    if (slow and any(block.comment == "slow" for block in blocks(page)))
    or (slow == (page in LONG_PAGES) and blocks(page))
]
pytestmark = pytest.mark.once


def runnable(page):
    """The bash and python blocks of a page that are run here."""
    elsewhere = ELSEWHERE.get(str(page.relative_to(ROOT)), "(?!)")
    text = page.read_text(encoding="utf-8")
    lines = set()
    for match in re.finditer(elsewhere, text, re.DOTALL):
        lines |= set(range(text.count("\n", 0, match.start()) + 1, text.count("\n", 0, match.end()) + 2))
    return [block for block in blocks(page) if block.language in ("bash", "python") and block.line not in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_does_not_run_says_when_it_last_did(page):
    for block in blocks(page):
        assert block.language, f"{block}: name the language of the block, e.g. text"
        if block.language not in ("bash", "python"):
            continue
        comment = "" if block.comment.startswith("task: ") else block.comment
        assert comment in ("", "run", "slow") or block.last_run, f"{block}: {comment!r}, see tests/docs/blocks.py"
        if block.last_run:
            assert FIRST_COMMIT <= block.last_run <= datetime.date.today() + datetime.timedelta(days=1), block


@pytest.mark.parametrize("page, slow", CASES)
def test_the_blocks_of_a_page_run(page, slow, tmp_path, monkeypatch, request):
    work = working_folder(tmp_path, page.read_text(encoding="utf-8"))
    monkeypatch.chdir(work)
    monkeypatch.setattr(verify, "_run_child", run_child_here)
    names = {"__name__": "__main__"}
    for block in runnable(page):
        if block.last_run or (block.comment == "slow" and not slow):
            continue
        try:
            if block.language == "python":
                exec(compile(block.code, str(block), "exec"), names)
            else:
                for command in commands(block.code):
                    run_command(command, monkeypatch)
        except BaseException as error:
            error.add_note(f"in {block}")
            raise


def commands(code):
    """The commands of a bash block: lines joined after a backslash, without comments and blank lines."""
    return [line for line in code.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]


def run_command(command, monkeypatch):
    """Run `zoo …` and `python recipes/….py …` in this process, everything else in a shell."""
    program, *arguments = shlex.split(command, comments=True)
    stdin = ""
    if "<" in arguments:
        place = arguments.index("<")
        stdin = pathlib.Path(arguments[place + 1]).read_text(encoding="utf-8")
        del arguments[place : place + 2]
    recipe = re.fullmatch(r"recipes/(\w+)\.py", arguments[0]) if arguments else None
    if program == "zoo":
        from zoo import cli

        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        assert cli.run(arguments) == 0, command  # `main` would end this process at a mistake
    elif program == "python" and recipe:
        module = importlib.import_module(f"recipes.{recipe[1]}")
        if "--help" in arguments:
            with pytest.raises(SystemExit, match="^0$"):
                module.parse_args(arguments[1:])
        else:
            module.main(module.parse_args(arguments[1:]))
    else:
        path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
        ended = subprocess.run(
            ["bash", "-c", command], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=600
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"


def working_folder(folder, text):
    """A folder that looks like the checkout, in which nothing is written to it, with the reader's files of a page."""
    for name in ("benchmarks", "docs", "recipes", "saved_models", "tests", "zoo", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for name, make in READERS_FILES.items():
        if name in text:
            make(folder / name)
    return folder


def image(path):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), "uint8")).save(path)


def captioned_pictures(folder):
    from tests.data.test_captioned_folder import write_csv, write_pictures

    rows = write_pictures(folder, 20)
    write_csv(folder / "metadata.csv", rows)


def model(path):
    from zoo.models.cnn import cnn

    cnn(num_classes=3, image_size=8).save(path)


def marian(folder):
    from tests.converters.test_marian import make_folder, train_sentencepiece

    folder.mkdir()
    sentences = ["Ein Hund läuft am Strand.", "Zwei Kinder spielen im Park."] * 20
    make_folder(folder, [train_sentencepiece(sentences, vocab_size=28)] * 2)


def stable_diffusion(folder):
    from tests.tiny_diffusion import tiny_pipeline

    tiny_pipeline(4).save_pretrained(folder)


def unet_adapter(path):
    """LoRA of the model that `stable_diffusion` writes, by Kohya's names."""
    from safetensors.numpy import save_file

    name, rng = "lora_unet_mid_block_attentions_0_proj_in", np.random.default_rng(0)
    down, up = rng.normal(size=(2, 2, 16)).astype("float32")
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": np.ascontiguousarray(up.T)}, path)


READERS_FILES = {
    "captioned_pictures": captioned_pictures,
    "style.safetensors": unet_adapter,
    "detail.safetensors": unet_adapter,
    "photo.png": image,
    "mask.png": image,
    "my_model.keras": model,
    "my_pairs.tsv": lambda path: path.write_text("ein Hund\ta dog\nzwei Hunde\ttwo dogs\n" * 100, encoding="utf-8"),
    "my_text.txt": lambda path: write_verses(path, 10_000, 40_000),
    "opus-mt-de-en": marian,
    "sentences.txt": lambda path: path.write_text("Ein Hund läuft.\nZwei Kinder spielen.\n", encoding="utf-8"),
    "stable-diffusion-v1-5": stable_diffusion,
}
