"""Architectures: pattern notation, YAML, parameters and FLOPs."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from toy import experiment

from planer.specs import (
    Architecture,
    Attention,
    BlockSpec,
    DynamicMoE,
    FeedForward,
    MoE,
    Skip,
    from_notation,
    to_notation,
)

FULL = Attention(8, 64)
SYMBOLS: dict[str, BlockSpec] = {
    "i": Skip(),
    "s": FULL,
    **{f"s{heads}": Attention(heads, 64) for heads in (1, 2, 4, 8)},
    "f": FeedForward(2048),
    "m1": MoE(2048, 8, 1),
    "m2": MoE(2048, 8, 2),
    "d16": DynamicMoE(2048, 16, 128),
}


def base(blocks: str, vocab_size: int = 204) -> Architecture:
    return Architecture(vocab_size, 512, from_notation(blocks, SYMBOLS))


@pytest.mark.parametrize(
    "text, length, attention",
    [("(sf)x12", 24, 12), ("(sfff)x6(f)x8", 32, 6), ("(sff)x5(f)x9", 24, 5), ("sifm2", 4, 1), ("(f)x3", 3, 0)],
)
def test_patterns_of_the_papers_survive_a_round_trip(text, length, attention):
    blocks = from_notation(text, SYMBOLS)
    assert len(blocks) == length and sum(isinstance(block, Attention) for block in blocks) == attention
    assert to_notation(blocks, 512) == text


def test_the_order_of_blocks_in_a_pattern():
    assert from_notation("(s)x2(s4m1)x2i", SYMBOLS) == (
        *(FULL, FULL),
        *(SYMBOLS["s4"], SYMBOLS["m1"], SYMBOLS["s4"], SYMBOLS["m1"]),
        Skip(),
    )
    sandwich = from_notation("(s)x6(sf)x6(f)x6", SYMBOLS)
    assert [block.symbol for block in sandwich] == ["s8"] * 6 + ["s8", "f"] * 6 + ["f"] * 6


@given(st.lists(st.sampled_from(sorted(SYMBOLS.keys() - {"s"})), min_size=1, max_size=30))
def test_every_network_survives_a_round_trip(symbols):
    blocks = tuple(SYMBOLS[symbol] for symbol in symbols)
    text = to_notation(blocks, 512)
    assert from_notation(text, SYMBOLS) == blocks
    assert len(text) <= len("".join(symbols)) + 4 * len(symbols)


@given(st.lists(st.sampled_from(["f", "s", "i"]), min_size=1, max_size=4), st.integers(2, 9))
def test_repeats_are_folded(group, repeats):
    blocks = tuple(SYMBOLS[symbol] for symbol in group) * repeats
    text = to_notation(blocks, 512)
    assert from_notation(text, SYMBOLS) == blocks
    assert text.startswith("(") and len(text) <= len(group) + 5


@pytest.mark.parametrize(
    "text",
    [
        "(sf)",
        "(sf)x",
        "(sf)x0",
        "(sf)x02",
        "(sf)x\u0663",
        "s\u0663",
        "()x3",
        "((s)x2)x2",
        "s f",
        "sf)x2",
        "(sf)4",
        "(s-f)x2",
        "S",
    ],
)
def test_malformed_patterns_are_refused(text):
    with pytest.raises(ValueError, match=r"cannot read .*; write groups as \(sf\)x4") as error:
        from_notation(text, SYMBOLS)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text, spelling", [("s04", "s4"), ("(sm01)x2", "m1"), ("s0008", "s8")])
def test_other_spellings_of_symbols_are_refused(text, spelling):
    with pytest.raises(ValueError, match=f"write it {spelling}$"):
        from_notation(text, SYMBOLS)


@pytest.mark.parametrize("text", ["(sf)x999999999", "f" * 1001, "(s)x500(f)x501", "(s)x" + "9" * 5000, "(s)x600" * 99])
def test_networks_of_too_many_blocks_are_refused(text):
    """Before they are built: the first once took all memory."""
    with pytest.raises(ValueError, match="more than 1,000 blocks") as error:
        from_notation(text, SYMBOLS)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("text, symbol", [("(sx)x2", "x"), ("s3", "s3"), ("fm4", "m4")])
def test_unknown_symbols_are_named(text, symbol):
    with pytest.raises(ValueError, match=f"unknown block '{symbol}'; allowed: i, s, f, s1 to s8, m1 to m2, d16"):
        from_notation(text, SYMBOLS)


def test_only_attention_with_all_heads_is_written_s():
    assert base("s4s4f").pattern == "(s4)x2f" and base("s8s4f").pattern == "ss4f"


def test_an_empty_pattern_is_refused():
    with pytest.raises(ValueError, match="pattern is empty"):
        from_notation("", SYMBOLS)


def test_yaml_round_trip(tmp_path):
    blocks = tuple(SYMBOLS.values())
    architecture = Architecture(97, 512, blocks, "pre", 0.2, 0.3, 0.05, 0.01)
    architecture.save(tmp_path / "architecture.yaml", selection={"solver": "milp", "score": -1.5})
    assert Architecture.load(tmp_path / "architecture.yaml") == architecture
    content = yaml.safe_load((tmp_path / "architecture.yaml").read_text())
    assert content["selection"] == {"solver": "milp", "score": -1.5}
    assert content["pattern"] == architecture.pattern
    assert content["blocks"][-1] == {
        "kind": "dynamic_moe",
        "d_inner": 2048,
        "expert_size": 16,
        "router_width": 128,
        "tau": 0.0,
    }


def test_an_unknown_kind_of_block_is_named():
    values = base("sf").to_dict()
    values["blocks"][1]["kind"] = "convolution"
    with pytest.raises(ValueError, match="unknown block kind 'convolution'; allowed: skip, attention, .*feed_forward"):
        Architecture.from_dict(values)


@pytest.mark.parametrize(
    "symbol, params",
    [
        ("s8", 1_311_744 + 128 * 8),  # with its own u and v
        ("s4", 656_384 + 128 * 4),
        ("s2", 328_704 + 128 * 2),
        ("s1", 164_864 + 128 * 1),
        ("f", 2_100_736),
        ("m1", 16_802_816),
        ("m2", 16_802_816),
        ("i", 0),
    ],
)
def test_published_parameter_counts_of_blocks(symbol, params):
    assert SYMBOLS[symbol].params(512) == params


def test_published_parameter_counts_of_networks():
    """Transformer-XL base; its one pair of u and v (1,024 parameters) is one per attention block here."""
    assert FeedForward(16384).params(512) == 16_795_136
    assert base("(sf)x12").params() == 41_055_436 + 11 * 1024
    assert base("(sf)x12", 205).params() == 41_055_949 + 11 * 1024
    assert base("(sf)x12", 256).params() == 41_082_112 + 11 * 1024
    adaptive_softmax = 3 * 512 + 3  # cluster weights and biases, which a plain softmax does not have
    assert base("(sf)x16", 267_735).params() == 191_950_298 - adaptive_softmax + 15 * 1024
    pre = Architecture(204, 512, base("(sf)x12").blocks, norm="pre")
    assert pre.params() == base("(sf)x12").params() + 2 * 512


def test_active_parameters_count_the_experts_of_a_token():
    dense, gate = FeedForward(2048).params(512), 8 * 512
    expert = dense - 2 * 512
    assert SYMBOLS["m1"].active_params(512) == dense + gate
    assert SYMBOLS["m2"].active_params(512) == dense + gate + expert
    assert MoE(2048, 8, 8).active_params(512) == MoE(2048, 8, 8).params(512)
    network = base("(sm2)x3")
    assert network.params() - network.active_params() == 3 * 6 * expert
    assert base("(sf)x3").active_params() == base("(sf)x3").params()


def attention_flops(heads: int, tgt_len: int, mem_len: int, batch: int = 64, attention: str = "recompute") -> float:
    return Attention(heads, 64).flops(512, batch, tgt_len, mem_len, attention)


def as_published(heads: int, tgt_len: int, mem_len: int) -> float:
    """FLOPs of NVIDIA's layer: it computes unused queries of the memory; position keys are not counted."""
    wasted_queries = 2 * 512 * 64 * heads * mem_len / tgt_len
    position_keys = 2 * 512 * 64 * heads * (tgt_len + mem_len) / (tgt_len * 64)
    return attention_flops(heads, tgt_len, mem_len) + wasted_queries - position_keys


