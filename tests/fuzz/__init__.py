"""A fuzzer: random tiny models, batches and generate() options, stock against patched.

    python -m tests.fuzz --cases 10000 --jobs 2
    python -m tests.fuzz --case 123456 --types llama

Every case is derived from one integer. A mismatch prints the line that runs its case again.
"""
