"""Real networks and data, which make assets fetches.  Run with pytest -m assets."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from planer.config.paths import assets_home
from planer.conversion.experts import cluster_neurons
from planer.conversion.sites import feed_forward_sites
from planer.data.corpora import SPLITS
from planer.data.labelled import read_labelled
from planer.pretrained.folder import check_folder
from planer.pretrained.load import load_model, load_tokenizer
from tests.unit.real_data import real

pytestmark = pytest.mark.assets


def asset(name: str):
    if not (assets_home() / name).is_dir():
        pytest.skip(f"no {name} in {assets_home()}; run make assets")
    return assets_home() / name


@torch.no_grad()
def test_minilm_recognises_paraphrases_also_with_sorted_neurons():
    folder = check_folder(asset("minilm"), "sequence_classification")
    model, tokenizer = load_model(folder, labels=("no", "yes")), load_tokenizer(folder)
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")

    def embeddings() -> torch.Tensor:
        hidden, real = model.base_model(**batch).last_hidden_state, batch.attention_mask[..., None]
        return F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)

    before = embeddings()
    similarity = before @ before.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]
    sites = feed_forward_sites(model)
    assert len(sites) == 6 and sites[0].activation == "gelu"
    labels = cluster_neurons(sites[3].weights().w1, 96, 0, 1, 3)
    sites[3].reorder(torch.from_numpy(np.argsort(labels, kind="stable")))
    torch.testing.assert_close(embeddings(), before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_smollm2_predicts_real_text():
    """About 3 nats per token; random weights give log(49,152) = 10.8."""
    folder = check_folder(asset("smollm2"), "causal_lm")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    text = real("wikitext-103-valid.tokens").read_text()[:8000].replace("<unk>", "unknown")
    ids = torch.tensor(tokenizer(text).input_ids[:512])[None]
    logits = model(ids).logits[0, :-1]
    assert F.cross_entropy(logits, ids[0, 1:]) < 3.6
    assert {site.activation for site in feed_forward_sites(model)} == {"silu"}


@pytest.mark.parametrize(
    ("name", "labels", "train", "test"),
    [("20newsgroups", 20, 11_293, 7_528), ("reuters-r8", 8, 5_485, 2_189), ("reuters-r52", 52, 6_532, 2_568)],
)
def test_sizes_of_labelled_news(name, labels, train, test):
    examples = read_labelled(asset(name) / "train.tsv")
    assert len(examples) == train and len(examples.label_names) == labels
    assert len(read_labelled(asset(name) / "test.tsv", label_names=examples.label_names)) == test
    assert not any(re.search(r"[^a-z ]", text) for text in examples.inputs[:500]), "text8's alphabet"


def test_sizes_of_film_reviews():
    parts = [read_labelled(asset("movie-sentiment") / f"{split}.tsv") for split in SPLITS]
    assert sum(map(len, parts)) == 10_568 and {part.label_names for part in parts} == {("negative", "positive")}
    assert all(0.4 < part.labels.mean() < 0.6 for part in parts)


def test_sizes_of_fashion_mnist():
    folder = asset("fashion-mnist")
    train, test = (read_labelled(folder / f"{name}-images-idx3-ubyte.gz") for name in ("train", "t10k"))
    assert train.inputs.shape == (60_000, 28, 28, 1) and test.inputs.shape == (10_000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [6_000] * 10 and np.bincount(test.labels).tolist() == [1_000] * 10


def test_ids_of_the_gpt2_tokenizer():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(asset("gpt2-tokenizer"))
    assert tokenizer("Hello world").input_ids == [15496, 995] and len(tokenizer) == 50_257
