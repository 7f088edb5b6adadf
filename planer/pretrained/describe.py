"""What a network in transformers' classes is, in lines for people: for ``python -m planer info`` and model cards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open

from planer.files import read_json
from planer.paired import CONFIDENCE
from planer.pretrained.folder import ROUTERS, Folder, check_folder, head_of


def describe(folder: str | Path) -> Iterator[tuple[str, str]]:
    """Names and values.  Weights are not read.  Raises UserError where the folder holds no such network."""
    found = check_folder(folder, head_of(folder), converted=True)
    network, routers = _sizes(found)
    yield "network", f"{found.config['architectures'][0]} ({found.config['model_type']})"
    yield "parameters", f"{network:,}" + (f", and {routers:,} of routers" if routers else "")
    if mlps := found.projections:
        yield "projections", f"{', '.join(mlps['replace'])}: MLPs of {mlps['width']} neurons"
    if conversion := found.conversion:
        yield "layers", _converted(conversion)
        yield "runs", selected(conversion["selector"], conversion["value"])
    if (path := found.path / "eval.json").is_file():
        yield from figures(read_json(path, "arm"))


def _converted(description: Mapping) -> str:
    if description["kind"] == "experts":
        return f"experts of {description['expert_size']} neurons, routers of width {description['router_width']}"
    return f"thresholds on neurons by {description['score']}, for shares {', '.join(description['thetas'])}"


def selected(selector: str, value: float) -> str:
    """How a converted network runs."""
    return "all, nothing is left out" if selector == "all" else f"{selector} {value:g}"


def figures(evaluation: Mapping) -> Iterator[tuple[str, str]]:
    """Measured figures of an arm's eval.json: quality, FLOPs and time at the chosen setting."""
    task, chosen, device = evaluation["task"], evaluation["chosen"], evaluation["provenance"]["device"]
    title, metric = task["title"], task["metric"]
    yield "variant", f"{evaluation['experiment']}/{evaluation['variant']}"
    reference = evaluation["reference"]
    dense = f"{reference['variant']} {reference['test'][metric]:.4g}"
    yield "test", f"{title} {evaluation['quality']['test'][metric]:.4g}, of {dense}"
    if evaluation["method"] == "dense":
        return
    if chosen is None:
        yield (
            "chosen",
            f"none: no setting keeps the quality within {evaluation['tolerance']:.0%} of {reference['variant']}",
        )
        return
    row = next(row for row in evaluation["rows"] if not row["bound"] and chosen.items() <= row.items())
    yield "chosen", f"{selected(**chosen)}, test {title} {row['test'][metric]:.4g}"
    yield "FLOPs", f"{row['network_ratio']:.1%} of the dense network's, {row['feed_forward_ratio']:.1%} of its layers'"
    for entry in evaluation["latency"]:
        if chosen.items() <= entry.items():
            where = f"{entry['phase']}, batch {entry['batch']}, {device}"
            yield "speed", f"{entry['speed_up']:.2f} times the dense network's, {_interval(entry)} ({where})"


def _interval(entry: Mapping) -> str:
    """How certain a speed-up is."""
    if entry["low"] is None:
        return "too few rounds for an interval"
    return f"{CONFIDENCE:.0%} interval {entry['low']:.2f} to {entry['high']:.2f}"


def _sizes(folder: Folder) -> tuple[int, int]:
    """Weights of the network, and of its routers."""
    network = routers = 0
    for file in folder.weights:
        with safe_open(file, framework="np") as content:
            sizes = {name: math.prod(content.get_slice(name).get_shape()) for name in list(content.keys())}
        network += sum(size for name, size in sizes.items() if ROUTERS not in name)
        routers += sum(size for name, size in sizes.items() if f"{ROUTERS}router." in name)
    return network, routers
