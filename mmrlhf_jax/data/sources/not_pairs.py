"""Recognises other kinds of training data, which have no two answers to compare, so that they can be refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ANSWERS = ("completion", "response", "output", "answer", "messages", "conversations")
_COMPARED = (
    *("rejected", "rejected_response", "rejected_messages", "Better"),
    *("responses", "models_output", "completions", "human_ranking"),
)


def name_of(row: dict[str, Any]) -> str | None:
    """The kind of a row and why it is not read; None if the row may hold a comparison or is of no known kind."""
    if any(row.get(name) is not None for name in _COMPARED):
        return None
    return next((f"{name}: {why}" for name, why, matches in _FORMS if matches(row)), None)


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: all(name in row for name in names)


def _is_labelled(row: dict[str, Any]) -> bool:
    labels = [row[name] for name in ("label", "kto_tag") if name in row]
    return bool(labels) and isinstance(labels[0], bool | int) and any(name in row for name in _ANSWERS)


def _is_prompt_alone(row: dict[str, Any]) -> bool:
    messages = row.get("messages")
    roles = [one.get("role") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
    return bool(roles) and "assistant" not in roles


_ONE_ANSWER = "one answer to a prompt is nothing to compare; a row needs a chosen and a rejected one, or ranks"
_FORMS: tuple[tuple[str, str, Callable[[dict[str, Any]], bool]], ...] = (
    ("KTO rows (an answer and a label)", "a label compares no two answers to one prompt", _is_labelled),
    ("prompts for sampling (PPO, GRPO)", "there is no answer in them", _is_prompt_alone),
    ("MMPR's prompts (chosen without rejected)", _ONE_ANSWER, lambda row: _has("question", "chosen")(row)),
    ("supervised fine-tuning rows (ShareGPT `conversations`)", _ONE_ANSWER, _has("conversations")),
    ("supervised fine-tuning rows (`messages`)", _ONE_ANSWER, _has("messages")),
    ("supervised fine-tuning rows (Alpaca `instruction`, `output`)", _ONE_ANSWER, _has("instruction", "output")),
    ("supervised fine-tuning rows (`prompt`, `completion`)", _ONE_ANSWER, _has("prompt", "completion")),
    ("supervised fine-tuning rows (`query`, `response`)", _ONE_ANSWER, _has("query", "response")),
    ("questions with one answer (`question`, `answer`)", _ONE_ANSWER, _has("question", "answer")),
    ("questions about images (`question`, `image`)", "there is no answer in them", _has("question", "image")),
)
