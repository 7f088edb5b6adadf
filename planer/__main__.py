"""python -m planer: generate text with a trained network, serve it, show what it is, export or register it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from planer.errors import UserError
from planer.serving.limits import Limits

if TYPE_CHECKING:
    from planer.models.network import Network

WEIGHTS = ("float32", "bfloat16", "int8")
"""Those of planer/kernels/sparse_decode, which needs PyTorch."""
LIMITS = {
    "request_bytes": "bytes of a request's body",
    "prompt_tokens": "tokens of a prompt",
    "max_tokens": "tokens that one request may ask for",
    "active": "requests that generate side by side",
    "waiting": "requests that wait for their turn; the next one is refused",
    "seconds": "time from the arrival of a request to its last token",
    "grace": "seconds that requests have to finish after SIGTERM",
    "threads": "threads of PyTorch; 0: its default",
}
"""Options of the server: fields of ``Limits``."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"planer: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """The command line.  PyTorch is imported by the commands, after their arguments have been read."""
    top = Parser(prog="python -m planer", description=__doc__.partition(": ")[2])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, text: str) -> Parser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", metavar="FOLDER", help="of a network: results/.../retrain, .../hf, an export")
        command.add_argument("--vocab", metavar="PATH", help="vocab.json of its text, where it cannot be found")
        command.set_defaults(run=run)
        return command

    command = add("generate", generate, "continue a prompt")
    command.add_argument("prompt", metavar="PROMPT", help="text; its words or bytes must be in the vocabulary")
    command.add_argument("--tokens", type=int, default=128, help="tokens that follow the prompt (128)")
    command.add_argument("--temperature", type=float, default=0.0, help="0, the default: the most probable token")
    command.add_argument("--top-k", type=int, default=0, help="sample from this many tokens; 0: from all")
    command.add_argument("--top-p", type=float, default=1.0, help="sample from tokens of this probability in all (1)")
    command.add_argument("--seed", type=int, default=0, help="of the random choices (0)")
    _run_options(command)
    command = add("serve", serve, "answer requests of the completions API over HTTP")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    command.add_argument("--name", help="of the model, for clients (its experiment and variant, or the folder's name)")
    _run_options(command)
    for name, text in LIMITS.items():
        default = getattr(Limits, name)
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, type=type(default), default=default, metavar="N", help=f"{text} ({default:g})")
    add("info", info, "show what a network is")
    command = add("export", export, "write a Hugging Face folder")
    command.add_argument("out", metavar="OUT", help="a new or empty folder")
    command.add_argument("--plain", action="store_true", help="the dense network of a converted folder alone")
    command = add("register", register, "register a network as a model in MLflow")
    command.add_argument("name", metavar="NAME", help="of the model; a known one gets its next version")
    command.add_argument("--results", metavar="PATH", type=Path, default="results", help="where mlflow.db is (results)")
    return top


def _run_options(command: Parser) -> None:
    """How a network is run."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    command.add_argument(
        "--weights", default="float32", choices=WEIGHTS, help="as stored for reading one token on a CPU (float32)"
    )


def generate(options: argparse.Namespace) -> None:
    """Write the prompt and what follows it, as it comes."""
    from planer.models.generate import Sampling

    names = ("tokens", "temperature", "top_k", "top_p", "seed")
    sampling = {name: getattr(options, name) for name in names}
    Sampling.of(**sampling)  # before the network is read
    network = _load(options)
    ids = network.encode(options.prompt)
    pieces = network.surroundings.vocabulary.pieces(network.stream(ids, options.weights, **sampling), ids)
    first = next(pieces, "")  # before anything is written: the network may refuse the prompt
    print(f"{options.prompt}{first}", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def serve(options: argparse.Namespace) -> None:
    """Answer requests until a signal."""
    limits = Limits.of(**{name: getattr(options, name) for name in LIMITS})
    with _packages("'planer[serve]'"):
        from planer.serving.server import Server, is_loopback, run
    network = _load(options)
    name = options.name or network.surroundings.variant or Path(options.folder).resolve().name
    server = Server(network, name, limits, options.host, options.port, options.weights)
    if not is_loopback(options.host):
        print(f"anyone who reaches {server.address} can use the network: it asks for no key", file=sys.stderr)
    run(server, name)


def _load(options: argparse.Namespace) -> Network:
    """The network that is to be run, in a process with the settings of the stages."""
    import planer
    from planer.runtime import convolve_as_matmul, flush_denormals

    flush_denormals()
    convolve_as_matmul()
    _show_builds()
    return planer.load(options.folder, options.device, options.vocab)


def _show_builds() -> None:
    """Have standard error say when C++ kernels are built: the first token waits a minute for them."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("planer.kernels.cpp").setLevel(logging.INFO)


def info(options: argparse.Namespace) -> None:
    """Print one fact a line."""
    from planer.pretrained.folder import is_pretrained

    if is_pretrained(options.folder):
        from planer.pretrained.describe import describe

        facts = list(describe(options.folder))
    else:
        from planer.models.describe import describe

        facts = list(describe(options.folder, options.vocab))
    for name, value in facts:
        print(f"{name + ': ':<12}{value}")


def export(options: argparse.Namespace) -> None:
    """Write the folder and say how to load it."""
    from planer.pretrained.folder import is_pretrained

    if options.plain:
        from planer.pretrained.save import export_plain

        export_plain(options.folder, options.out)
        print(f"wrote {options.out}")
        return
    if is_pretrained(options.folder):
        raise UserError(f"{options.folder} is a Hugging Face folder already; --plain writes its dense network alone")
    from planer.models.export import export_network

    export_network(options.folder, options.out, options.vocab)
    print(f"wrote {options.out}; its README.md says how to load it")


def register(options: argparse.Namespace) -> None:
    """Log the network and say how to serve it."""
    with _packages("mlflow"):
        from planer.serving.register import register

        address = register(options.folder, options.name, options.results, options.vocab)
    print(f"registered {address}; docs/serving.md says how to serve it")


@contextmanager
def _packages(names: str) -> Iterator[None]:
    """Raise UserError, saying what to install, when an import in the block fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"there is no package {error.name}; pip install {names}") from error


def main(arguments: list[str] | None = None) -> None:
    """Run a command.  A user's mistake ends it with one line and status 1."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except UserError as error:
        message = " ".join(str(error).split()).removeprefix("pretrained.folder: ")  # a key of experiments
        sys.exit(f"planer: {message}")
    except (BrokenPipeError, KeyboardInterrupt):  # the reader has enough
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        print(f"planer: {error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        sys.stderr.close()  # Python would complain once more when it closes standard output
        sys.exit(1)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # not every terminal has every character
    main()
