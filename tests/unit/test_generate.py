"""Generation."""

from __future__ import annotations

import pytest
import torch

from planer.errors import UserError
from planer.models import LanguageModel, initialise
from planer.models.generate import SEGMENT, Sampling, generate, generate_batch
from planer.specs import Architecture, Attention, DynamicMoE, FeedForward, MoE, Skip

BLOCKS = (Attention(2, 8), FeedForward(32), Skip(), MoE(32, 4, 2), Attention(1, 8), DynamicMoE(32, 8, 4))
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def network(blocks=BLOCKS, norm="post") -> LanguageModel:
    """Small embeddings and large blocks: with other random weights greedy text repeats one token."""
    model = LanguageModel(Architecture(23, 16, blocks, norm=norm, init_std=2.0))
    initialise(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.embedding.weight *= 0.15
    return model.double().eval()


def written(model, prompt=PROMPT, mem_len=64, clamp_len=0, **options) -> list[int]:
    return list(generate(model, prompt, Sampling.of(**options), mem_len=mem_len, clamp_len=clamp_len))


@torch.no_grad()
def without_memory(model, prompt, tokens, mem_len, clamp_len, sampling) -> list[int]:
    """Generate by reading the whole text for each token, with the attention mask of the evaluation."""
    generator, ids = torch.Generator().manual_seed(sampling.seed), list(prompt)
    for _ in range(tokens):
        hidden = model(torch.tensor([ids]), mem_len=mem_len, clamp_len=clamp_len, same_length=True).hidden
        ids.append(sampling.choose(model.log_probs(hidden[0, -1]), generator))
    return ids[len(prompt) :]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 5}, {"temperature": 1.5, "top_k": 3, "seed": 1}])
@pytest.mark.parametrize("clamp_len", [0, 4])
@pytest.mark.parametrize("mem_len", [0, 3, 12, 100], ids="mem_len {}".format)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_text_equals_that_without_a_memory(norm, mem_len, clamp_len, options):
    """Memories shorter than the prompt, shorter than the text, and longer."""
    model, sampling = network(norm=norm), Sampling.of(**options)
    expected = without_memory(model, PROMPT, 24, mem_len, clamp_len, sampling)
    assert written(model, PROMPT, mem_len, clamp_len, tokens=24, **options) == expected


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_texts_depend_on_the_memory(norm):
    """The test above relies on it."""
    model = network(norm=norm)
    assert len({tuple(written(model, mem_len=mem_len, tokens=24)) for mem_len in (0, 3, 12, 100)}) == 4


def test_a_long_prompt_is_read_in_segments():
    model = network()
    prompt = torch.randint(23, (2 * SEGMENT + 5,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = without_memory(model, prompt, 3, 20, 0, Sampling())
    assert written(model, prompt, 20, tokens=3) == expected
    steps = generate_batch(model, [prompt], Sampling.of(tokens=3), mem_len=20)
    assert list(steps) == [[], [], *([token] for token in expected)]


def test_a_threshold_changes_the_text():
    model = network()
    before = written(model, tokens=40)
    model.dynamic_blocks()[0].tau = 0.9
    assert written(model, tokens=40) != before
    assert written(model, tokens=8) == without_memory(model, PROMPT, 8, 64, 0, Sampling())


def test_seeds_and_options_choose_the_text():
    model = network()
    texts = {(t, s): tuple(written(model, tokens=40, temperature=t, seed=s)) for t in (0.0, 1.0) for s in (0, 1)}
    assert texts[0.0, 0] == texts[0.0, 1]
    assert len(set(texts.values())) == 3
    assert written(model, tokens=40, temperature=1.0, top_k=1, seed=7) == list(texts[0.0, 0])
    assert tuple(written(model, tokens=40, temperature=1.0, seed=1)) == texts[1.0, 1]


def test_samples_follow_the_probabilities():
    log_probs = torch.tensor([0.5, 0.3, 0.2]).log()
    for options, expected in (
        ({}, [0.5, 0.3, 0.2]),
        ({"top_k": 2}, [0.625, 0.375, 0.0]),
        ({"top_k": 99}, [0.5, 0.3, 0.2]),
        ({"top_p": 0.81}, [0.5, 0.3, 0.2]),
        ({"top_p": 0.79}, [0.625, 0.375, 0.0]),
        ({"top_p": 0.01}, [1.0, 0.0, 0.0]),
        ({"top_p": 1e-300}, [1.0, 0.0, 0.0]),
        ({"top_p": 0.6, "top_k": 2}, [1.0, 0.0, 0.0]),
    ):
        sampling, generator = Sampling.of(temperature=1.0, **options), torch.Generator().manual_seed(0)
        counts = torch.bincount(torch.tensor([sampling.choose(log_probs, generator) for _ in range(1000)]), minlength=3)
        assert counts / 1000 == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-6])
def test_small_temperatures_take_the_most_probable_token(temperature):
    sampling, log_probs = Sampling.of(temperature=temperature), torch.tensor([0.3, 0.5, 0.2]).log()
    assert sampling.choose(log_probs, torch.Generator()) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tokens": 0}, "tokens is 0; it must be from 1 to 1,000,000"),
        ({"tokens": 2.5}, "tokens is 2.5; it must be a whole number"),
        ({"temperature": -1}, "temperature is -1; it must be from 0 to 1,000"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a finite number"),
        ({"top_k": -1}, "top_k is -1; it must be from 0"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"seeds": 1}, "unknown key seeds; did you mean seed?"),
    ],
)
def test_options_out_of_range_are_refused(options, reason):
    with pytest.raises(UserError) as error:
        Sampling.of(**options)
    assert str(error.value).startswith(reason)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "the prompt is empty"),
        ([1, 23], "holds the id 23; allowed: 0 to 22"),
        ([-1], "holds the id -1; allowed"),
        ([1.5], r"the prompt \[1.5\] is no list of token ids; give whole numbers"),
        (torch.zeros(2, 3), r"the prompt tensor\(\[\[0., 0., 0.\], \[0., 0., 0.\]\]\) is no list"),
        (None, "the prompt empty is no list of token ids"),
    ],
)
def test_wrong_prompts_are_refused(prompt, reason):
    with pytest.raises(UserError, match=reason):
        written(network(), prompt)


def test_ids_may_be_tensors():
    assert written(network(), torch.tensor([1, 2]), tokens=3) == written(network(), [1, 2], tokens=3)


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="call eval"):
        written(network().train())
