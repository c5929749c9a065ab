"""Mutants of small real files, passed through the functions that read such files.

KERAS_BACKEND=torch python tests/hostile/mutants.py --count 10000 --seed 0

Each mutant is read in a forked process with limits of time and memory, since a hang or a crash of a package below ends
a process. What comes out has to be a result, or one sentence (`UserError`). The mutants of a seed are always the same;
those that failed are kept in the folder that the last line names.
"""

import argparse
import collections
import contextlib
import faulthandler
import gc
import io
import json
import math
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from tests.hostile.sources import SOURCES
from zoo.errors import UserError

SECONDS = 10  # of a processor; on a clock six times as many, since other processes may want the processors
MEGABYTES = 250  # that a reader may take beside what the process has; the models are smaller than a megabyte
LONGEST_SENTENCE = 1000


# -------------------------------------------------------------------------------------------------------------- mutants


def mutate_bytes(content, rng):
    """Some bytes changed, a part cut off, left out, doubled or zeroed."""
    content = bytearray(content)
    if not content:
        return bytes(rng.integers(0, 256, 20, dtype="uint8"))
    start = int(rng.integers(0, len(content)))
    length = int(min(len(content) - start, 2 ** rng.integers(0, 12)))
    match rng.integers(0, 6):
        case 0:
            for place in rng.integers(0, len(content), rng.integers(1, 9)):
                content[place] ^= 1 << int(rng.integers(0, 8))
        case 1:
            del content[start:]
        case 2:
            del content[start : start + length]
        case 3:
            content[start:start] = content[start : start + length]
        case 4:
            content[start : start + length] = bytes(length)
        case _:
            content[start : start + length] = rng.integers(0, 256, length, dtype="uint8").tobytes()
    return bytes(content)


def strange_value(rng, old):
    """A value that a reader does not expect in the place of another."""
    values = [None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**30, 1e308, -1.5, 0.5, float("nan"), float("inf")]
    values += [
        "",
        "x",
        "../../etc/passwd",
        "a" * 10_000,
        "\x00",
        "\ud800",
        "0",
        [],
        {},
        [[]],
        [None],
        {"": {}},
        {"a": 1},
    ]
    values += [[1] * 1000, nested(60), nested(3000), ["x"] * 20, [old], {"x": old}]
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        values += [old + 1, old - 1, old * 2, old * 1000, -old, str(old), old * 10**6, old // 2 if old == old else 0]
    if isinstance(old, str):
        values += [old + "x", old[:-1], old.upper(), old * 2, old.encode().hex()]
    if isinstance(old, list):
        values += [old[:-1], old + old[-1:], old * 50, old[::-1]]
    return values[int(rng.integers(0, len(values)))]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def mutate_json(text, rng):
    """Some values of a JSON text replaced, left out, exchanged or added."""
    value = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        places, pending = [], [value]
        while pending:
            part = pending.pop()
            keys = list(part) if isinstance(part, dict) else range(len(part))
            places += [(part, key) for key in keys]
            pending += [part[key] for key in keys if isinstance(part[key], (dict, list))]
        if not places:
            return "[]"
        part, key = places[int(rng.integers(0, len(places)))]
        match rng.integers(0, 8):
            case 0:
                del part[key]
            case 1 if isinstance(part, dict):
                part[f"{key}x"] = part.pop(key)
            case 2:
                other, place = places[int(rng.integers(0, len(places)))]
                part[key], other[place] = other[place], part[key]
                try:
                    value = json.loads(json.dumps(value))
                except (ValueError, RecursionError):  # a part within itself
                    return json.dumps(strange_value(rng, 1), allow_nan=True)
            case _:
                part[key] = strange_value(rng, part[key])
    return dump(value)


def dump(value):
    """JSON of any depth."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return json.dumps(value)
    except (RecursionError, ValueError):
        return "[" * 3000
    finally:
        sys.setrecursionlimit(limit)


def mutate_zip(content, rng):
    """One member of an archive mutated, left out or doubled, the archive whole."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as changed:
        names = archive.namelist()
        chosen = names[int(rng.integers(0, len(names)))]
        how = rng.integers(0, 6)
        for name in names:
            member = archive.read(name)
            if name != chosen:
                changed.writestr(name, member)
            elif how == 0:
                continue
            elif how == 1:
                changed.writestr(f"x{name}", member)
            else:
                changed.writestr(name, mutate(pathlib.PurePath(name).suffix, member, rng))
    return out.getvalue()


def mutate_npy(content, rng):
    """An array of another shape, kind or content."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    choices = [array[None], array.astype("float16") if array.dtype.kind == "f" else array, array.astype(str)]
    choices += [np.zeros((0,)), np.zeros(3), array.ravel()[:-1], np.array(mutate_text(array, rng))]
    out = io.BytesIO()
    np.save(out, choices[int(rng.integers(0, len(choices)))], allow_pickle=False)
    return out.getvalue()


def mutate_text(array, rng):
    """The JSON in an array of one text, mutated."""
    text = str(array) if array.dtype.kind == "U" and array.ndim == 0 else '{"a": 1}'
    return mutate_json(text, rng).encode("utf-8", "replace").decode()


def mutate_safetensors(content, rng):
    """The header's JSON mutated."""
    size = int.from_bytes(content[:8], "little")
    header = mutate_json(content[8 : 8 + size], rng).encode("utf-8", "replace")
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def mutate(suffix, content, rng):
    """A mutant of a file: of its structure, or of its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(content, rng)
    try:
        if suffix == ".json":
            return mutate_json(content, rng).encode("utf-8", "replace")
        if suffix in (".keras", ".npz", ".pt", ".bin"):
            return mutate_zip(content, rng)
        if suffix == ".npy":
            return mutate_npy(content, rng)
        if suffix == ".safetensors":
            return mutate_safetensors(content, rng)
    except (ValueError, zipfile.BadZipFile, RecursionError, UnicodeError):
        pass
    return mutate_bytes(content, rng)


def write_mutant(source, target, rng):
    """Copy a file or a folder with one of its files mutated; returns its name."""
    if source.is_file():
        shutil.copy(source, target)
        chosen = target
    else:
        shutil.copytree(source, target)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        described = [path for path in files if path.suffix == ".json"]
        files = described if described and rng.random() < 0.6 else files
        chosen = files[int(rng.integers(0, len(files)))]
    if source.is_dir() and rng.random() < 0.03:
        chosen.unlink()
    else:
        chosen.write_bytes(mutate(chosen.suffix, chosen.read_bytes(), rng))
    return chosen.name


# -------------------------------------------------------------------------------------------------------------- workers


def read_in_child(use, path):
    """(outcome, words) of reading a file in a forked process: ok, sentence, raw, hang, memory or crash."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        try:
            outcome = _read(use, path)
        except BaseException:
            outcome = ["raw", traceback.format_exc()]
        with contextlib.suppress(OSError):
            os.write(sender, json.dumps(outcome).encode()[:60_000])
        os._exit(0)
    os.close(sender)
    began, told = time.monotonic(), b""
    os.set_blocking(receiver, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            told += os.read(receiver, 2**20)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(BlockingIOError):
                while more := os.read(receiver, 2**20):
                    told += more
            break
        if time.monotonic() - began > 6 * SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(receiver)
            return "hang", f"more than {6 * SECONDS} s"
        time.sleep(0.002)
    os.close(receiver)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return "hang", f"more than {SECONDS} s of a processor"
    if not told:
        return "crash", f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {status}"
    return tuple(json.loads(told))


def _read(use, path):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**31
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(SECONDS), resource.RLIM_INFINITY))
    faulthandler.disable()  # pytest's, which would write of each crash
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    gc.freeze()  # what the parent left to be collected does not hide what the reader takes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        use(path)
        outcome = ["ok", ""]
    except UserError as error:
        text = str(error)
        whole = "\n" not in text and len(text) <= LONGEST_SENTENCE
        outcome = ["sentence", text] if whole else ["raw", f"not one sentence: {text}"]
    except Exception:
        outcome = ["raw", traceback.format_exc()]
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if outcome[0] != "raw" and taken > MEGABYTES:
        outcome = ["memory", f"{taken:.0f} MB; {outcome[0]}: {outcome[1]}"]
    return outcome


