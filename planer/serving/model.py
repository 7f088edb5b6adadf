"""The network that a server serves: from a request to a generation in the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

from planer.errors import UserError
from planer.models.network import Network
from planer.parsing import show
from planer.serving.engine import Closing, Engine, Full, Generation
from planer.serving.errors import ApiError, hung_up
from planer.serving.limits import Limits
from planer.serving.requests import ChatRequest, CompletionRequest

RETRY_SECONDS = 1
"""What a refused client is told to wait at least."""


class Inbox:
    """What a generation delivers, for the web side's event loop."""

    def __init__(self):
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue()

    def deliver(self, text: str | None) -> None:
        """Called by the engine's thread; None comes last."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, text)

    async def __aiter__(self) -> AsyncIterator[str]:
        while (text := await self._queue.get()) is not None:
            yield text


class ServedModel:
    """A network, its name and its engine."""

    def __init__(self, network: Network, name: str, limits: Limits, weights: str):
        """weights: see ``Network.generate``.  Raises UserError when the network has no vocabulary."""
        around = network.surroundings
        if around.vocabulary is None:
            raise UserError("no vocab.json belongs to this network; name that of its text with --vocab")
        vocabulary = replace(around.vocabulary, source="this network")  # clients are told no path of this machine
        network.surroundings = replace(around, vocabulary=vocabulary)
        self.name, self.limits, self.engine = name, limits, Engine(limits)
        self.created = int(time.time())
        self._network, self._weights = network, weights

    def warm_up(self) -> None:
        """Write two tokens: it builds what is built once, and shows that the network runs."""
        for _ in self._network.stream([0], weights=self._weights, tokens=2):
            pass

    def document(self) -> dict:
        """The entry of /v1/models."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "planer"}

    def require(self, name: str) -> None:
        """Raise ApiError for another model's name."""
        if name != self.name:
            message = f"there is no model {show(name)}; this server has {self.name!r}"
            raise ApiError(404, message, "model_not_found", "model")

    async def submit(self, asked: CompletionRequest | ChatRequest, began: float) -> tuple[Generation, Inbox]:
        """Queue a request.  began: when it arrived, by the monotonic clock.

        Raises ApiError when it asks for too much, or when the server is full or closing.
        """
        self.require(asked.model)
        limit = self.limits.max_tokens
        if (tokens := asked.tokens(limit)) > limit:
            reason = f"max_tokens is {tokens:,}; this server writes at most {limit:,}"
            raise ApiError(400, reason, "invalid_value", "max_tokens")
        ids = await asyncio.to_thread(self._encode, asked)
        if self._network.positions is not None:
            limit = min(limit, max(1, self._network.positions - len(ids)))
        inbox = Inbox()
        sampling, words = asked.sampling(asked.tokens(limit)) | {"weights": self._weights}, asked.stop_words()
        try:
            generation = Generation(self._network, ids, sampling, words, began + self.limits.seconds, inbox.deliver)
        except UserError as error:
            raise ApiError(400, str(error), "context_length_exceeded", asked.text_parameter) from error
        try:
            self.engine.submit(generation)
        except Full:
            wait = {"Retry-After": str(RETRY_SECONDS)}
            raise ApiError(429, "as many requests wait as may; try again later", "queue_full", headers=wait) from None
        except Closing:
            raise closing() from None
        return generation, inbox

    def _encode(self, asked: CompletionRequest | ChatRequest) -> list[int]:
        try:
            ids = self._network.encode(asked.text())
        except UserError as error:
            raise ApiError(400, str(error), "invalid_value", asked.text_parameter) from error
        if len(ids) > self.limits.prompt_tokens:
            reason = f"the prompt has {len(ids):,} tokens; this server reads at most {self.limits.prompt_tokens:,}"
            raise ApiError(400, reason, "context_length_exceeded", asked.text_parameter)
        return ids


def closing() -> ApiError:
    """The refusal of a server that stops."""
    return ApiError(503, "the server is shutting down", "shutting_down", headers={"Retry-After": str(RETRY_SECONDS)})


def failure(finish: str, limits: Limits) -> ApiError | None:
    """The error that a generation ended with; None when its text is whole."""
    if finish == "closing":
        return closing()
    if finish == "timeout":
        message = f"the request took longer than {limits.seconds:g} s; ask for fewer tokens, or stream them"
        return ApiError(504, message, "timeout", headers={"x-should-retry": "false"})  # it would take as long again
    if finish == "error":
        return ApiError(500, "the server has a fault; its log says more", "internal_error")
    if finish == "cancelled":
        return hung_up()
    return None
