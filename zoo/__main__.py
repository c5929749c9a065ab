"""The `zoo` command: list, summary, quiz, classify, complete, translate, draw, verify, convert.

Everything heavy is imported inside the subcommand that needs it, so that --help answers at once.
"""

import argparse
import os
import re
import shutil
import sys
import textwrap

from zoo.errors import UserError, nearest, run_command

EPILOG = "The backend is chosen by the environment: KERAS_BACKEND=tensorflow, jax or torch."
MODEL_HELP = "a name from `zoo list`, or the path of a .keras file"
# Where a card holds one of these, `list` shows it.
METRICS = (
    ("test_accuracy", "{:.2%} accuracy"),
    ("test_bits_per_character", "{:.3f} bits/char"),
    ("test_bleu_beam_5", "{:.1f} BLEU"),
)

# `zoo.generation.diffusion.noise_sampler.SAMPLERS`, which loads Keras; a test compares them.
SAMPLERS = ("ddpm", "ddim", "plms", "euler", "euler_ancestral", "heun", "dpm++")


def main(argv=None):
    """Run the command; returns its exit code (0 done, 1 a check failed, 2 wrong input)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "…" or bars shows "?"
    return run_command(_main, sys.argv[1:] if argv is None else argv)


def _main(argv):
    parser, commands = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        known = ", ".join(commands)
        raise UserError(f"There is no command {argv[0]!r}: choose one of {known}.{nearest(argv[0], commands)}")
    if not argv:
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    return args.run(args) or 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message} (`{self.prog} --help` explains).\n")


def _parser():
    parser = _Parser(prog="zoo", description="Models with every parameter explained.", epilog=EPILOG)
    # The metavar is longer than every command: Python 3.11 forgets their indent when it aligns what they are for.
    parser.usage = "zoo [-h] COMMAND ..."
    choices = parser.add_subparsers(title="commands", metavar="COMMAND ...", prog="zoo")

    def command(name, run, text, epilog=EPILOG):
        choice = choices.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
        choice.set_defaults(run=run)
        return choice.add_argument

    add = command("list", _list, "show every model: its task, size and result", epilog=None)
    add("--pretrained", action="store_true", help="only those with a trained file")

    add = command("summary", _summary, "show where every parameter of a model comes from")
    add("model", help=MODEL_HELP)
    add("--batch-size", type=int, default=64, metavar="N", help="for the memory that training takes; default 64")
    add("--input-shape", type=_shape, metavar="H,W,C", help="of one example, for a model that leaves sizes open")
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--json", action="store_true", help="print JSON")
    add("--html", metavar="FILE", help="write a page to look at in a browser")

    add = command("quiz", _quiz, "ask you for parameters of a model and explain the answers")
    add("model", help=MODEL_HELP)
    add("--seed", type=int, default=0, metavar="N", help="other seeds ask other questions; default 0")
    add("--questions", type=int, default=5, metavar="N", help="how many to ask; default 5")
    add(
        "--answers",
        metavar="FILE",
        nargs="?",
        const="",
        help="do not ask: print the questions and their answers as a sheet for a class; with FILE (- is standard "
        "input), judge the answers in it, one a line",
    )

    add = command("classify", _classify, "name what pictures show")
    add("image", nargs="+", help="picture files of any kind and size")
    add("--model", default="cnn_mnist", help=f"{MODEL_HELP}; default cnn_mnist")
    add("--top", type=int, default=3, metavar="N", help="how many classes to name; default 3")
    add(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="exchange dark and light; auto does for grey models where the border is light",
    )

    add = command("complete", _complete, "let a language model go on with a text")
    add("model", help=MODEL_HELP)
    add("prompt", help="text to begin with")
    add("--length", type=int, default=400, metavar="N", help="tokens to write; default 400")
    add("--temperature", type=float, default=0.8, metavar="X", help="lower is safer, higher bolder; default 0.8")
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens only")
    add("--top-p", type=float, metavar="X", help="draw from the fewest tokens that make up this probability")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--seed", type=int, default=0, metavar="N", help="other seeds write other texts; default 0")
    add("--next", type=int, metavar="N", help="do not write: show the N likeliest next tokens")

    add = command("translate", _translate, "translate sentences")
    add("model", help=MODEL_HELP)
    add("sentence", nargs="*", help="what to translate; without any, the lines of standard input")
    add("--beams", type=int, metavar="N", help="1 is greedy; default 5, or as a converted model was published")
    add("--length-penalty", type=float, metavar="X", help="above 0 favours longer texts; default 1, or as published")
    add("--attention", metavar="FILE", help="write a picture of where the cross-attentions look (one sentence)")

    add = command("draw", _draw, "draw pictures of a prompt")
    add("model", help="a folder that `zoo convert stable-diffusion` wrote, or its name in ZOO_MODELS_DIR")
    add("prompt", help="what to draw")
    add("--negative", default="", metavar="TEXT", help="what the picture should not be")
    add("--steps", type=int, metavar="N", help="more are slower and finer; default 30, or the model's own")
    add("--guidance", type=float, metavar="X", help="how closely to follow the prompt; default 7.5, or the model's own")
    add("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)}; default what the model was published with")
    add(
        "--eta", type=float, default=0.0, metavar="X", help="noise that ddim adds in every step, from 0 to 1; default 0"
    )
    add("--seed", type=int, default=0, metavar="N", help="other seeds draw other pictures; default 0")
    add("--count", type=int, default=1, metavar="N", help="draw N pictures, with the seeds that follow; default 1")
    add("--size", type=_size, metavar="WxH", help="in pixels; default what the model was trained for, or as --from")
    add("--from", dest="start", metavar="IMAGE", help="begin with this picture")
    add("--strength", type=float, metavar="X", help="how much of it may go; default 0.8, with a mask 1")
    add("--mask", metavar="IMAGE", help="of the same size, white where --from is to be drawn anew")
    add("--strip", metavar="FILE", help="write a row of pictures of how it came about (small ones: always)")
    add("--gif", metavar="FILE", help="write an animation of how it came about")
    add("--output", metavar="FILE", help="the PNG file to write; with --count, the seed is added to its name")

    add = command("verify", _verify, "check that a model gives the same numbers on every backend", epilog=None)
    add("model", help=MODEL_HELP)
    add("--tolerance", type=float, default=1e-4, metavar="X", help="the largest difference that passes; default 1e-4")
    add("--backends", type=_words, metavar="A,B", help="some of tensorflow, jax, torch; default those installed")

    add = command("convert", _convert, "turn published weights into a model of ours")
    add(
        "kind",
        choices=("marian", "stable-diffusion"),
        help="marian: a translation model (opus-mt) as Hugging Face keeps it; stable-diffusion: 1 or 2, as diffusers "
        "keeps it",
    )
    add("folder", help="where its files are: config.json or model_index.json, the weights and so on")
    add("out", help="marian: the .keras file to write, the tokenizer goes beside it; stable-diffusion: a folder")
    return parser, choices.choices


def _shape(text):
    sizes = text.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 48,48,3")
    return tuple(int(size) for size in sizes)


def _size(text):
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 768x512")
    return tuple(int(side) for side in text.split("x"))


def _words(text):
    return [word.strip() for word in text.split(",")]


# ------------------------------------------------------------------------------------------------------- subcommands


def _list(args):
    from zoo import presets as registry
    from zoo.io import files

    paths = registry.pretrained_files()
    rows, places = [("name", "task", "parameters", "result", "size")], {}
    for name in registry.list_models(True if args.pretrained else None):
        row, path = registry.MODELS.get(name), paths.get(name)
        card = (files.read_card(path) or {}) if path else {}
        parameters = card.get("parameters") or (row.parameters if row else None)
        results = [text.format(card[key]) for key, text in METRICS if key in card]
        size = card.get("bytes") if path is None or path.suffix == ".json" else path.stat().st_size
        rows.append(_row(name, row.task if row else "", parameters, ", ".join(results), size))
        places.setdefault(_place(path, card), []).append(name)
    for name, folder in sorted(registry.pipelines().items()):
        cards = [files.read_card(path) or {} for path in sorted(folder.glob("*.keras"))]
        scores = next((card["scores"] for card in cards if "scores" in card), None)
        result = f"{scores['never_seen']['all']:.1%} right" if scores else ""
        parameters = sum(card.get("parameters", 0) for card in cards)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        rows.append(_row(name, "text to image", parameters, result, size))
        places.setdefault(f"{_place(folder, {})}, for zoo draw", []).append(name)
    print(_table(rows, right=(2, 3, 4)) + "\n")
    for place, names in sorted(places.items(), key=lambda item: item[0] == _place(None, None)):
        line = f"{place}: {', '.join(names)}"
        print(textwrap.fill(line, shutil.get_terminal_size().columns, break_long_words=False))


def _row(name, task, parameters, result, size):
    """One line of the list, as texts."""
    unit, divisor = ("MB", 1e6) if (size or 0) >= 1e5 else ("kB", 1e3)
    size = f"{size / divisor:.{0 if size >= 10 * divisor else 1}f} {unit}" if size else ""
    return name, task, f"{parameters:,}" if parameters else "", result, size


def _place(path, card):
    """Where a model comes from, in words."""
    if path is None:
        return "Architectures, built with fresh weights"
    if path.suffix == ".json":
        return f"Fetched from {card['url']} at first use"
    folder = os.path.relpath(path.parent)
    return f"Files in {path.parent if folder.startswith('..') else folder}"


def _table(rows, right):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if k in right else cell.ljust(width) for k, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _summary(args):
    import json

    model = _model(args.model)
    from zoo.io import files
    from zoo.parameter_ledger.ledger import ledger

    book = ledger(model, batch_size=args.batch_size, input_shape=args.input_shape)
    if args.html:
        try:
            files.write_text(args.html, book.to_html())
        except OSError as error:
            raise UserError(f"Cannot write {args.html} ({error.strerror}): name another file with --html.") from error
        print(f"The summary of {args.model} is in {args.html}.")
    if args.json:
        print(json.dumps(book.to_dict(), indent=2, ensure_ascii=False))
    elif args.markdown:
        print(book.to_markdown())
    elif not args.html:
        print(book.to_text(width=shutil.get_terminal_size().columns))


def _quiz(args):
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}.")
    answers = None
    if args.answers == "-":
        answers = sys.stdin.read().splitlines()
    elif args.answers:  # "" is the sheet
        with open(args.answers, encoding="utf-8", errors="replace") as file:
            answers = file.read().splitlines()
    model = _model(args.model)
    from zoo.parameter_ledger import quiz

    if args.answers == "":
        _say(quiz.sheet(model, seed=args.seed, count=args.questions))
        return 0
    right, asked = quiz.run(model, seed=args.seed, count=args.questions, answers=answers, say=_say)
    return 0 if right == asked else 1


def _classify(args):
    from zoo.tasks.image_classifier import classify

    def load():
        from zoo import presets as registry

        path = registry.locate(args.model)
        return _load(path), path

    classify(args.image, load, top=args.top, invert=args.invert)


def _complete(args):
    from zoo import backends
    from zoo import presets as registry

    path = registry.locate(args.model)
    if path.is_file():
        backends.start()
    from zoo.generation import recurrent as writing

    model, tokenizer = writing.load_with_tokenizer(path)
    if args.next is not None:
        if args.next < 1:
            raise UserError(f"--next must be at least 1, got {args.next}.")
        for token, probability in writing.likeliest(model, tokenizer, args.prompt, count=args.next):
            print(f"{probability:6.1%}  {token!r}")
        return
    options = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    text = writing.write(
        model, tokenizer, args.prompt, length=args.length, seed=args.seed, greedy=args.greedy, **options
    )
    for part, piece in enumerate(text):
        print((args.prompt if part == 0 else "") + piece, end="", flush=True)
    print()


def _translate(args):
    if args.attention and len(args.sentence) != 1:
        raise UserError(f"--attention draws one sentence, got {len(args.sentence)}: give one in quotes.")
    if args.beams is not None and args.beams < 1:
        raise UserError(f"--beams must be at least 1, got {args.beams}.")
    from zoo import backends
    from zoo import presets as registry

    path = registry.locate(args.model)
    if path.is_file():
        backends.start()
    from zoo.tasks.translator import load_translator

    translator, options = load_translator(path), {"beams": args.beams, "length_penalty": args.length_penalty}
    if args.sentence:
        translations = translator.translate(args.sentence, **options)
        print(*translations, sep="\n")
    else:
        for line in sys.stdin:  # one by one, so that a person who types is answered
            print(*translator.translate([line], **options), flush=True)
    if args.attention:
        from zoo.evaluation.translation import save_attention

        try:
            save_attention(args.attention, *translator.attention(args.sentence[0], translations[0]))
        except OSError as error:
            raise UserError(f"Cannot write {args.attention} ({error.strerror}): name another file.") from error
        print(f"Where it looked is in {args.attention}.")


def _draw(args):
    if args.sampler is not None and args.sampler not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise UserError(
            f"There is no sampler {args.sampler!r}: choose one of {known}.{nearest(args.sampler, SAMPLERS)}"
        )
    for option, value, least in (("steps", args.steps, 1), ("count", args.count, 1), ("seed", args.seed, 0)):
        if value is not None and value < least:
            raise UserError(f"--{option} must be at least {least}, got {value}.")
    for option, value in (("mask", args.mask), ("strength", args.strength)):
        if value is not None and args.start is None:
            raise UserError(f"--{option} is for drawing from a picture: give one with --from.")
    from zoo import backends
    from zoo import presets as registry

    folder = registry.locate_pipeline(args.model)
    options = {key: value for key, value in vars(args).items() if key not in ("run", "model", "prompt")}
    backends.start(preferred="torch")  # which starts and draws quickest
    from zoo.cli.generate_image import draw

    draw(folder, args.prompt, say=_say, **options)


def _verify(args):
    from zoo import presets as registry
    from zoo.parity.verify import verify

    path = registry.locate(args.model)
    return 0 if verify(path, backends=args.backends, tolerance=args.tolerance, say=_say) else 1


def _convert(args):
    from zoo.converters import marian, stable_diffusion

    {"marian": marian, "stable-diffusion": stable_diffusion}[args.kind].convert(args.folder, args.out, say=_say)


def _say(text):
    """Print at once; in a terminal, lines that are too long are broken at words, under where they begin."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(_wrapped(line, width) for line in text.split("\n"))
    print(text, flush=True)


def _wrapped(line, width):
    indent = len(line) - len(line.lstrip()) + (3 if line.lstrip()[:1].isdigit() and ". " in line[:6] else 0)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _model(name_or_path):
    """The pretrained model or file, or else the architecture of that name with fresh weights."""
    from zoo import backends
    from zoo import presets as registry

    row = registry.MODELS.get(name_or_path)
    if row and not row.pretrained and name_or_path not in registry.pretrained_files():
        backends.start()
        return registry.create_model(name_or_path)
    return _load(registry.locate(name_or_path))


def _load(path):
    from zoo import backends
    from zoo.io import files

    if path.is_file():  # else the error comes before the wait for a framework
        backends.start()
    return files.load_model(path)


if __name__ == "__main__":
    sys.exit(main())
