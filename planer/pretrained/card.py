"""The model card of a converted network: README.md with the keys that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from planer.pretrained.describe import describe, selected
from planer.pretrained.folder import check_folder
from planer.pretrained.load import HEADS

TASKS = {
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "sequence_classification": "text-classification",
    "image_classification": "image-classification",
    "question_answering": "question-answering",
}
"""What hubs call a network's task, by head."""
CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [{tags}]
{inherited}
---
# {title}

{text}

| | |
| --- | --- |
{facts}
{curve}
## How to load it

```python
{lines}
```
{without}"""
CONVERTED = "A pretrained network whose {layers} compute for each token only a part, converted by planer."
LAYERS = "feed-forward layers"
REPLACED = "feed-forward layers and attention projections"
DENSE = "A pretrained network, trained by planer for a comparison with converted ones."
TYPE = """
The projections are MLPs, which the network's family has not. Without `import planer.pretrained` transformers does not
know the type `{type}`, and loads nothing.
"""
SELECT = 'planer.pretrained.select(model, "all")  # or another setting; this one leaves nothing out'
WITHOUT = """
Without `import planer.pretrained` transformers loads the dense network, which leaves nothing out, and warns of
the unknown quantization type `planer`. For programs that refuse unknown types, `python -m planer export PATH OUT
--plain` writes the dense network alone.
"""
CURVE = """
## Settings

{title} on the test split, and FLOPs over the dense network's.

| setting | {title} | FLOPs of layers | FLOPs of the network |
| --- | --- | --- | --- |
{rows}
"""


def model_card(folder: Path, head: str, source: Path, evaluation: Mapping | None) -> str:
    """README.md of a folder with config.json and weights.

    source: the folder of the network that was converted, whose README.md may name a licence.  evaluation: eval.json of
    the arm, if there is one.
    """
    found = check_folder(folder, head, converted=True)
    converted = found.conversion
    facts, auto = list(describe(folder)), HEADS[head]
    lines = [f"from transformers import {auto}", f'model = {auto}.from_pretrained("PATH")']
    return CARD.format(
        task=TASKS[head],
        tags="planer, conditional-computation" if converted else "planer",
        inherited="\n".join(_inherited(source)),
        title=dict(facts).get("variant", "A network of planer"),
        text=CONVERTED.format(layers=REPLACED if found.projections else LAYERS) if converted else DENSE,
        facts="\n".join(f"| {name} | {value} |" for name, value in facts),
        curve=_curve(evaluation) if evaluation and evaluation["rows"] else "",
        lines="\n".join(["import planer.pretrained", *lines, SELECT] if converted else lines),
        without=TYPE.format(type=found.config["model_type"]) if found.projections else WITHOUT if converted else "",
    )


def _inherited(source: Path) -> Iterator[str]:
    """Lines of the front matter that follow from the source's README.md: its licence, and what it was made from."""
    readme = source / "README.md"
    front = re.match(r"---\n(.*?)\n---\n", readme.read_text(errors="replace"), re.DOTALL) if readme.is_file() else None
    lines = front[1].splitlines() if front else []
    found = [line for line in lines if re.match(r"(license|license_name|license_link|base_model): *\S", line)]
    yield from found or ["license: other"]


def _curve(evaluation: Mapping) -> str:
    task = evaluation["task"]
    reference = evaluation["reference"]
    rows = [(reference["variant"], reference["test"], 1, 1)]
    for row in evaluation["rows"]:
        if not row["bound"]:
            name = selected(row["selector"], row["value"])
            rows.append((name, row["test"], row["feed_forward_ratio"], row["network_ratio"]))
    lines = (f"| {name} | {test[task['metric']]:.4g} | {a:.1%} | {b:.1%} |" for name, test, a, b in rows)
    return CURVE.format(title=task["title"], rows="\n".join(lines))
