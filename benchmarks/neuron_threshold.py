"""Thresholds on the neurons of a pretrained decoder, without training: python benchmarks/neuron_threshold.py FOLDER

Prints for both scores and allocations what a share of the neurons costs in FLOPs and in nll, on validation text.  The
share chosen there is scored on test text.  Then it times decoding and prefill, in turn with the dense network.
Results go to benchmarks/results/<processor>-neuron-threshold-<date>.json.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.output import command_line, positive, start, table, write_results
from planer.config.pretrained import NeuronThresholdConfig
from planer.conversion.counter import counting
from planer.conversion.neuron_threshold import calibrate
from planer.conversion.sites import feed_forward_sites
from planer.conversion.threshold_layer import apply_thresholds
from planer.data.task_files import TaskFacts
from planer.evaluation.arms.flops import layer_flops, thresholded_flops
from planer.measure import by_round, measure
from planer.paired import Paired, compare_pairs
from planer.pretrained.folder import check_folder
from planer.pretrained.load import load_model, load_tokenizer
from planer.runtime import Runtime, device_name, set_up_process
from planer.tasks.causal_blocks import CausalBlocks, token_nll

SHARES = {"product": (0.7, 0.5, 0.4, 0.3), "gate": (0.9, 0.8, 0.7, 0.5)}
"""Mean shares of neurons that are tried."""
BUDGET, BAR = 0.012, 0.16
"""Rise of nll that is allowed, as a share, and the share of the feed-forward FLOPs that it should save."""
BLOCK = 512
CONTEXT = 64
"""Tokens before the one whose decoding is timed."""
CPU = torch.device("cpu")


def read_tokens(tokenizer, path: Path, count: int) -> Tensor:
    """The first tokens of a text, [count + 1]."""
    text = path.read_text(encoding="utf-8")[: 8 * count].replace("<unk>", "unknown")
    return torch.tensor(tokenizer(text).input_ids[: count + 1], dtype=torch.int32)


@torch.inference_mode()
def nll(model: nn.Module, task: CausalBlocks, split: str) -> np.ndarray:
    """Nats per token of a split."""
    return torch.cat([token_nll(model, batch).flatten() for batch in task.batches(split)]).double().numpy()


def curve(model: nn.Module, task: CausalBlocks, tokens: int, seconds: dict[str, float]) -> Iterator[dict]:
    """A row for each score, allocation and share, on validation text.  seconds: of each calibration, filled in."""
    sites, dense = feed_forward_sites(model), nll(model, task, "valid")
    for score, shares in SHARES.items():
        for allocation in ("uniform", "greedy"):
            began = time.perf_counter()
            network = copy.deepcopy(model)
            found = calibrate(network, task, NeuronThresholdConfig(score, tokens, shares, allocation), 0)
            seconds[f"{score} {allocation}"] = time.perf_counter() - began
            for share, thetas in found.thetas.items():
                densities = found.densities[share]
                apply_thresholds(network, thetas, score, densities)
                with counting(network) as counter:
                    paired = compare_pairs(nll(network, task, "valid"), dense)
                kept = counter.per_token()
                flops = sum(thresholded_flops(site, score, kept[site.name]) for site in sites)
                yield {
                    "score": score,
                    "allocation": allocation,
                    "share": share,
                    "executed": float(np.mean(list(counter.shares().values()))),
                    "flops": flops / sum(map(layer_flops, sites)),
                    "thetas": dict(thetas),
                    "densities": dict(densities),
                    **rise(paired),
                }


def score_on_test(model: nn.Module, task: CausalBlocks, rows: list[dict]) -> None:
    """Add the rise of nll on test text to rows."""
    dense, network = nll(model, task, "test"), copy.deepcopy(model)
    for row in rows:
        apply_thresholds(network, row["thetas"], row["score"], row["densities"])
        row["test"] = rise(compare_pairs(nll(network, task, "test"), dense))


def rise(paired: Paired) -> dict[str, float]:
    """Of nll, in nats and as a share."""
    return {"rise": paired.difference, "standard_error": paired.standard_error, "rise_share": paired.share}


def decoding(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Predict one more token after a context that is kept."""
    from transformers import DynamicCache  # three seconds

    with torch.inference_mode():
        cache = DynamicCache()
        model(ids[None, :CONTEXT], cache=cache, use_cache=True)

    @torch.inference_mode()
    def call() -> None:
        model(ids[None, CONTEXT : CONTEXT + 1], cache=cache, use_cache=True)
        cache.crop(-1)

    return call


