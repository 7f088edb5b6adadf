"""MLflow's page of an experiment's runs: the columns, and a chart of quality against speed-up.

MLflow keeps a shared view as a tag of the experiment and opens it by the page's parameter ``viewStateShareKey``.
"""

from __future__ import annotations

import json

KEY = "planer"
"""Of the shared view."""
VIEW_TAG = f"mlflow.sharedViewState.{KEY}"
KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}
"""Opens an experiment in MLflow's page for model training."""
WIDTH = 145
"""Of a column, in pixels: enough for its name."""


def columns(unit: str) -> list[str]:
    """Metrics of a variant's run, in the order shown; unit is bpc or ppl.

    The page that compares runs plots the first name in the alphabet over the second, so that quality and speed-up
    come before all others.
    """
    network = ["size/params", "size/active_params", "size/flops"]
    return [f"result/{unit}_test", "result/speed_up", "share/measured", "share/requested", *network, "search/cost"]


def view(unit: str) -> str:
    """The state of MLflow's page, in the words of its source."""
    shown = ["tags.`pattern`", *(f"metrics.`{name}`" for name in columns(unit))]
    order = ["attributes.`Source`", "attributes.`Duration`", "attributes.`Created`"]
    quality, speed_up = columns(unit)[:2]
    chart = {
        "type": "SCATTER",
        "uuid": "planer-chart",
        "metricSectionId": "planer-section",
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
        "xaxis": {"key": speed_up, "type": "METRIC"},
        "yaxis": {"key": quality, "type": "METRIC"},
    }
    section = {"uuid": "planer-section", "name": f"Test {unit} against speed-up", "display": True, "isReordered": True}
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "selectedColumns": shown,
        "columnOrder": [*order, *shown],
        "columnWidths": dict.fromkeys(shown, WIDTH),
        "compareRunCharts": [chart],
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "isAccordionReordered": True,
    }
    return json.dumps(state, separators=(",", ":"))


def page(server: str, experiment_id: str, chart: bool = False) -> str:
    """The address of an experiment's runs in the view of model training, as a table or as a chart."""
    mode = "CHART" if chart else "TABLE"
    query = f"workflowType=machine_learning&viewStateShareKey={KEY}&compareRunsMode={mode}"
    return f"{server}/#/experiments/{experiment_id}/runs?{query}"
