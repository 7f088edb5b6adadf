"""Bodies of requests: the parameters of the completions API that a network of this project can honour.

A parameter that would change the text and is not honoured is refused, never ignored.
"""

from __future__ import annotations

import secrets
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

TURN_END = "\nuser:"
"""Where the template of ``ChatRequest`` goes on with the user's next message."""


def _listed(stop: object) -> object:
    """The API takes one stop word, a list, or null."""
    return [] if stop is None else [stop] if isinstance(stop, str) else stop


def _single(prompt: object) -> object:
    """The API takes one prompt, or a list."""
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


def _utf8(text: str) -> str:
    """JSON can hold halves of characters (surrogates)."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_utf8)]
StopWord = Annotated[Text, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """Strict: no text for a number, no unknown key."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream holds beside the text."""

    include_usage: bool = False


class GenerationRequest(Body):
    """What both kinds of requests take.  null is the default."""

    model: Text
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[list[StopWord], BeforeValidator(_listed), Field(max_length=4)] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    def sampling(self, tokens: int) -> dict:
        """Options of ``Network.steps``; the API's default temperature is 1."""
        return {
            "tokens": tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": secrets.randbits(63) if self.seed is None else self.seed,
        }


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Annotated[Text, BeforeValidator(_single)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    text_parameter: ClassVar[str] = "prompt"

    def text(self) -> str:
        """The prompt."""
        return self.prompt

    def tokens(self, limit: int) -> int:
        """How many to write; the API's default is 16."""
        return min(16, limit) if self.max_tokens is None else self.max_tokens

    def stop_words(self) -> list[str]:
        """What ends the text."""
        return self.stop


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None

    text_parameter: ClassVar[str] = "messages"

    def text(self) -> str:
        """The chat as plain text: a line ``role: content`` for each message, then ``assistant:``."""
        return "".join(f"{message.role}: {message.content}\n" for message in self.messages) + "assistant:"

    def tokens(self, limit: int) -> int:
        """How many to write; the default is the limit."""
        asked = self.max_completion_tokens or self.max_tokens
        return limit if asked is None else asked

    def stop_words(self) -> list[str]:
        """What ends the text: the user's next turn does, too."""
        return [*self.stop, TURN_END]
