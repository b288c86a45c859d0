"""`python -m tests.notebooks [names]`: run the notebooks from clean kernels and write their outputs."""

import sys

from .execute import NOTEBOOKS, ROOT, write

for path in NOTEBOOKS:
    if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
        print(f"{path.relative_to(ROOT)} ...", flush=True)
        write(path)
