"""300 mutants of small real files end in a result or in one sentence; see mutants.py for 10,000."""

import mmap

import pytest

pytestmark = [pytest.mark.once, pytest.mark.heavy]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutants_end_in_a_result_or_a_sentence(count, tmp_path):
    from tests.hostile import mutants

    counts, failed = mutants.run(tmp_path, count=count, seed=1)
    assert not failed, "\n".join(
        f"{kind} {number} {name}: {outcome} {words}" for kind, number, name, outcome, words in failed
    )
    for kind in mutants.SOURCES:  # some are harmless, most are not
        assert counts[kind, "ok"] and counts[kind, "sentence"]


def test_what_goes_wrong_is_seen(tmp_path, monkeypatch):
    """Each way in which a reader can fail, made on purpose."""
    from tests.hostile import mutants

    def too_long(path):
        while True:
            pass

    def too_large(path):
        memory = mmap.mmap(-1, 2**29)  # an array might lie in memory that earlier tests gave back to malloc
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1

    def raw(path):
        raise ValueError("raw")

    def two_lines(path):
        raise mutants.UserError("one\ntwo")

    def crash(path):
        mutants.os.kill(mutants.os.getpid(), mutants.signal.SIGSEGV)

    uses = {"memory": too_large, "raw": raw, "two lines": two_lines, "crash": crash, "no path": len}
    outcomes = {name: mutants.read_in_child(use, tmp_path)[0] for name, use in uses.items()}
    assert outcomes == {"memory": "memory", "raw": "raw", "two lines": "raw", "crash": "crash", "no path": "raw"}
    monkeypatch.setattr(mutants, "SECONDS", 0.5)
    assert mutants.read_in_child(too_long, tmp_path) == ("hang", "more than 0.5 s of a processor")
    assert mutants.read_in_child(lambda path: mutants.time.sleep(100), tmp_path) == ("hang", "more than 3.0 s")
    monkeypatch.undo()
    assert mutants.read_in_child(str, tmp_path) == ("ok", "")
