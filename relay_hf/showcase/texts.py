"""A support bot: one long system prompt, and what its customers write."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

SYSTEM_PROMPT = (_HERE / "system_prompt.md").read_text(encoding="utf-8")
QUESTIONS = tuple((_HERE / "questions.txt").read_text(encoding="utf-8").splitlines())


def support_prompts(count: int) -> list[str]:
    """So many prompts, each the system prompt with a question behind it; the questions come again after the last."""
    return [f"{SYSTEM_PROMPT}\n{QUESTIONS[index % len(QUESTIONS)]}" for index in range(count)]
