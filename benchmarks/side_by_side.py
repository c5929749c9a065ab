"""Interleaved measurements of several contenders, each in a process of its own, and their ratios."""

import json
import os
import statistics
import subprocess
import sys


def run_interleaved(script, contenders, *, rounds, arguments=(), before_round=None):
    """Run every contender once a round, in turn, and collect what it prints.

    Args:
        script: the benchmark's file; called with `--only NAME` and the arguments, it prints seconds, or a dict of
            numbers, as JSON.
        contenders: names; of a name with several words the last one is the Keras backend.
        rounds: number of runs of each.
        arguments: further arguments of the script.
        before_round: function called before each round.

    Returns:
        {name: [what was printed in each round]}.
    """
    times = {name: [] for name in contenders}
    for round_index in range(rounds):
        if before_round:
            before_round()
        for name in contenders:
            environment = os.environ | {"KERAS_BACKEND": name.split()[-1] if " " in name else "torch"}
            command = [sys.executable, script, "--only", name, *map(str, arguments)]
            process = subprocess.run(command, env=environment, capture_output=True, text=True)
            if process.returncode:
                raise SystemExit(f"{name} failed:\n{process.stderr}")
            result = json.loads(process.stdout.strip().splitlines()[-1])
            times[name].append(result)
            values = result if isinstance(result, dict) else {"s": result}
            line = "  ".join(f"{value:.5f} {key}" for key, value in values.items())
            print(f"round {round_index + 1}: {name:24s} {line}", flush=True)
    return times


def ratios(times, base):
    """{name: "median (lowest–highest)"} of the speedup over `base`, round by round."""
    summary = {}
    for name, seconds in times.items():
        speedups = [reference / second for reference, second in zip(times[base], seconds)]
        summary[name] = f"{statistics.median(speedups):.2f} ({min(speedups):.2f}–{max(speedups):.2f})"
    return summary
