"""The decode engine equals a pass over the whole text in double precision."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from numerics import normalised_error

from planer.errors import UserError
from planer.heads import AdaptiveSoftmax, Softmax
from planer.heads.sparse_softmax import SparseSoftmax
from planer.kernels.cpp import build
from planer.kernels.sparse_decode import rows
from planer.models import LanguageModel, steps
from planer.models.decoder import Sequences, decoder_of
from planer.models.generate import Sampling, generate
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward, MoE, Skip
from planer.specs.sparse_attention import SparseAttention
from planer.specs.sparse_conv_attention import SparseConvAttention
from planer.specs.sparse_feed_forward import SparseFeedForward

pytestmark = pytest.mark.skipif("not available()", reason="needs a C++ compiler")

D_MODEL, VOCABULARY, PROMPT, TOKENS = 24, 30, 7, 13
TOLERANCE = 1e-5
BLOCKS = {
    "feed_forward": FeedForward(37),
    "top-1": MoE(17, 3, 1),
    "top-2": MoE(17, 3, 2),
    "dynamic": DynamicMoE(32, 8, 4),
    "small blocks": SparseFeedForward(36, 4),
    "large blocks": SparseFeedForward(140, 35),
    "weighted": SparseFeedForward(36, 6, weighted=True),
    "attention": Attention(3, 8),
    "sparse attention": SparseAttention(3, 8, 6),
    "convolutions": SparseConvAttention(3, 8, 6),
}
HEADS = (
    Softmax(),
    AdaptiveSoftmax((10, 20), 1),
    AdaptiveSoftmax((10, 20), 2),
    SparseSoftmax(5),
)


def available() -> bool:
    return build.available()


def network(*blocks, norm: str = "post", head=HEADS[0], d_model: int = D_MODEL) -> LanguageModel:
    model = LanguageModel(Architecture(VOCABULARY, d_model, blocks, norm=norm, head=head))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    for layer in model.dynamic_blocks():
        layer.tau = 0.5
    return model.eval()


def text(sequences: int = 2) -> torch.Tensor:
    return torch.randint(VOCABULARY, (sequences, PROMPT + TOKENS), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def decoded(
    model: LanguageModel, ids: torch.Tensor, mem_len: int = 100, clamp_len: int = 0, weights: str = "float32"
) -> torch.Tensor:
    """Log-probabilities after each token that follows the prompt [B, TOKENS, V]."""
    reading = {"mem_len": mem_len, "clamp_len": clamp_len, "same_length": True, "attention": "cached"}
    states = [model(row[None, :PROMPT], **reading).state for row in ids]
    sequences = Sequences(decoder_of(model, weights), states, TOKENS, mem_len, clamp_len)
    return torch.stack([sequences.read(ids[:, t]) for t in range(PROMPT, ids.shape[1])], dim=1)


@torch.no_grad()
def expected(model: LanguageModel, ids: torch.Tensor, mem_len: int = 100, clamp_len: int = 0) -> torch.Tensor:
    model = copy.deepcopy(model).double()
    hidden = model(ids, mem_len=mem_len, clamp_len=clamp_len, same_length=True).hidden
    return model.log_probs(hidden)[:, PROMPT:]


def error(model: LanguageModel, **reading: int) -> float:
    return normalised_error(decoded(model, text(), **reading), expected(model, text(), **reading))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("spec", BLOCKS.values(), ids=BLOCKS)
def test_every_block(spec, norm):
    assert spec.kind in steps.STEPS
    assert error(network(spec, norm=norm)) < TOLERANCE


@pytest.mark.parametrize(("mem_len", "clamp_len"), [(0, 0), (5, 0), (5, 3), (PROMPT, 0), (PROMPT + 1, 2), (100, 4)])
@pytest.mark.parametrize("kind", ["attention", "sparse attention", "convolutions"])
def test_memory_lengths(kind, mem_len, clamp_len):
    """Shorter than the prompt, as long, longer, and longer than the text."""
    model = network(BLOCKS[kind], BLOCKS[kind])
    assert error(model, mem_len=mem_len, clamp_len=clamp_len) < TOLERANCE


def test_modules_of_several_panels():
    """Of 40 columns, in panels of 32, for four modules side by side and one more."""
    assert error(network(SparseAttention(5, 40, 5), SparseConvAttention(5, 40, 5), d_model=200)) < TOLERANCE


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.label)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_every_head(head, norm):
    assert error(network(*BLOCKS.values(), Skip(), norm=norm, head=head)) < TOLERANCE


def rounded_(weight: torch.Tensor, weights: str, *dims: int) -> None:
    """Round in place; int8 has alone factor over these dimensions."""
    if weights == "int8":
        factor = weight.abs().amax(dims, keepdim=True) / 127
        weight.copy_((weight / factor).round() * factor)
    else:
        weight.copy_(weight.bfloat16())


@torch.no_grad()
def rounded(model: LanguageModel, weights: str) -> tuple[LanguageModel, LanguageModel]:
    """Two copies in double precision: alone with rounded blocks, alone with a rounded embedding and head."""
    body, head = copy.deepcopy(model), copy.deepcopy(model)
    for spec, block in zip(model.architecture.blocks, body.blocks, strict=True):
        axis = {"feed_forward": 0, "moe": 1}.get(spec.kind, -1)  # w2: a column is a neuron
        for name, weight in block.named_parameters():
            layer, _, part = name.removeprefix("sublayer.").rpartition(".")
            if part == "shared" and layer != "positions":
                rounded_(weight, weights, 0)
            elif weight.ndim == 4:
                rounded_(weight, weights, 1, 2)
            elif part in ("w1", "w2") or (part == "weight" and layer in ("w1", "w2", "qkv", "output")):
                rounded_(weight, weights, axis if "w2" in (part, layer) else -1)
    for name, weight in [*head.embedding.named_parameters(), *head.head.named_parameters()]:
        if name == "shared":
            rounded_(weight, weights, 0)
        elif name in ("weight", "cluster_weight") or name.startswith("table"):
            rounded_(weight, weights, 1)
    return body.double(), head.double()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.label)
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights(weights, head):
    """Prompts are read with unrounded weights."""
    model, ids = network(*BLOCKS.values(), norm="pre", head=head), text()
    body, rounded_head = rounded(model, weights)
    reading = {"mem_len": 100, "same_length": True, "attention": "cached"}
    with torch.no_grad():
        state = copy.deepcopy(model).double()(ids[:, :PROMPT], **reading).state
        right = rounded_head.log_probs(body(ids[:, PROMPT:], state, **reading).hidden)
    assert normalised_error(decoded(model, ids, weights=weights), right) < TOLERANCE
    assert normalised_error(right, expected(model, ids)) > 10 * TOLERANCE


def test_a_row_of_zeros_stays_zero():
    weights, factors = rows(torch.tensor([[0.0, 0.0], [-2.0, 1.0]]), "int8")
    assert weights.tolist() == [[0, 0], [-127, 64]] and factors.tolist() == [0.0, pytest.approx(2 / 127)]


@pytest.mark.parametrize(
    ("weights", "reason"), [("int4", "weights is 'int4'; allowed: float32"), ("int8", "need a CPU")]
)
def test_unknown_or_unsupported_weights_are_refused(weights, reason):
    with pytest.raises(UserError, match=reason):
        list(generate(network().double(), [1], Sampling(), mem_len=5, weights=weights))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.label)
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_sequence_alone_gives_the_same_bits_as_in_a_batch(weights, head):
    """The sequences have different lengths."""
    model, ids = network(*BLOCKS.values(), head=head), text(8)
    with torch.inference_mode():
        states = [model(ids[b : b + 1, b:PROMPT], mem_len=5, attention="cached").state for b in range(PROMPT - 1)]
        decoder = decoder_of(model, weights)
        batch, alone = (Sequences(decoder, entries, TOKENS, 5, 0) for entries in (states, states[3:4]))
        for t in range(PROMPT, PROMPT + TOKENS):
            assert torch.equal(batch.read(ids[:6, t])[3], alone.read(ids[3:4, t])[0])


@pytest.mark.parametrize("kind", [Attention, SparseAttention, SparseConvAttention])
def test_earlier_longer_sequences_change_no_bits(kind):
    """The keys of positions are those of a network that has read nothing before."""
    spec = Attention(4, 32) if kind is Attention else kind(4, 32, 4)
    fresh, used = (network(spec, d_model=128) for _ in range(2))

    @torch.inference_mode()
    def read(model: LanguageModel, tokens: int) -> torch.Tensor:
        state = model(text(1)[:, :PROMPT], mem_len=600, attention="cached").state
        return Sequences(decoder_of(model), [state], tokens, 600, 0).read(text(1)[:, PROMPT])

    read(used, 400)
    assert torch.equal(read(used, 5), read(fresh, 5))


def test_the_number_of_threads_changes_no_bits():
    """Layers and memory are large enough for three threads."""
    wide = FeedForward(2048), SparseFeedForward(2048, 4), Attention(4, 32), SparseConvAttention(4, 32, 4)
    model, threads, found = network(*wide, d_model=128), torch.get_num_threads(), []
    prompt = torch.arange(400)[None] % VOCABULARY
    try:
        with torch.inference_mode():
            state = model(prompt, mem_len=600, attention="cached").state
        for count in (1, 3):
            torch.set_num_threads(count)
            with torch.inference_mode():
                found.append(Sequences(decoder_of(model), [state], 1, 600, 0).read(prompt[:, 0]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_of_equal_logits_the_first_neuron_runs():
    model = network(BLOCKS["large blocks"])
    controller = model.blocks[0].sublayer.controller
    with torch.no_grad():
        controller.c2.zero_()
        controller.bias.zero_()
        controller.bias[[3, 20, 34, 40, 41, 69, 104, 139]] = 1.0
    assert error(model) < TOLERANCE


def test_changed_weights_are_copied_again():
    model = network(*BLOCKS.values(), head=HEADS[-1])
    first = decoder_of(model)
    assert decoder_of(model) is first
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    assert decoder_of(model) is not first
    assert error(model) < TOLERANCE


def test_a_changed_threshold_is_used_at_once():
    model = network(BLOCKS["dynamic"])
    before = decoded(model, text())
    model.dynamic_blocks()[0].tau = 0.0
    assert not torch.equal(decoded(model, text()), before)
    assert error(model) < TOLERANCE


def test_a_token_with_a_score_that_is_no_number_runs_all_experts():
    model = network(BLOCKS["dynamic"])
    layer = model.dynamic_blocks()[0]
    with torch.no_grad():
        layer.router.v2[0] = float("nan")
    some = decoded(model, text())
    layer.tau = 0.0
    assert normalised_error(some, decoded(model, text())) < TOLERANCE


def test_tokens_of_more_sequences_than_the_caches_are_refused():
    model = network(BLOCKS["attention"])
    with torch.inference_mode():
        state = model(text()[:1, :PROMPT], mem_len=5, attention="cached").state
        sequences = Sequences(decoder_of(model), [state], TOKENS, 5, 0)
        with pytest.raises(RuntimeError, match="tokens of 2 sequences"):
            sequences.read(text()[:, PROMPT])


def test_memories_of_changing_length():
    model = network(BLOCKS["attention"])
    for mem_len in (2, 50, 10):
        assert error(model, mem_len=mem_len) < TOLERANCE


def test_blocks_without_an_operator_run_in_pytorch(monkeypatch):
    for kind in ("attention", "moe"):
        monkeypatch.delitem(steps.STEPS, kind)
    assert error(network(*BLOCKS.values(), norm="pre"), mem_len=5) < TOLERANCE


def test_copies_and_pickles_have_no_decoder():
    model = network(BLOCKS["attention"])
    decoder_of(model)
    assert copy.deepcopy(model).decoder is None and pickle.loads(pickle.dumps(model.decoder)) is None


def test_training_deletes_the_decoder():
    model = network(BLOCKS["feed_forward"])
    decoder_of(model)
    assert model.train().decoder is None


@pytest.mark.parametrize("change", ["double precision", "no compiler"])
def test_pytorch_generates_the_same_text(monkeypatch, change):
    def written() -> list[int]:
        return list(generate(model, [1, 2, 3], Sampling.of(tokens=20, temperature=2.0), mem_len=6))

    model = network(*BLOCKS.values(), norm="pre")
    before = written()
    assert model.decoder is not None and len(set(before)) > 9
    if change == "double precision":
        model.double()
    else:
        monkeypatch.setattr(build, "available", lambda: False)
    assert decoder_of(model) is None
    assert written() == before
