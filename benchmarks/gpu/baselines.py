"""What workload K is compared with: flash attention over KV stored once a row, and FlashInfer's cascade."""

from __future__ import annotations

from . import flash, flashinfer

ALL = (flash, flashinfer)
TEXT = {flash.NAME: flash.TEXT, flashinfer.NAME: flashinfer.TEXT}