@pytest.mark.parametrize(
    "tgt_len, mem_len, millions",
    [(64, 640, 19.99), (192, 192, 4.85), (512, 512, 6.82), (64, 64, 0.97 * 4.194), (80, 2100, 11.9 * 4.194)],
)
def test_published_flops_of_attention(tgt_len, mem_len, millions):
    assert as_published(8, tgt_len, mem_len) / 1e6 == pytest.approx(millions, rel=6e-3)
    assert (
        SYMBOLS["f"].flops(512, 64, tgt_len, mem_len, "recompute") == 4 * 512 * 2048 == pytest.approx(4.19e6, rel=2e-3)
    )


def test_flops_are_proportional_to_heads():
    """At 64 queries over 640 remembered positions: 2.50, 5.00, 9.99, 19.99 million per token."""
    for heads, millions in ((1, 2.50), (2, 5.00), (4, 9.99), (8, 19.99)):
        assert as_published(heads, 64, 640) / 1e6 == pytest.approx(millions, rel=2e-3)
        for attention in ("cached", "recompute"):
            one = attention_flops(1, 64, 640, attention=attention)
            assert attention_flops(heads, 64, 640, attention=attention) == heads * one


def test_cached_attention_costs_about_a_feed_forward_layer():
    cached = attention_flops(8, 64, 640, attention="cached")
    assert cached / 1e6 == pytest.approx(4.26, rel=1e-3)
    assert cached / SYMBOLS["f"].flops(512, 64, 64, 640, "cached") == pytest.approx(1.02, abs=0.005)
    assert attention_flops(8, 64, 0, 64, "cached") == pytest.approx(attention_flops(8, 64, 0, 10**9), rel=1e-6)


