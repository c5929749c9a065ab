"""300 mutants of small real files end in a result or in one sentence; see mutants.py for 10,000."""

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


def test_what_goes_wrong_is_seen(tmp_path):
    """Each way in which a reader can fail, made on purpose."""
    from tests.hostile import mutants

    def too_long(path):
        while True:
            pass

    def too_large(path):
        mutants.np.ones(2**28, "uint8").sum()

    def raw(path):
        raise ValueError("raw")

    def two_lines(path):
        raise mutants.UserError("one\ntwo")

    def crash(path):
        mutants.os.kill(mutants.os.getpid(), mutants.signal.SIGSEGV)

    seconds, mutants.SECONDS = mutants.SECONDS, 0.5
    try:
        outcomes = [
            mutants.read_in_child(use, tmp_path)[0] for use in (too_long, too_large, raw, two_lines, crash, len)
        ]
    finally:
        mutants.SECONDS = seconds
    assert outcomes == ["hang", "memory", "raw", "raw", "crash", "raw"]
    assert mutants.read_in_child(str, tmp_path) == ("ok", "")
