"""Reports on a whole experiment from made-up evaluations of many networks."""

from __future__ import annotations

import pytest
import yaml

from planer.files import read_json, write_json

pytestmark = pytest.mark.workflow
TARGETS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


@pytest.fixture
def trained(workspace, finished):
    """Writes the files of a variant: those of the baseline or of target_0.5, with a slightly larger loss."""

    def write(variant: str, model: str, worse: float = 0.0) -> None:
        source, folder = finished.folder / "results/tiny" / model, workspace.folder / "results/tiny" / variant
        folder.mkdir(parents=True)
        evaluation = read_json(source / "eval.json", "eval")
        evaluation["variant"] = variant
        evaluation["quality"]["final"]["test"]["bpc"] += worse
        write_json(folder / "eval.json", evaluation)
        (folder / "architecture.yaml").write_text((source / "architecture.yaml").read_text())

    return write


def report(workspace, name: str) -> dict:
    """Run only the rule that makes results/tiny/<name>.json."""
    result = workspace.run(f"results/tiny/{name}.json", "--allowed-rules", name)
    assert result.returncode == 0, result.stdout
    return read_json(workspace.folder / f"results/tiny/{name}.json", name)


def test_repeatability(workspace, trained):
    for number, suffix in enumerate(("", "-seed1", "-seed2")):
        trained(f"target_0.5{suffix}", "target_0.5", 0.001 * number)
        trained(f"baseline{suffix}", "baseline", 0.002 * number)
    found = report(workspace, "repeatability")
    assert found["agreement"]["mean"] == 1 and found["non_inferiority"]["n"] == {"variant": 3, "baseline": 3}
    assert found["quality"]["variant"]["standard_deviation"] == pytest.approx(0.001)


def test_pareto(workspace, trained, finished):
    for target in TARGETS:
        trained(f"shared_{target:g}", "target_0.5")
    for target in (0.5, 0.75, 0.95):
        trained(f"target_{target:g}", "target_0.5", -0.01 if target == 0.5 else 0.01)
    found = report(workspace, "pareto")
    assert [row["winner"] for row in found["compared"]] == ["separate", "shared", "same"]
    chosen = yaml.safe_load((finished.folder / "results/tiny/target_0.5/architecture.yaml").read_text())["selection"]
    assert {row["supernet_nll"] for row in found["targets"]} == {chosen["rounds"][-1]["supernet_nll"]}
    assert "</svg>" in (workspace.folder / "results/tiny/pareto.svg").read_text()
