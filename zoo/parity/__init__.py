"""The same numbers on every backend: parity records, and the check against them."""
