"""The tests on real weights: a small chat model that answers real questions. `make test` downloads it."""
