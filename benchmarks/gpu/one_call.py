"""One small call of a kernel, for the sanitizer: `python -m benchmarks.gpu.one_call decode`."""

from __future__ import annotations

import argparse
import sys

import torch

from .cases import ONE_CALL
from .inputs import Inputs
from .machine import device_of


def main() -> int:
    """Run it; 1 if the output is not finite."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.one_call", description=__doc__)
    parser.add_argument("kernel", choices=ONE_CALL)
    out = Inputs.draw(ONE_CALL[parser.parse_args().kernel], device_of(dry_run=False), seed=5).ours()
    torch.cuda.synchronize()
    finite = bool(out.isfinite().all())
    print("output finite" if finite else "output not finite")
    return 0 if finite else 1


if __name__ == "__main__":
    sys.exit(main())