def test_position_keys_matter_at_batch_1():
    """PAR's 16 layers on 64 tokens: 32.0 GFLOP with the projection of the positions, 26.1 without."""
    keys = attention_flops(8, 64, 640, batch=1) - attention_flops(8, 64, 640, batch=10**9)
    assert 16 * 64 * keys / 1e9 == pytest.approx(32.0 - 26.1, rel=0.01)


def test_flops_of_networks_and_mixtures():
    """Transformer-XL base on enwik8 trains at 397 MFLOP a token, three forward passes of NVIDIA's layers."""
    network = base("(sf)x12")
    published = network.flops(64, 512, 512, "recompute") + 12 * (
        as_published(8, 512, 512) - attention_flops(8, 512, 512)
    )
    assert 3 * published / 1e6 == pytest.approx(397, rel=2e-3)
    assert base("i").flops(64, 64, 640, "cached") == 2 * 512 * 204  # the softmax head alone
    gate = 2 * 512 * 8
    assert SYMBOLS["m1"].flops(512, 1, 64, 0, "cached") == 4 * 512 * 2048 + gate
    assert SYMBOLS["m2"].flops(512, 1, 64, 0, "cached") == 2 * 4 * 512 * 2048 + gate
    assert SYMBOLS["d16"].flops(512, 1, 64, 0, "cached") == 4 * 512 * 2048 + 2 * 128 * (512 + 128)


def test_networks_have_the_sizes_of_the_config():
    model = experiment().model
    network = model.architecture(256, "(sf)x2")
    assert network == model.architecture(256, (Attention(2, 16), FeedForward(64)) * 2)
    assert (network.d_model, network.norm, network.moe_dropout) == (32, "post", 0.0)
