"""The report's tables of the dynamic-k sweep, beside the dense network."""

from __future__ import annotations

from planer.evaluation.comparison import chosen_row
from planer.report.page import cell, count, milliseconds, table
from planer.report.verdict import verdict


def sweep_table(evaluation: dict) -> dict:
    """The dense network, the sparsified one and every threshold, with their validation nll over both references."""
    unit, final = evaluation["quality"]["unit"], evaluation["quality"]["final"]
    conversion, rows = evaluation["conversion"], evaluation["dynamic_k"]
    dense = {**final, "network_flops": evaluation["flops"]["closed_form"], "latency": conversion["dense_latency"]}
    dense["converted_flops_ratio"] = 1.0 if conversion["converted_layers"] else None
    sparsified = dense | conversion["sparsified"] | {"latency": conversion["sparsified_latency"]}
    chosen = chosen_row(evaluation)
    named = [("dense", dense), ("sparsified", sparsified), *((f"tau = {row['tau']:g}", row) for row in rows)]
    references = (dense, rows[0])
    columns = ["network", f"test {unit}", f"valid {unit}", "nll, of dense", "nll, of tau = 0", "converted FLOPs"]
    columns += ["network FLOPs/token", "experts/token", "ms", "ms, of dense"]
    cells = [
        [
            name,
            f"{row['test'][unit]:.3f}",
            f"{row['valid'][unit]:.3f}",
            *(f"{row['valid']['nll'] / reference['valid']['nll'] - 1:+.1%}" for reference in references),
            cell(row["converted_flops_ratio"], "{:.1%}".format),
            count(row["network_flops"]),
            cell(row.get("experts_per_token"), "{:.1f}".format),
            milliseconds(row["latency"]["median_ms"]),
            f"{row['latency']['median_ms'] / dense['latency']['median_ms']:.2f}",
        ]
        for name, row in named
    ]
    return table(columns, cells, title=_title(evaluation), marks=[row is chosen for _, row in named])


def _title(evaluation: dict) -> str:
    """The conversion, and the verdict on it."""
    conversion, judgement = evaluation["conversion"], verdict(evaluation).dynamic_k
    label = f"{evaluation['variant']}: "
    if conversion["converted_layers"]:
        blocks, experts = len(set(conversion["blocks"])), sorted({*conversion["num_experts"]})
        label += f"{blocks} of {len(evaluation['architecture']['blocks'])} blocks converted, "
        label += f"{' or '.join(map(str, experts))} experts each; "
    return label + judgement.word + (f": {judgement.text}" if judgement.text else "")
