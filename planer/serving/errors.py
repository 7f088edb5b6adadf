"""Refusals and faults as the completions API's error bodies: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from planer.parsing import show


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict:
        """The document."""
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The document with its status and headers."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def hung_up() -> ApiError:
    """What becomes of a request whose client is gone: nobody reads it, but the log and the figures have its status."""
    return ApiError(499, "the client hung up", "cancelled")


def invalid(problem: Mapping) -> ApiError:
    """The first of pydantic's findings in one line."""
    param = ".".join(map(str, problem["loc"][1:])) or None
    where = param or "the body"
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {problem['ctx']['error']}", "invalid_json")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not supported; leave it out", "unknown_parameter", param)
    if problem["type"] == "missing":
        return ApiError(400, f"{where} is missing", "missing_parameter", param)
    if isinstance(problem["input"], bytes):  # another type is not parsed
        return ApiError(400, "the body must be JSON; send the header Content-Type: application/json", "invalid_json")
    reason = problem["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where} is {show(problem['input'])}: {reason}", "invalid_value", param)


def add_handlers(app: FastAPI) -> None:
    """Have the app answer every error with such a body."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error.errors()[0]).response()

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {show(request.url.path)}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "the server has a fault; its log says more", "internal_error").response()
