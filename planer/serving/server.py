"""A server's life: bind, start, answer until a signal, finish what was begun, end."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import uvicorn

from planer.errors import UserError
from planer.models.network import Network
from planer.serving.limits import Limits
from planer.serving.model import ServedModel
from planer.serving.routes import build_app

CONNECTIONS = 512
"""Open connections beyond one for each request that may be active or waiting; more are refused with status 503."""
CLOSING_SECONDS = 5
"""How long the last answers may take to leave."""
TICK_SECONDS = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """One network at one address.  The web side and the engine run in two threads."""

    def __init__(
        self,
        network: Network,
        name: str,
        limits: Limits,
        host: str = "127.0.0.1",
        port: int = 8000,
        weights: str = "float32",
    ):
        """port: 0 takes a free one.  weights: see ``Network.generate``.

        Raises UserError when the address cannot be had, or the network has no text.
        """
        self._model, self._grace = ServedModel(network, name, limits, weights), limits.grace
        self._socket = _bound(host, port)
        self.port = self._socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        config = uvicorn.Config(
            build_app(self._model),
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS + limits.active + limits.waiting,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
        self._web = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._web.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    @property
    def running(self) -> bool:
        """Whether both threads run."""
        return self._thread.is_alive() and self._model.engine.alive

    def start(self) -> None:
        """Return when requests are answered."""
        self._model.warm_up()
        self._model.engine.start()
        self._thread.start()
        while self.running and not self._web.started:
            time.sleep(TICK_SECONDS)

    def stop(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Refuse new requests, give the others the grace time, then end them.

        hurried: whether the grace time is over already.
        """
        engine, end = self._model.engine, time.monotonic() + self._grace
        engine.drain()
        while engine.active + engine.waiting and time.monotonic() < end and not hurried():
            time.sleep(TICK_SECONDS)
        engine.close()
        self._web.should_exit = True
        self._thread.join()


def run(server: Server, name: str) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the grace time.  Raises UserError when the server fails."""
    signals = []
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: signals.append(number))
    server.start()
    print(f"{name} answers on {server.address}/v1", flush=True)
    while server.running and not signals:
        time.sleep(TICK_SECONDS)
    if signals:
        print("stopping: active requests may finish", file=sys.stderr, flush=True)
    server.stop(hurried=lambda: len(signals) > 1)
    if not signals:
        raise UserError("the server failed; the lines above say why")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: no name of a host
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise UserError(f"port {port} of {host}: {reason}; name others with --host and --port") from error
