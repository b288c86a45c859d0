"""A support bot: one long system prompt, and what its customers write."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

SYSTEM_PROMPT = (_HERE / "system_prompt.md").read_text(encoding="utf-8")
QUESTIONS = tuple((_HERE / "questions.txt").read_text(encoding="utf-8").splitlines())

_INSTRUCTIONS = 3  # parts of the system prompt that say who Wren is, how it writes, and what it can do


def support_prompts(count: int) -> list[str]:
    """So many prompts, each the system prompt with a question behind it; the questions come again after the last."""
    return [f"{SYSTEM_PROMPT}\n{QUESTIONS[index % len(QUESTIONS)]}" for index in range(count)]


def document_prompts(documents: int, questions: int = 1) -> list[str]:
    """Prompts in two levels: instructions for all, then a section of the handbook for every `questions` of them.

    Args:
        documents: sections that are used, in the handbook's order; they come again after the last.
        questions: prompts for each section, each with another question behind it.
    """
    parts = SYSTEM_PROMPT.split("\n## ")
    instructions, sections = "\n## ".join(parts[:_INSTRUCTIONS]), parts[_INSTRUCTIONS:]
    return [
        f"{instructions}\n## {sections[index // questions % len(sections)]}\n{QUESTIONS[index % len(QUESTIONS)]}"
        for index in range(documents * questions)
    ]