def prefill(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Read a block of tokens at once, without predictions."""

    @torch.inference_mode()
    def call() -> None:
        model.base_model(ids[None, :BLOCK], use_cache=False)

    return call


def timed(model: nn.Module, rows: list[dict], ids: Tensor, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Of decoding and prefill: median ms, and the median of its ratio to the dense network within a round."""
    networks = {"dense": model}
    for row in rows:
        network = networks[f"{row['score']} {row['allocation']} {row['share']}"] = copy.deepcopy(model)
        apply_thresholds(network, row["thetas"], row["score"], row["densities"])
    found = {}
    for what, make in (("decoding one token", decoding), (f"prefill of {BLOCK} tokens", prefill)):
        calls = {name: make(network, ids) for name, network in networks.items()}
        ms = by_round(measure(calls, rounds, 2, 0, 120.0, CPU, what))
        ratios = ms.div(ms["dense"], axis=0).median()
        found[what] = {name: {"median_ms": float(ms[name].median()), "ratio": float(ratios[name])} for name in calls}
    return found


def best(rows: list[dict], score: str) -> dict:
    """The row with the fewest FLOPs within the budget on validation text, or else the one with the smallest rise."""
    own = [row for row in rows if row["score"] == score]
    within = [row for row in own if row["rise_share"] <= BUDGET]
    return min(within, key=lambda row: row["flops"]) if within else min(own, key=lambda row: row["rise_share"])


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, help="a pretrained decoder")
    parser.add_argument("--calibration", type=Path, required=True, help="text that thresholds are calibrated on")
    parser.add_argument("--valid", type=Path, required=True, help="text that the share of neurons is chosen on")
    parser.add_argument("--test", type=Path, required=True, help="text that the chosen share is scored on")
    parser.add_argument("--tokens", type=positive, default=4096, help="of each text (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=31, help="decoded tokens each (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_up_process()
    folder = check_folder(options.folder, "causal_lm")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    texts = {"train": options.calibration, "valid": options.valid, "test": options.test}
    splits = {name: {"tokens": read_tokens(tokenizer, path, options.tokens)} for name, path in texts.items()}
    task = CausalBlocks(TaskFacts("text", "nll", block_size=BLOCK), splits, None, Runtime(seed=0))
    seconds: dict[str, float] = {}
    rows = list(curve(model, task, options.tokens, seconds))
    chosen = [best(rows, score) for score in SHARES]
    score_on_test(model, task, chosen)
    times = timed(model, chosen, splits["test"]["tokens"].long(), options.rounds)
    show(rows, chosen, seconds, times)
    for row in rows:
        del row["thetas"], row["densities"]
    content = {"folder": folder.path.name, "tokens": options.tokens, "threads": options.threads, "rows": rows}
    content |= {"seconds": seconds, "times": times}
    write_results(options.results, device_name(CPU), content, "-neuron-threshold")


def show(rows: list[dict], chosen: list[dict], seconds: dict[str, float], times: dict[str, dict]) -> None:
    """Print the tables, and whether the bar was reached."""
    lines = [
        [
            f"{row['score']} {row['allocation']}",
            f"{row['executed']:.2f}",
            f"{row['flops']:.3f}",
            f"{row['rise']:+.3f} ({row['standard_error']:.3f})",
            f"{100 * row['rise_share']:+.1f} %",
        ]
        for row in rows
    ]
    table("Without training, validation text", ["", "neurons", "FFN FLOPs", "nll rise (s.e.)", ""], lines)
    used = min(chosen, key=lambda row: (row["rise_share"] > BUDGET, row["flops"]))
    saved = 1 - used["flops"] if used["rise_share"] <= BUDGET else 0.0
    reached = "reached" if saved >= BAR else "MISSED"
    print(f"\nat most {BUDGET:.1%} of nll saves {saved:.1%} of the feed-forward FLOPs, bar {BAR:.0%}: {reached}")
    for row in chosen:
        test = row["test"]
        print(
            f"{row['score']} {row['allocation']} {row['share']} on test text: nll {test['rise']:+.3f} "
            f"({test['standard_error']:.3f}), {test['rise_share']:+.1%}"
        )
    print(", ".join(f"{name}: {value:.0f} s" for name, value in seconds.items()), "to calibrate")
    for what, found in times.items():
        lines = [[name, f"{own['median_ms']:.1f}", f"{own['ratio']:.2f}"] for name, own in found.items()]
        table(what.capitalize(), ["", "ms", "over dense"], lines)


if __name__ == "__main__":
    start(main)
