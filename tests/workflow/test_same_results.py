"""The tiny experiment with fixed latencies gives the results in same_results.json.

The baseline's counts are compared exactly and its losses within 0.1 %, because processors round differently.  With
another rounding, another network may be chosen.  PLANER_SAME_BITS=1 (``make same``) also compares the searched network
and the sha256 of all weights, histories and reports without measured times.  These hold for one kind of processor and
one version of torch.

``python -m tests.workflow.test_same_results`` runs the experiment and writes the file, after an intended change of
numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.workflow.conftest import finish

pytestmark = pytest.mark.workflow
EXPECTED = Path(__file__).with_name("same_results.json")
VARIANTS = ("baseline", "target_0.5")
TIMED = ("latency", "seconds", "search", "summary", "provenance", "speed_up", "measured", "checksum")
"""Words in the keys of eval.json whose values are measured times or depend on them."""


def exact_results(results: Path) -> dict:
    """Networks, counts of layers and FLOPs."""
    found = {}
    for variant in VARIANTS:
        report = _report(results, variant)
        notes = report["selection"] or {"candidates": []}
        found[variant] = {
            "architecture": report["architecture"],
            "flops": report["flops"],
            "candidates": [one["pattern"] for one in notes["candidates"]],
            "converted_layers": report["conversion"]["converted_layers"],
        }
    return found


def losses(results: Path) -> dict[str, float]:
    """Losses in nats per token, by name."""
    found = {}
    for variant in VARIANTS:
        report = _report(results, variant)
        for protocol in ("final", "train"):
            for split in ("valid", "test"):
                found[f"{variant}/{protocol}/{split}"] = report["quality"][protocol][split]["nll"]
        found[f"{variant}/sparsified"] = report["conversion"]["sparsified"]["test"]["nll"]
        found[f"{variant}/converted"] = report["dynamic_k"][0]["test"]["nll"]
        history = pd.read_parquet(results / variant / "retrain/history.parquet")
        found |= {f"{variant}/step_{row.step}": row.nll for row in history.dropna(subset="nll").itertuples()}
        for one in (report["selection"] or {}).get("candidates", []):
            found[f"{variant}/proxy/{one['pattern']}"] = one["proxy_nll"]
            found[f"{variant}/supernet/{one['pattern']}"] = one["supernet_nll"]
    return found


def hashes(results: Path) -> dict[str, str]:
    """Sha256 of the contents of all weights, histories and reports, by file."""
    found = {}
    for path in sorted(results.rglob("*.safetensors")):
        found[str(path.relative_to(results))] = _sha256(load_file(path))
    for path in sorted([*results.rglob("history.parquet"), *results.rglob("trajectory.parquet")]):
        columns = pd.read_parquet(path).to_dict("list")
        found[str(path.relative_to(results))] = _text_sha256(json.dumps(columns, default=np.ndarray.tolist))
    for variant in VARIANTS:
        for section, value in _untimed(_report(results, variant)).items():
            found[f"{variant}/eval.json, {section}"] = _text_sha256(json.dumps(value, sort_keys=True))
    return found


def _report(results: Path, variant: str) -> dict:
    return json.loads((results / variant / "eval.json").read_text())


def _sha256(tensors: dict[str, np.ndarray]) -> str:
    """Sha256 of the tensors' values without their names."""
    parts = [f"{tensor.dtype} {tensor.shape}".encode() + tensor.tobytes() for tensor in tensors.values()]
    return _text_sha256(" ".join(sorted(hashlib.sha256(part).hexdigest() for part in parts)))


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _untimed(value: object) -> object:
    """The value without the keys that hold measured times."""
    if isinstance(value, list):
        return [_untimed(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {key: _untimed(part) for key, part in value.items() if not any(word in key for word in TIMED)}


@pytest.fixture
def results(finished) -> Path:
    return finished.folder / "results/tiny"


@pytest.fixture
def expected() -> dict:
    return json.loads(EXPECTED.read_text())


def test_the_baseline_has_the_same_counts_and_losses(results, expected):
    assert exact_results(results)["baseline"] == expected["exact"]["baseline"]
    found = {name: loss for name, loss in losses(results).items() if name.startswith("baseline/")}
    assert found == pytest.approx({name: expected["losses"][name] for name in found}, rel=1e-3)


@pytest.mark.skipif(os.environ.get("PLANER_SAME_BITS") != "1", reason="bits depend on the processor: make same")
def test_all_results_have_the_same_bits(results, expected):
    assert exact_results(results) == expected["exact"]
    assert losses(results) == expected["losses"]
    assert hashes(results) == expected["hashes"]


def write_expected() -> None:
    """Run the tiny experiment and write its results into same_results.json."""
    with tempfile.TemporaryDirectory() as folder:
        results = finish(Path(folder)).folder / "results/tiny"
        content = {"exact": exact_results(results), "losses": losses(results), "hashes": hashes(results)}
    EXPECTED.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    write_expected()
