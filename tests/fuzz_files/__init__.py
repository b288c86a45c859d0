"""A fuzzer of saved prefixes: what a stranger, or a bad disk, may hand to `load`.

    python -m tests.fuzz_files --cases 5000 --seed 3
    python -m tests.fuzz_files --case 3000017

A case is one integer: a valid file, and a chain of changes to it. It must be refused by an error of one line that names
the file, with nothing kept, or load as the very prefixes that were saved, which then give stock's tokens. A file whose
sums were made anew after what it holds was changed may load with what it holds; it must not do more than that.
"""
