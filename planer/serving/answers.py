"""Bodies of answers: whole, or as the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping

DONE = "data: [DONE]\n\n"
"""Ends a stream."""


def event(document: Mapping) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(document)}\n\n"


def usage(prompt_tokens: int, tokens: int) -> dict:
    """Tokens read and written."""
    total = prompt_tokens + tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": total}


class CompletionAnswer:
    """Of /v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    first: dict | None = None
    """The choice of a chunk before the text."""

    def __init__(self, model: str):
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish: str, counts: Mapping) -> dict:
        """The text and why it ends."""
        return self._document(self.kind, [self._choice(self.content(text), finish)]) | {"usage": counts}

    def chunk(self, content: Mapping, finish: str | None = None) -> dict:
        """A part of the text; the last one has no text but says why it ends."""
        return self._document(self.chunk_kind, [self._choice(content, finish)])

    def usage_chunk(self, counts: Mapping) -> dict:
        """What follows the last chunk for clients that ask for it."""
        return self._document(self.chunk_kind, []) | {"usage": counts}

    def content(self, text: str) -> dict:
        """Text as a whole choice has it."""
        return {"text": text}

    def part(self, text: str) -> dict:
        """Text as a chunk's choice has it."""
        return {"text": text}

    def _document(self, kind: str, choices: list[dict]) -> dict:
        return self._head | {"object": kind, "choices": choices}

    def _choice(self, content: Mapping, finish: str | None) -> dict:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


class ChatAnswer(CompletionAnswer):
    """Of /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    first = {"delta": {"role": "assistant", "content": ""}}

    def content(self, text: str) -> dict:
        """Text as a whole choice has it."""
        return {"message": {"role": "assistant", "content": text}}

    def part(self, text: str) -> dict:
        """Text as a chunk's choice has it."""
        return {"delta": {"content": text} if text else {}}
