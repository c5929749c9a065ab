"""What `keep_freed_memory` asks of the C library, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.once, pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")]

CODE = """
import resource
from zoo.fast_paths import keep_freed_memory
print(keep_freed_memory())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    bytearray(b"1") * 2**26
before = faults()
for _ in range(4):
    bytearray(b"1") * 2**26
print(faults() - before)
"""


def run(**variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | variables, capture_output=True, text=True, check=True
    )
    done, faults = result.stdout.split()
    return done == "True", int(faults)


def test_large_blocks_are_not_faulted_in_again():
    assert run()[0] and run()[1] < 1000  # of 65,536 pages of 4 KB


def test_what_the_user_has_set_stays():
    done, faults = run(MALLOC_MMAP_THRESHOLD_="1000000")
    assert not done and faults > 1000
