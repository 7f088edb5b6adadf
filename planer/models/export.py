"""A trained network as a Hugging Face folder, which ``planer.load`` reads too.

config.json, model.safetensors, tokenizer.json, tokenizer_config.json and README.md are for transformers with
``planer.models.hub``; architecture.yaml, vocab.json and eval.json are for planer.  Needs no transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

from planer.errors import UserError
from planer.files import new_folder, write_json, write_text
from planer.models.describe import describe, figures
from planer.models.network import Network, load
from planer.parsing import show
from planer.tensors import write_tensors

MODEL_TYPE, ARCHITECTURE = "planer", "PlanerForCausalLM"


def export_network(folder: str | Path, out: str | Path, vocab: str | Path | None = None) -> None:
    """Write the network of a folder into a new or empty one; nothing stays there when it fails.

    Raises UserError when out exists and is not empty, when the network has no vocabulary, or as ``planer.load``.
    """
    folder, out = Path(folder), Path(out)
    with new_folder(out):
        network = load(folder, vocab=vocab)
        if network.surroundings.vocabulary is None:
            raise UserError(f"no vocab.json belongs to {show(str(folder))}; name that of its text with --vocab")
        _write(network, out, model_card(folder, network, vocab))


def _write(network: Network, out: Path, card: str) -> None:
    _write_tokenizer(network, out)
    write_tensors(out / "model.safetensors", network.state_dict(), {"format": "pt"})
    network.architecture.save(out / "architecture.yaml")
    if network.surroundings.evaluation:
        write_json(out / "eval.json", network.surroundings.evaluation)
    write_text(out / "README.md", card)
    _write_plain(out / "config.json", hub_config(network))


def hub_config(network: Network) -> dict:
    """What config.json says: the architecture, and the memory that the network is read with."""
    architecture, around = network.architecture, network.surroundings
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "architecture": architecture.to_dict(),
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.d_model,
        "num_hidden_layers": len(architecture.blocks),
        "mem_len": around.mem_len,
        "clamp_len": around.clamp_len,
        "tie_word_embeddings": False,  # the head reads the embedding itself: there is no second weight to tie
        "dtype": "float32",
    }


def _write_tokenizer(network: Network, out: Path) -> None:
    vocabulary = network.surroundings.vocabulary
    write_json(out / "vocab.json", vocabulary.symbols)
    _write_plain(out / "tokenizer.json", vocabulary.hugging_face())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_plain(out / "tokenizer_config.json", settings)


def _write_plain(path: Path, document: dict) -> None:
    """Without the checksum that other readers do not know."""
    write_text(path, json.dumps(document, indent=2) + "\n")


CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [planer]
---
# {title}

A causal language model, trained with planer. Its layers are listed in `architecture.yaml`.

| | |
| --- | --- |
{rows}

## How to load it

With the package planer:

```python
import planer
print(planer.load("PATH").generate("the ", tokens=100))
```

With transformers, which needs the package planer too:

```python
import planer.models.hub
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("PATH"), AutoTokenizer.from_pretrained("PATH")
ids = tokenizer("the ", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=100)[0]))
```
"""


def model_card(folder: Path, network: Network, vocab: str | Path | None) -> str:
    """README.md: what the network is, what was measured, and how to load it."""
    around = network.surroundings
    facts = [(name, value.replace(around.vocabulary.source, "vocab.json")) for name, value in describe(folder, vocab)]
    if not around.evaluation:
        facts.append(("measured", "nothing: no eval.json lay beside it"))
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts)
    named = dict(figures(around.evaluation)) if around.evaluation else {}
    return CARD.format(title=named.get("variant", "A network of planer"), rows=rows)
