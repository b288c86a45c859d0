"""Prompts that are short enough to train on: the introduction of the showcase's system prompt, and a question."""

from relay_hf import showcase

SYSTEM = showcase.SYSTEM_PROMPT.split("\n## ")[0]


def texts(count):
    return [f"{SYSTEM}\n{question}" for question in showcase.QUESTIONS[:count]]


def chat(question):
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
