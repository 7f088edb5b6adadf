"""Benchmarks of the kernels on a GPU: python benchmarks/gpu.py, or make gpu.

Every comparison times its candidates in turn, with cold caches, as CUDA graphs where they can be captured; the rest,
marked with a star, with their launches.  Results go to benchmarks/results/<device>-<date>.json and, as tables, to
standard output; the file of some --sections has their names too.  --device cpu --small rehearses the whole on a CPU
with sizes that mean nothing.  The exit status is 1 after a section that failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.experts import ROUTINGS, Sizes, case, forward_backward, providers
from benchmarks.graphs import Candidate, candidate, interleaved
from benchmarks.output import command_line, section_option, section_suffix, start, table, write_results
from planer.config import WorkloadConfig
from planer.kernels.activations import activate
from planer.kernels.dynamic_ffn import dynamic_ffn
from planer.kernels.neuron_threshold import neuron_threshold
from planer.latency.networks import Pool, timed_forward
from planer.runtime import Runtime
from planer.specs import Architecture, Attention, FeedForward, MoE, Skip, from_notation

LIMITS = {(4_096, 1): 1.6, (12_288, 1): 1.25, (32_768, 1): 1.15, (4_096, 2): 2.6, (12_288, 2): 2.25, (32_768, 2): 2.15}
"""Forward time of a mixture over that of a dense layer, by tokens and experts per token: what an H200 should reach."""

NETWORKS = {"baseline": "(sf)x12", "par": "(sff)x5(f)x9", "searched": "(s2f)x2m1s4fm2s1fiis2m1(sf)x2m2ffii"}
"""The last as a search for half the latency finds them: fewer heads, some mixtures, some positions empty."""


class Session:
    """What all comparisons share: the device, the sizes, the time left, and the rows found so far."""

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device(options.device)
        self.small = options.small
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.sizes = Sizes(32, 64, 8) if self.small else Sizes()
        self.tokens = (32, 64) if self.small else (4_096, 12_288, 32_768)
        self.rounds = 3 if self.small else 25
        self.deadline = time.perf_counter() + options.seconds
        self.rows: list[dict] = []
        self.left_out: dict[str, str] = {}

    def compare(
        self, calls: Iterator[tuple[str, Callable[[], object], float]], capture: bool = True, **what
    ) -> dict[str, float]:
        """Time calls (name, call, useful FLOPs) against each other; the first is what the others are divided by."""
        ready: dict[str, Candidate] = {}
        flops = {}
        for name, call, useful in calls:
            try:
                ready[name], flops[name] = candidate(call, self.device, capture), useful
            except Exception as error:  # one candidate less is no reason to lose the others
                self.leave_out(f"{what['section']} {name}", error)
        samples = interleaved(ready, self.rounds, self.device)
        first = np.median(next(iter(samples.values())))
        medians = {}
        for name, us in samples.items():
            medians[name] = float(np.median(us))
            p10, p90 = (float(v) for v in np.percentile(us, (10, 90)))
            times = {"us": medians[name], "p10_us": p10, "p90_us": p90, "n": len(us), "ratio": medians[name] / first}
            graphed = ready[name].graphed or what.get("execution") == "graph"
            rate = {"tflops": flops[name] / medians[name] / 1e6} if flops[name] else {}
            self.rows.append({**what, "provider": name, "graph": graphed, **times, **rate})
        return medians

    def leave_out(self, what: str, error: Exception) -> None:
        """Remember why something was not measured; the first reason counts."""
        self.left_out.setdefault(what, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")

    def cell(self, **what) -> str:
        """One number of a table: microseconds and the ratio to the first candidate."""
        found = [row for row in self.rows if what.items() <= row.items()]
        if not found:
            return "-"
        return f"{found[0]['us']:.0f}{'' if found[0]['graph'] else '*'} ({found[0]['ratio']:.2f})"

    def out_of_time(self, section: str) -> bool:
        if time.perf_counter() < self.deadline:
            return False
        self.left_out.setdefault(section, "out of time: what was left of it was not measured")
        return True


def mixtures(session: Session) -> None:
    """Dense layers and mixtures of experts."""
    backends = ["loop", "grouped_mm", "triton"]
    for tokens in session.tokens:
        for k in (1, 2):
            for routing in ROUTINGS:
                if session.out_of_time("experts"):
                    return
                mixture = case(session.sizes, tokens, k, routing, session.dtype, session.device)
                dy = torch.randn_like(mixture.x)
                for mode, passes in (("forward", 1), ("forward+backward", 3)):
                    calls = []
                    for name, call, leaves in providers(session.sizes, mixture, backends):
                        inference = torch.inference_mode()(call)
                        call = inference if mode == "forward" else forward_backward(call, leaves, dy)
                        flops = passes * session.sizes.flops(tokens, {"dense": 1, "dense_x8": 8}.get(name, k))
                        calls.append((name, call, flops))
                    session.compare(calls, section="experts", tokens=tokens, k=k, routing=routing, mode=mode)
    columns = ["dense", "dense_x8", *backends, "transformers"]
    for mode in ("forward", "forward+backward"):
        lines = [
            [f"{tokens} top-{k} {routing}"]
            + [
                session.cell(section="experts", tokens=tokens, k=k, routing=routing, mode=mode, provider=p)
                for p in columns
            ]
            for tokens in session.tokens
            for k in (1, 2)
            for routing in ROUTINGS
        ]
        table(f"Experts, {mode}: us (ratio to dense)", ["tokens", *columns], lines)


def dynamic_experts(session: Session) -> None:
    """Layers that execute a share of their neurons.  clustered: eight kinds of tokens, each with experts of its own."""
    backends = ["masked_dense", "triton"]
    d, f = session.sizes.d_model, session.sizes.d_inner
    sizes = (6, 16) if session.small else (6, 16, 32, 64, 128)
    kinds = {"float32": torch.float32}
    if session.device.type == "cuda":
        kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    cases = [(s, share, r) for s in sizes for r in ("random", "clustered") for share in (0.01, 0.05, 0.1, 0.25, 0.5)]
    tokens = session.tokens[min(1, len(session.tokens) - 1)]
    lines = []
    for kind, dtype in kinds.items():
        for size, share, routing in cases:
            if session.out_of_time("dynamic"):
                break
            n = f // size
            generator = torch.Generator().manual_seed(size)

            def draw(*shape, scale=1.0, generator=generator, dtype=dtype):
                return (torch.randn(shape, generator=generator) * scale).to(session.device, dtype)

            rows = tokens if routing == "random" else 8
            mask = (torch.rand(rows, n, generator=generator) < share).to(session.device)
            mask = mask.repeat_interleave(-(-tokens // rows), dim=0)[:tokens]
            arguments = draw(tokens, d), draw(n * size, d, scale=d**-0.5), draw(n * size), draw(n * size, d), draw(d)
            x, w1, b1, w2, b2 = arguments
            useful = 4.0 * d * size * mask.sum().item()
            union = torch.stack([block.any(dim=0).float().mean() for block in mask.split(64)]).mean().item()
            dense = partial(
                lambda x, w1, b1, v, b2: F.linear(F.relu(F.linear(x, w1, b1)), v, b2), x, w1, b1, w2.t(), b2
            )
            calls = [("dense", dense, 4.0 * tokens * d * n * size)]
            calls += [(b, partial(dynamic_ffn, *arguments, mask, b), useful) for b in backends]
            what = {"section": "dynamic", "dtype": kind, "size": size, "share": share, "routing": routing}
            session.compare(
                [(name, torch.inference_mode()(call), flops) for name, call, flops in calls],
                **what, tokens=tokens, union=round(union, 3),
            )  # fmt: skip
            name = f"{kind} size {size} {100 * share:.0f} % {routing}"
            lines.append([name, f"{union:.2f}"] + [session.cell(**what, provider=p) for p in ("dense", *backends)])
    head = [f"{tokens} tokens", "union", "dense", *backends]
    table("Dynamically executed experts: us (ratio to dense); union: what blocks of 64 tokens need", head, lines)


def thresholds(session: Session) -> None:
    """Few tokens through a layer with gated SiLU that leaves out neurons under a threshold: decoding."""
    d, f = (32, 64) if session.small else (2_048, 8_192)
    generator = torch.Generator().manual_seed(0)
    shapes = (16, d), (2 * f, d), (f, d)
    x, w1, w2 = (torch.randn(s, generator=generator).to(session.device, session.dtype) / s[1] ** 0.5 for s in shapes)
    backends, lines = ("masked_dense", "triton"), []
    for tokens, score, share in itertools.product((1, 4, 16), ("gate", "product"), (0.25, 0.5)):
        if session.out_of_time("thresholds"):
            break
        own = x[:tokens] * d**0.5
        compared = F.silu(F.linear(own, w1[:f])) if score == "gate" else activate(F.linear(own, w1), "swiglu")
        limits = compared.abs().float().quantile(1 - share).expand(f)
        dense = partial(lambda own: F.linear(activate(F.linear(own, w1), "swiglu"), w2.t()), own)
        arguments = own, w1, None, w2, None, limits, score
        calls = [("dense", dense)] + [(b, partial(neuron_threshold, *arguments, b, "swiglu")) for b in backends]
        what = {"section": "thresholds", "tokens": tokens, "score": score, "share": share}
        session.compare([(name, torch.inference_mode()(call), 0.0) for name, call in calls], **what)
        cells = [session.cell(**what, provider=name) for name in ("dense", *backends)]
        lines.append([f"{tokens} {score} {100 * share:.0f} %", *cells])
    table(f"Thresholds on neurons, {d} x {f}: us (ratio to dense)", ["tokens", "dense", *backends], lines)


def workload(session: Session, attention: str, execution: str) -> WorkloadConfig:
    batch, tgt_len, mem_len = (2, 16, 16) if session.small else (64, 64, 640)
    return WorkloadConfig(batch, tgt_len, mem_len, attention, execution)


def architecture(session: Session, blocks=()) -> Architecture:
    return Architecture(204, session.sizes.d_model, tuple(blocks))


def blocks(session: Session) -> dict[str, object]:
    """Specifications by symbol."""
    d, i, e = session.sizes.d_model, session.sizes.d_inner, session.sizes.experts
    heads = {f"s{h}": Attention(h, d // 8) for h in (1, 2, 4, 8)}
    return {**heads, "s": heads["s8"], "f": FeedForward(i), "i": Skip(), "m1": MoE(i, e, 1), "m2": MoE(i, e, 2)}


def executions(session: Session) -> tuple[str, ...]:
    return ("eager", "graph") if session.device.type == "cuda" else ("eager",)


def attention_blocks(session: Session) -> None:
    """A block costs the difference between stacks of four and of two, over two."""
    specs = {name: spec for name, spec in blocks(session).items() if name in ("s1", "s2", "s4", "s8", "f", "m1", "m2")}
    lines = {name: [name] for name in specs}
    head = []
    for execution in executions(session):
        for attention in ("cached", "recompute"):
            if session.out_of_time("blocks"):
                return
            load = workload(session, attention, execution)
            pool = Pool(
                architecture(session),
                dict.fromkeys(specs.values(), 4),
                load,
                Runtime(session.device, session.dtype),
                (attention,),
            )
            for name, spec in specs.items():
                stacks = [(str(n), pool.network([spec] * n, attention, head=False), 0.0) for n in (2, 4)]
                what = {"section": "blocks", "block": name, "attention": attention, "execution": execution}
                us = session.compare(iter(stacks), capture=False, **what)
                lines[name].append(f"{(us['4'] - us['2']) / 2:.1f}")
            head.append(f"{attention} {execution}")
    table("Blocks of a network: us each", ["block", *head], list(lines.values()))


def networks(session: Session) -> None:
    """Whole networks, from tokens to their likelihoods."""
    lines = {name: [name] for name in NETWORKS}
    head = []
    for execution in executions(session):
        for attention in ("cached", "recompute"):
            if session.out_of_time("networks"):
                return
            load = workload(session, attention, execution)
            calls = []
            for name, pattern in NETWORKS.items():
                network = architecture(session, from_notation(pattern, blocks(session)))
                calls.append(
                    (name, timed_forward(network, load, Runtime(session.device, session.dtype), attention), 0.0)
                )
            what = {"section": "networks", "attention": attention, "execution": execution}
            us = session.compare(iter(calls), capture=False, **what)
            for name in NETWORKS:
                lines[name].append(f"{us[name]:.0f} ({us[name] / us['baseline']:.2f})")
            head.append(f"{attention} {execution}")
    table("Networks: us (ratio to baseline)", ["network", *head], list(lines.values()))


def verdict(session: Session) -> None:
    """Where the mixtures of experts stand against LIMITS and against the loop."""
    lines = []
    for (tokens, k), limit in LIMITS.items():
        for row in session.rows:
            asked = {"section": "experts", "tokens": tokens, "k": k, "mode": "forward", "routing": "balanced"}
            if asked.items() <= row.items() and row["provider"] in ("triton", "grouped_mm"):
                reached = "reached" if row["ratio"] <= limit else "MISSED"
                lines.append([f"{tokens} top-{k}", row["provider"], f"{row['ratio']:.2f}", f"{limit:.2f}", reached])
    if lines:
        table("Forward time over the dense layer's, balanced", ["tokens", "provider", "ratio", "limit", ""], lines)
    experts = [row for row in session.rows if row["section"] == "experts"]
    slower = [
        f"{row['tokens']} top-{row['k']} {row['routing']} {row['mode']}"
        for row in experts
        for loop in experts
        if row["provider"] == "triton" and loop["provider"] == "loop" and row["us"] > loop["us"]
        and all(row[key] == loop[key] for key in ("tokens", "k", "routing", "mode"))
    ]  # fmt: skip
    if session.device.type == "cuda":
        print("\ntriton slower than the loop:", "; ".join(slower) or "nowhere")


SECTIONS = {
    "experts": mixtures, "dynamic": dynamic_experts, "thresholds": thresholds, "blocks": attention_blocks,
    "networks": networks,
}  # fmt: skip


def main() -> None:
    parser = command_line(__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--seconds", type=float, default=330, help="start no further comparison after this long")
    section_option(parser, [*SECTIONS])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: there is no CUDA device; --device cpu --small rehearses on a CPU")
    torch.manual_seed(0)
    session = Session(options)
    name = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    )
    print(f"{name}, {os.cpu_count()} processors, torch {torch.__version__}")
    failed = []
    for section in options.sections:
        began = time.perf_counter()
        try:
            SECTIONS[section](session)
        except Exception as error:  # what was measured before is still written
            traceback.print_exc()
            session.leave_out(section, error)
            failed.append(section)
        print(f"[{section}: {time.perf_counter() - began:.0f} s]", flush=True)
    verdict(session)
    for what, reason in session.left_out.items():
        print(f"left out: {what}: {reason}")
    content = {"rounds": session.rounds, "left_out": session.left_out, "rows": session.rows}
    suffix = section_suffix(options.sections, [*SECTIONS]) + ("-small" if options.small else "")
    if session.rows:
        write_results(options.results, name, content, suffix)
    if failed:
        sys.exit(f"benchmarks/gpu.py: failed: {', '.join(failed)}")


if __name__ == "__main__":
    start(main)
