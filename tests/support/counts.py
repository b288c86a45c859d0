"""What tests have tried, counted; a run of them ends with the sums. `docs/reliability.md` has those of a whole run."""

from collections import Counter

tried: Counter[str] = Counter()


def count_tried(what: str, count: int = 1) -> None:
    """Count what has been tried, under a name in the plural."""
    tried[what] += count
