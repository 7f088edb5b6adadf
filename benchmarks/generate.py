"""Text of a network of your own on this CPU: python benchmarks/generate.py FOLDER TEXT.

- Tokens a second of ``network.generate`` for each type of weights, beside transformers' generate for the same network,
  exported.  llama.cpp has no network of this kind, and is no candidate.
- Mean negative log-likelihood of a text's next tokens, for each type of weights.

FOLDER: of a planer network with a vocabulary, such as results/enwik8-mini/baseline/retrain.  TEXT: a text file that it
was not trained on.  Candidates are timed in turn.  Results go to
benchmarks/results/<processor>-generate-<folder>-<date>.json and, as tables, to standard output.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.output import command_line, positive, slug, start, table, write_results
from planer.errors import UserError
from planer.kernels.cpp import build
from planer.kernels.sparse_decode import WEIGHTS
from planer.measure import by_round, measure, summary
from planer.models.decoder import Sequences, decoder_of
from planer.models.export import export_network
from planer.models.network import Network, load
from planer.runtime import device_name, set_up_process

CPU = torch.device("cpu")
SEQUENCES = 8
"""Pieces that a text is cut into; they are read side by side."""
PROMPT = 16
"""Tokens of a text that are continued."""
TRANSFORMERS = "transformers"


def in_transformers(folder: Path, ids: list[int], tokens: int) -> Callable[[], object]:
    """Greedy text of the exported network."""
    from transformers import AutoModelForCausalLM

    import planer.models.hub  # noqa: F401

    with tempfile.TemporaryDirectory() as exported:
        export_network(folder, Path(exported) / "hf")
        model = AutoModelForCausalLM.from_pretrained(Path(exported) / "hf")
    prompt = torch.tensor([ids])
    return lambda: model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def timed(network: Network, folder: Path, ids: list[int], options: argparse.Namespace) -> list[dict]:
    """A row for each candidate."""
    copies = {weights: load(folder) for weights in WEIGHTS}  # each keeps one layout of its weights

    def engine(weights: str) -> Callable[[], object]:
        return lambda: copies[weights].generate(ids, weights=weights, tokens=options.tokens)

    calls = {weights: engine(weights) for weights in WEIGHTS}
    calls[TRANSFORMERS] = in_transformers(folder, ids, options.tokens)
    ms = by_round(measure(calls, options.rounds, 1, 0, options.seconds, CPU, description="generate"))
    rows = []
    for name in calls:
        speed_up = float((ms[TRANSFORMERS] / ms[name]).median())
        found = summary(ms[name])
        rate = options.tokens / found["median_ms"] * 1e3
        rows.append({"name": name, "tokens_per_s": rate, "over_transformers": speed_up} | found)
    return rows


@torch.inference_mode()
def nll(network: Network, ids: list[int], weights: str) -> float:
    """Mean negative log-likelihood in nats of every token but the first two of each piece."""
    pieces = torch.tensor(ids[: len(ids) // SEQUENCES * SEQUENCES]).view(SEQUENCES, -1)
    context = {"mem_len": network.surroundings.mem_len, "clamp_len": network.surroundings.clamp_len}
    states = [network(piece[None, :1], **context, same_length=True, attention="cached").state for piece in pieces]
    sequences = Sequences(decoder_of(network, weights), states, pieces.shape[1], **context)
    total = 0.0
    for current, following in zip(pieces.T[1:], pieces.T[2:], strict=False):
        total -= float(sequences.read(current).gather(1, following[:, None]).double().sum())
    return total / pieces[:, 2:].numel()


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--threads", type=positive, default=1, help="default: %(default)s")
    parser.add_argument("--tokens", type=positive, default=64, help="written in a call (default: %(default)s)")
    parser.add_argument("--read", type=positive, default=8192, help="tokens for the likelihood (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=10, help="calls of every candidate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="most seconds of timing (default: %(default)s)")
    options = parser.parse_args()
    if not options.text.is_file():
        raise UserError(f"{options.text} is no file; name a text that the network was not trained on")
    if not build.available():
        raise UserError("there is no decode engine without a C++ compiler; install one or set CXX")
    torch.set_num_threads(options.threads)
    set_up_process()
    network = load(options.folder)
    text = options.text.read_text(errors="replace")[: 8 * options.read]
    ids = network.encode(text)[: options.read]
    if len(ids) < 3 * SEQUENCES + PROMPT:
        raise UserError(f"{options.text} has {len(ids)} tokens; name a text of at least {3 * SEQUENCES + PROMPT}")
    load_before = os.getloadavg()[0]
    rows = timed(network, options.folder, ids[:PROMPT], options)
    likelihoods = {weights: nll(network, ids, weights) for weights in WEIGHTS}
    lines = [[r["name"], f"{r['tokens_per_s']:.0f}", f"{r['over_transformers']:.2f}"] for r in rows]
    table("generate", ["weights", "tokens a second", "times faster than transformers"], lines)
    exact = likelihoods["float32"]
    lines = [[name, f"{value:.5f}", f"{100 * (value / exact - 1):+.3f} %"] for name, value in likelihoods.items()]
    table("likelihood", ["weights", "nats a token", "change"], lines)
    content = {"folder": str(options.folder), "text": str(options.text), "threads": options.threads}
    content |= {"load_before": load_before, "tokens_read": len(ids), "rows": rows, "nll": likelihoods}
    name = slug("-".join(options.folder.resolve().parts[-3:]))
    write_results(options.results, device_name(CPU), content, f"-generate-{name}")


if __name__ == "__main__":
    start(main)
