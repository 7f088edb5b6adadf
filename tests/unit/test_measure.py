"""Interleaved timing, and the networks that are timed."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
import torch
from toy import experiment

import planer.models.transformer
from planer import measure as measure_module
from planer.blocks.moe import MoE as MoEModule
from planer.config import Workload
from planer.latency import networks as networks_module
from planer.latency.networks import Pool, affordable_copies, filled_memory, random_model, timed_forward
from planer.measure import MIN_ROUNDS, by_round, measure, measure_placed, summary
from planer.runtime import Runtime
from planer.specs import Attention, FeedForward, MoE, Skip

CPU = torch.device("cpu")
CONFIG = experiment()
VOCABULARY = 50
SELF, HALF, DENSE, MIXTURE = Attention(2, 16), Attention(1, 16), FeedForward(64), MoE(64, 4, 1)


class Recorded:
    """Callables that record the order of all calls."""

    def __init__(self, names: str):
        self.calls: list[str] = []
        self.callables = {name: (lambda name=name: self.calls.append(name)) for name in names}


def run(names="abcd", rounds=5, warmup=2, seed=1, max_seconds=60.0):
    recorded = Recorded(names)
    return measure(recorded.callables, rounds, warmup, seed, max_seconds, CPU), recorded.calls


def test_every_round_calls_everything_once():
    samples, calls = run()
    assert calls[:8] == list("abcdabcd")
    assert calls[8:] == samples["name"].tolist()
    for number in range(5):
        assert sorted(samples.loc[samples["round"] == number, "name"]) == list("abcd")
    assert (samples["ms"] >= 0).all()


def test_the_order_differs_between_rounds_and_depends_on_the_seed():
    first, again, other = (run("abcdefgh", seed=seed)[1][16:] for seed in (1, 1, 2))
    rounds = [tuple(first[start : start + 8]) for start in range(0, 40, 8)]
    assert len(set(rounds)) == 5
    assert first == again != other


def test_rounds_are_divided_among_rebuilt_networks():
    built: list[Recorded] = []

    def build(number: int) -> dict:
        assert number == len(built)
        built.append(Recorded("abc"))
        return built[-1].callables

    samples = measure_placed(build, 10, 1, 0, 60.0, CPU)
    assert [len(recorded.calls) for recorded in built] == [3 * (1 + 4)] * 3, (
        "a warm-up and four of ten rounds, rounded up"
    )
    assert by_round(samples).shape == (12, 3) and not by_round(samples).isna().any(axis=None)
    rows = zip(samples["name"], (call for recorded in built for call in recorded.calls[3:]), strict=True)
    assert all(name == call for name, call in rows)


@pytest.mark.parametrize(("rounds", "expected"), [(50, MIN_ROUNDS), (2, 2)])
def test_the_time_limit_stops_after_whole_rounds(rounds, expected):
    samples, calls = run(rounds=rounds, warmup=4, max_seconds=0.0)
    assert len(calls) == 4 + 4 * expected, "one warm-up round, then the fewest timed ones"
    assert by_round(samples).shape == (expected, 4)
    assert not by_round(samples).isna().any(axis=None)


def test_times_belong_to_their_callable(monkeypatch):
    clock = {"slow": 7.0, "fast": 0.5}
    monkeypatch.setattr(measure_module, "_cpu_ms", lambda call, device: clock[call()])
    samples = by_round(measure({name: (lambda name=name: name) for name in clock}, 4, 0, 0, 9.0, CPU))
    assert (samples["slow"] == 7.0).all()
    assert (samples["fast"] == 0.5).all()


def test_garbage_collection_is_off_while_timing():
    enabled = []
    measure({"a": lambda: enabled.append(gc.isenabled())}, 1, 0, 0, 9.0, CPU)
    assert enabled == [False]
    with pytest.raises(ZeroDivisionError):
        measure({"a": lambda: 1 / 0}, 1, 0, 0, 9.0, CPU)
    assert gc.isenabled()


def test_quantiles_of_a_summary():
    assert summary(range(11)) == {"median_ms": 5.0, "p10_ms": 1.0, "p90_ms": 9.0, "n": 11}


@pytest.mark.parametrize("attention", ["cached", "recompute"])
@pytest.mark.parametrize("before", [10, 32, 80])
def test_a_timed_call_scores_the_end_of_its_text(attention, before):
    """The memory is the text before the last segment, at most mem_len positions."""
    workload = dataclasses.replace(CONFIG.workload, batch=2, tgt_len=16, mem_len=32)
    model = random_model(CONFIG.model.architecture(VOCABULARY, (SELF, DENSE, MIXTURE, HALF)), Runtime(seed=3))
    text = torch.randint(VOCABULARY, (2, before + 17), generator=torch.Generator().manual_seed(5))
    nll = timed_forward(model, workload, Runtime(), attention, text)()
    memory = None
    with torch.inference_mode():
        for segment in text[:, max(before - 32, 0) : before].split(16, dim=1):
            memory = model(segment, memory, mem_len=32, attention="recompute").state
        memory = [None if m is None else m[:, torch.arange(32) % m.shape[1]] for m in memory]
        hidden = model(text[:, before:-1], memory, mem_len=32).hidden
        expected = model.nll(hidden, text[:, before + 1 :])
    assert nll.shape == (2, 16)
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mem_len", [0, 7, 32, 100])
@pytest.mark.parametrize("attention", ["cached", "recompute"])
def test_memory_is_full(attention, mem_len):
    workload = dataclasses.replace(CONFIG.workload, mem_len=mem_len)
    model = random_model(CONFIG.model.architecture(VOCABULARY, (SELF, Skip(), DENSE)), Runtime(seed=0))
    memory = filled_memory(model, torch.zeros(4, 32, dtype=torch.int64), workload, attention)
    assert memory[1] is memory[2] is None
    for part in memory[0] if attention == "cached" else [memory[0]]:
        assert part.shape[-2] == mem_len


@pytest.mark.parametrize("execution", ["decode", "eager"])
def test_a_long_memory_is_filled_in_linear_time(execution):
    """Only the end of a long text is read, because every token attends to all before it."""
    workload = Workload(batch=1, tgt_len=512, mem_len=20_000, attention="cached", execution=execution)
    model, lengths = random_model(CONFIG.model.architecture(VOCABULARY, (SELF,)), Runtime(seed=0)), []
    model.register_forward_pre_hook(lambda model, given: lengths.append(given[0].shape[1]))
    text = torch.randint(VOCABULARY, (1, 20_000), generator=torch.Generator().manual_seed(5))
    ((keys, values),) = filled_memory(model, text, workload, "cached")
    assert sum(lengths) == networks_module.MOST_READ == 4096
    assert keys.shape == values.shape == (1, 2, 20_000, 16)
    assert torch.equal(keys[:, :, :4096], keys[:, :, 4096:8192])


def test_a_model_in_another_type_is_copied():
    model = random_model(CONFIG.model.architecture(VOCABULARY, (SELF, MIXTURE)), Runtime(seed=0))
    nll = timed_forward(model, CONFIG.workload, Runtime(dtype=torch.bfloat16), "cached")()
    assert nll.dtype == torch.float32, "the loss is scored in single precision"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(nll, timed_forward(model, CONFIG.workload, Runtime(), "cached")(), rtol=0, atol=0.1)


def pool(copies, attentions=("cached", "recompute"), norm="post"):
    architecture = dataclasses.replace(CONFIG.model.architecture(VOCABULARY, ()), norm=norm)
    return Pool(architecture, copies, CONFIG.workload, Runtime(seed=7), attentions)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_networks_of_a_pool_equal_language_models_of_the_same_blocks(norm):
    counts = {SELF: 2, Skip(): 1, DENSE: 2, MIXTURE: 1}
    shared = pool(counts, norm=norm)
    order = (DENSE, SELF, Skip(), MIXTURE, SELF, DENSE)
    architecture = dataclasses.replace(CONFIG.model.architecture(VOCABULARY, ()), norm=norm)
    whole = random_model(
        dataclasses.replace(architecture, blocks=(SELF, SELF, Skip(), DENSE, DENSE, MIXTURE)), Runtime(seed=7)
    )
    tokens = networks_module.random_tokens(architecture, CONFIG.workload, 7)
    memory = filled_memory(whole, tokens[:, :-1], CONFIG.workload, "recompute")
    positions = [3, 0, 2, 5, 1, 4]
    model = random_model(dataclasses.replace(architecture, blocks=order), Runtime(seed=7))
    model.load_state_dict(
        {name: value for name, value in whole.state_dict().items() if not name.startswith("blocks.")}
        | {
            f"blocks.{new}.{name}": value
            for new, old in enumerate(positions)
            for name, value in whole.blocks[old].state_dict().items()
        }
    )
    with torch.inference_mode():
        hidden = model(
            tokens[:, :-1], [memory[position] for position in positions], mem_len=CONFIG.workload.mem_len
        ).hidden
        expected = model.nll(hidden, tokens[:, 1:])
    for attention in ("cached", "recompute"):
        torch.testing.assert_close(shared.network(order, attention)(), expected, rtol=1e-4, atol=1e-4)


DECODING = Workload(batch=3, tgt_len=1, mem_len=6, attention="cached", execution="decode")


def without_engine(monkeypatch) -> None:
    for module in (networks_module, planer.models.decoder):
        monkeypatch.setattr(module, "decoder_of", lambda *arguments: None)


@torch.inference_mode()
def decoded(model, tokens, count: int) -> torch.Tensor:
    """Log-probabilities after each of the first tokens of a text, with all but its last two as memory."""
    memory = filled_memory(model, tokens[:, :-2], DECODING, "cached")
    reading = {"mem_len": DECODING.mem_len, "attention": "cached", "same_length": True}
    return model.log_probs(model(tokens[:, :count], memory, **reading).hidden)


@pytest.mark.parametrize("engine", [True, False])
def test_decoding_token_by_token_equals_a_pass_over_the_text(engine, monkeypatch):
    if not engine:
        without_engine(monkeypatch)
    model = random_model(CONFIG.model.architecture(VOCABULARY, (SELF, DENSE, MIXTURE, HALF)), Runtime(seed=0))
    tokens = networks_module.random_tokens(model.architecture, DECODING, 7)
    assert tokens.shape == (3, 8)
    call = timed_forward(model, DECODING, Runtime(), "cached", tokens)
    for expected in decoded(model, tokens, 3).unbind(1):
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", [True, False])
def test_decoding_networks_of_a_pool(engine, monkeypatch):
    if not engine:
        without_engine(monkeypatch)
    architecture, counts = CONFIG.model.architecture(VOCABULARY, ()), {SELF: 2, DENSE: 1, MIXTURE: 1}
    shared = Pool(architecture, counts, DECODING, Runtime(seed=7), ["cached"])
    specs = (SELF, SELF, DENSE, MIXTURE)
    whole = random_model(dataclasses.replace(architecture, blocks=specs), Runtime(seed=7))
    tokens = networks_module.random_tokens(architecture, DECODING, 7)
    with torch.inference_mode():
        memory = filled_memory(whole, tokens[:, :-1], DECODING, "cached")
        whole.blocks = torch.nn.ModuleList(whole.blocks[place] for place in (2, 0, 3, 1))
        reading = {"mem_len": DECODING.mem_len, "attention": "cached", "same_length": True}
        output = whole(tokens[:, :1], [memory[place] for place in (2, 0, 3, 1)], **reading)
        expected = whole.log_probs(output.hidden[:, 0])
    order = (DENSE, SELF, MIXTURE, SELF)
    found = shared.network(order, "cached")()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    without_head = shared.network(order, "cached", head=False)
    assert without_head().shape == (3, CONFIG.model.d_model)
    assert not torch.equal(without_head(), without_head()), "every call reads another token"


def test_positions_are_prepared_once_for_all_networks(monkeypatch):
    """Calls of other networks, with and without attention, do not delete them."""
    shared = pool({SELF: 2, HALF: 1, DENSE: 1})
    orders = [(SELF,), (DENSE,), (SELF, SELF, HALF), (), (HALF, DENSE)]
    calls = [shared.network(order, attention) for order in orders for attention in ("cached", "recompute")]
    for call in calls:
        call()
    made = []
    monkeypatch.setattr(planer.models.transformer, "sinusoids", lambda *arguments: made.append(arguments))
    for index in np.random.default_rng(0).permutation(len(calls)):
        calls[index]()
    assert not made


def test_a_small_pool_repeats_its_blocks():
    shared = pool({DENSE: 2}, ["cached"])
    assert torch.equal(shared.network((DENSE,) * 4, "cached")(), shared.network((DENSE,) * 4, "cached")())
    assert not torch.equal(shared.network((DENSE,) * 2, "cached")(), shared.network((DENSE,), "cached")())


def test_without_head_the_last_block_is_returned():
    hidden = pool({DENSE: 1}).network((DENSE,), "cached", head=False)()
    assert hidden.shape == (CONFIG.workload.batch, CONFIG.workload.tgt_len, CONFIG.model.d_model)


def test_random_networks_route_nearly_balanced():
    mixtures = {MoE(64, 4, 1): 3, MoE(64, 4, 2): 3}
    shared = pool(mixtures | {SELF: 2})
    loads = []
    for moe in [block.sublayer for block in shared._model.blocks if isinstance(block.sublayer, MoEModule)]:
        moe.register_forward_pre_hook(lambda moe, given: loads.append(MoEModule.forward(moe, given[0], ("load",))))
    shared.network((SELF, *mixtures, SELF, *mixtures), "cached")()
    loads = [aux["load"] for _, aux in loads]
    assert len(loads) == 4
    for load in loads:
        assert load.max() <= 2.2 * load.float().mean(), load


def test_copies_are_bounded_by_memory(monkeypatch):
    """PLANER's enwik8 workload in single precision: the table's stacks of 2 x 4 copies fit into POOL_BYTES."""
    model, workload = CONFIG.model, dataclasses.replace(CONFIG.workload, batch=64, tgt_len=64, mem_len=640)
    model = dataclasses.replace(model, d_model=512, num_heads=8, d_inner=2048, num_experts=8)
    options = ["attention_1", "attention_2", "attention_4", "attention_8", "feed_forward", "moe_top1", "moe_top2"]
    specs = [model.option(name) for name in options]
    architecture = model.architecture(204, ())
    assert 8 <= affordable_copies(architecture, specs, workload, torch.float32) <= 12
    both = affordable_copies(architecture, specs, workload, torch.float32)
    assert affordable_copies(architecture, specs, workload, torch.bfloat16) in (2 * both, 2 * both + 1)
    assert affordable_copies(architecture, specs, workload, torch.float32, ["cached"]) > both
    monkeypatch.setattr(networks_module, "POOL_BYTES", 1)
    assert affordable_copies(architecture, specs, workload, torch.float32) == 1
