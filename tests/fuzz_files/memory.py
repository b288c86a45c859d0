"""Greedy files are loaded in processes that get no more memory than is promised: `python -m tests.fuzz_files.memory`.

The promise is of twice a file's size, 16 bytes a token, and 128 MiB. The limit is one of addresses, so that what is
asked for counts, used or not. It leaves room for the file once more, where it is mapped, and for the stacks of threads.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import threading
from pathlib import Path

import torch

from relay_hf import PrefixFileError
from relay_hf.relay import Relay

from .greedy import files

PROMISED = 2**27
_STACK = 2**20
_PAGE = resource.getpagesize()


def main() -> int:
    """Print a line for each load: what came of it; 1 where any needed more."""
    torch.set_num_threads(1)
    threading.stack_size(_STACK)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p"

        for it, name, data, tokens in files():
            path.write_bytes(data)
            size = len(data)
            del data
            for mmap in (False, True):
                it.reset(bystander=False)
                print(f"{name}, {size / 2**20:.1f} MiB{', mapped' * mmap}", end=": ", flush=True)
                child = os.fork()
                if not child:
                    os._exit(_load(it.model.relay, path, size, tokens, mmap))
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                failed += code != 0
                print(f" (exit code {code})" * (code != 0))
    return int(failed > 0)


def _load(relay: Relay, path: Path, size: int, tokens: int, mmap: bool) -> int:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    most = held + 2 * size + 16 * tokens + PROMISED + mmap * size + 8 * _STACK
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    code = 0
    try:
        print(f"{len(relay.load(path, mmap=mmap))} prefixes", end="")
    except PrefixFileError as error:
        print(str(error).removeprefix(str(path))[:100], end="")
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", end="")
        code = 1
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
