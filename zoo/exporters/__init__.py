"""Models in the formats of other runtimes, with certificates that they give the same numbers there."""
