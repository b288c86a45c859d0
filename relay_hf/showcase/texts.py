"""A support bot: one long system prompt, and what its customers write."""

from __future__ import annotations

from pathlib import Path

Chat = list[dict[str, str]]

_HERE = Path(__file__).parent

SYSTEM_PROMPT = (_HERE / "system_prompt.md").read_text(encoding="utf-8")
QUESTIONS = tuple((_HERE / "questions.txt").read_text(encoding="utf-8").splitlines())

_INSTRUCTIONS = 3  # parts of the system prompt that say who Wren is, how it writes, and what it can do


def support_chats(count: int) -> list[Chat]:
    """So many conversations, each the system prompt and a question; the questions come again after the last."""
    return [_chat(SYSTEM_PROMPT, index) for index in range(count)]


def document_chats(documents: int, questions: int = 1) -> list[Chat]:
    """Conversations in two levels: instructions for all, then a section of the handbook for every `questions` of them.

    Args:
        documents: sections that are used, in the handbook's order; they come again after the last.
        questions: conversations for each section, each with another question.
    """
    parts = SYSTEM_PROMPT.split("\n## ")
    instructions, sections = "\n## ".join(parts[:_INSTRUCTIONS]), parts[_INSTRUCTIONS:]
    return [
        _chat(f"{instructions}\n## {sections[index // questions % len(sections)]}", index)
        for index in range(documents * questions)
    ]


def support_prompts(count: int) -> list[str]:
    """`support_chats` as text."""
    return [as_text(chat) for chat in support_chats(count)]


def as_text(chat: Chat) -> str:
    """A conversation for a model that knows no chats: its messages, one behind the other."""
    return "\n".join(message["content"] for message in chat)


def _chat(system: str, index: int) -> Chat:
    question = QUESTIONS[index % len(QUESTIONS)]
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]
