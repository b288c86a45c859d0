"""What this release was tested with. A test holds each of these to the files that pin the test environments."""

from __future__ import annotations

# In full with the last one; with the others, what another Transformers may change.
TRANSFORMERS = ("5.17.0", "5.23.0", "5.24.0")