GOOD = ("ok", "sentence")


def run(folder, *, count, seed, kinds=tuple(SOURCES), log=lambda line: None):
    """Read mutants of each kind in turn.

    Returns:
        (counts by (kind, outcome), [(kind, number, file, outcome, words)] of those that failed).
    """
    folder, counts, failed = pathlib.Path(folder), collections.Counter(), []
    made = {kind: SOURCES[kind](folder / "sources") for kind in kinds}
    for kind, (path, use) in made.items():
        use(path)  # what is imported by the first use
        outcome, words = read_in_child(use, path)
        assert outcome == "ok", f"{kind} itself: {outcome} {words}"
    for number in range(count):
        kind = kinds[number % len(kinds)]
        source, use = made[kind]
        rng = np.random.default_rng([seed, number])
        target = folder / f"{number}{source.suffix}"
        name = write_mutant(source, target, rng)
        outcome, words = read_in_child(use, target)
        counts[kind, outcome] += 1
        if outcome in GOOD:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        else:
            failed.append((kind, number, name, outcome, words))
            log(f"{kind} {number} {name}: {outcome} {words.strip().splitlines()[-1] if words.strip() else ''}")
        if (number + 1) % 500 == 0:
            log(f"{number + 1} mutants, {len(failed)} failed")
    return counts, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="number of mutants (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants (0)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(SOURCES), default=tuple(SOURCES))
    parser.add_argument("--full", action="store_true", help="print whole tracebacks")
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="zoo-mutants-"))
    began = time.perf_counter()
    counts, failed = run(
        folder, count=args.count, seed=args.seed, kinds=tuple(args.kinds), log=lambda line: print(line, flush=True)
    )
    outcomes = sorted({outcome for _, outcome in counts})
    print(f"{'kind':<20}" + "".join(f"{outcome:>10}" for outcome in outcomes))
    for kind in args.kinds:
        print(f"{kind:<20}" + "".join(f"{counts[kind, outcome]:>10}" for outcome in outcomes))
    if args.full:
        for kind, number, name, outcome, words in failed:
            print(f"\n---- {kind} {number} {name} {outcome}\n{words}")
    print(f"{args.count} mutants, {len(failed)} failed, {time.perf_counter() - began:.0f} s; {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
