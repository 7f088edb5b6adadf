"""The routes of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from planer.serving import metrics
from planer.serving.answers import DONE, ChatAnswer, CompletionAnswer, event, usage
from planer.serving.engine import Generation
from planer.serving.errors import add_handlers
from planer.serving.gate import Gate
from planer.serving.model import Inbox, ServedModel, failure
from planer.serving.requests import ChatRequest, CompletionRequest


def build_app(model: ServedModel) -> FastAPI:
    """The server as an ASGI application.  The engine is started and closed by whoever runs it."""
    app = FastAPI(title="planer", docs_url=None, redoc_url=None)
    figures, engine = metrics.Metrics(), model.engine
    app.add_middleware(Gate, limits=model.limits, figures=figures)
    add_handlers(app)

    @app.post("/v1/completions")
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        return await _answer(request, model, asked, CompletionAnswer(model.name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request, asked: ChatRequest) -> Response:
        return await _answer(request, model, asked, ChatAnswer(model.name))

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [model.document()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict:
        model.require(name)
        return model.document()

    @app.get("/health")
    async def health() -> JSONResponse:
        state = {"live": engine.alive, "ready": engine.ready, "model": model.name}
        return JSONResponse(state, 200 if engine.ready else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        gauges = {"planer_requests_active": engine.active, "planer_requests_waiting": engine.waiting}
        return Response(figures.text(gauges), media_type=metrics.CONTENT_TYPE)

    return app


async def _answer(
    request: Request, model: ServedModel, asked: CompletionRequest | ChatRequest, answer: CompletionAnswer
) -> Response:
    generation, inbox = await model.submit(asked, request.scope["began"])
    request.scope["generation"] = generation
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        events = _events(model, generation, inbox, answer, with_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    watcher = asyncio.ensure_future(_cancel_at_hang_up(request, generation))
    text = "".join([part async for part in inbox])
    watcher.cancel()
    if error := failure(generation.finish, model.limits):
        raise error
    counts = usage(generation.prompt_tokens, generation.tokens)
    return JSONResponse(answer.whole(text, generation.finish, counts))


async def _events(
    model: ServedModel, generation: Generation, inbox: Inbox, answer: CompletionAnswer, with_usage: bool
) -> AsyncIterator[str]:
    """The events of a stream.  An error is its last event."""
    if answer.first:
        yield event(answer.chunk(answer.first))
    async for text in inbox:
        yield event(answer.chunk(answer.part(text)))
    if error := failure(generation.finish, model.limits):
        yield event(error.body())
        return
    yield event(answer.chunk(answer.part(""), generation.finish))
    if with_usage:
        yield event(answer.usage_chunk(usage(generation.prompt_tokens, generation.tokens)))
    yield DONE


async def _cancel_at_hang_up(request: Request, generation: Generation) -> None:
    """For an answer in one piece; a stream is stopped by the framework."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation.cancel()
