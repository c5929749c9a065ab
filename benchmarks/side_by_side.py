"""What benchmarks share: contenders that take turns in processes of their own, and the table at the end."""

import json
import os
import statistics
import subprocess
import sys


def run_interleaved(script, contenders, *, rounds, arguments=(), before_round=None):
    """Run every contender once a round and collect what it prints.

    Args:
        script: the benchmark's own file; called with `--only NAME` and the arguments, it prints as JSON seconds, or
            several numbers by name.
        contenders: names; the last word of those with several is the Keras backend.
        rounds: how many times each is run.
        arguments: passed on.
        before_round: function called before each round.

    Returns:
        {name: [what was printed in each round]}.
    """
    times = {name: [] for name in contenders}
    for number in range(rounds):
        if before_round:
            before_round()
        for name in contenders:
            environment = os.environ | {"KERAS_BACKEND": name.split()[-1] if " " in name else "torch"}
            command = [sys.executable, script, "--only", name, *map(str, arguments)]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ended.returncode:
                raise SystemExit(f"{name} failed:\n{ended.stderr}")
            times[name].append(json.loads(ended.stdout.strip().splitlines()[-1]))
            told = times[name][-1]
            told = told if isinstance(told, dict) else {"s": told}
            told = "  ".join(f"{value:.4f} {key}" for key, value in told.items())
            print(f"round {number + 1}: {name:24s} {told}", flush=True)
    return times


def ratios(times, base):
    """{name: "median (lowest–highest)"} of how many times faster than `base` each is, round by round."""
    told = {}
    for name, seconds in times.items():
        own = [reference / second for reference, second in zip(times[base], seconds)]
        told[name] = f"{statistics.median(own):.2f} ({min(own):.2f}–{max(own):.2f})"
    return told
