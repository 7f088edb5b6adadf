"""What every request passes: a bounded body on the way in, a count and a log line on the way out."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from planer.serving.errors import ApiError, hung_up
from planer.serving.limits import Limits
from planer.serving.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

DISCARDED = 2**24
"""Bytes of a body that is too large which are read all the same: a client reads no answer while it still writes."""
QUIET = ("/health", "/metrics")
"""Routes that are asked for all the time, and not logged."""
CLOSE = {"Connection": "close"}
"""Of answers to a body that was not read to its end."""


class Gate:
    """ASGI middleware.  Logs no text of prompts and answers.  Tells routes when a request arrived."""

    def __init__(self, app: ASGIApp, limits: Limits, figures: Metrics):
        self._app, self._limits, self._figures = app, limits, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0
        scope["began"] = began

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            try:
                body = await asyncio.wait_for(self._body(receive), self._limits.seconds)
            except ApiError as error:
                await error.response()(scope, receive, noted)
            except TimeoutError:
                reason = f"the request's body took longer than {self._limits.seconds:g} s"
                error = ApiError(408, reason, "timeout", headers=CLOSE)
                await error.response()(scope, receive, noted)
            else:
                await self._app(scope, _after(body, receive), noted)
        finally:
            self._record(scope, status or 500, time.monotonic() - began)

    async def _body(self, receive: Receive) -> bytes:
        """The whole body.  Raises ApiError when it is too large, and when the client hangs up meanwhile."""
        body, size, more, limit = bytearray(), 0, True, self._limits.request_bytes
        while more and size <= max(limit, DISCARDED):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise hung_up()
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= limit:
                body += part
        if size > limit:
            reason = f"the request's body is larger than {limit:,} bytes"
            raise ApiError(413, reason, "request_too_large", headers=CLOSE)
        return bytes(body)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        generation = scope.get("generation")
        self._figures.add("planer_requests_total", route=route, status=str(status))
        self._figures.observe(seconds, route=route)
        tokens = ""
        if generation:
            generation.cancel()  # where the client hung up before the last token
            finish = generation.finish or "cancelled"
            self._figures.add("planer_generations_total", finish=finish)
            self._figures.add("planer_prompt_tokens_total", generation.prompt_tokens)
            self._figures.add("planer_generated_tokens_total", generation.tokens)
            tokens = f", {generation.prompt_tokens:,} + {generation.tokens:,} tokens, {finish}"
        if route not in QUIET:
            print(f"{scope['method']} {route} {status}, {seconds:.2f} s{tokens}", file=sys.stderr, flush=True)


def _after(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body first."""
    unread = [body]

    async def first_the_body() -> Message:
        return {"type": "http.request", "body": unread.pop(), "more_body": False} if unread else await receive()

    return first_the_body
