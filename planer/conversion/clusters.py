"""Which neurons of a pretrained network form an expert, as a table: layer (name of the site), neuron, expert."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from planer.conversion.sites import feed_forward_sites
from planer.errors import UserError


def apply_labels(model: nn.Module, labels: pd.DataFrame) -> None:
    """Sort the neurons of every feed-forward layer by expert, which changes the network's results by rounding only.

    Inside an expert neurons keep their order.  The same labels must not be applied twice: neurons count in the order
    that they had when the labels were made.
    Raises UserError when the table does not name every neuron of the network's layers once.
    """
    sites = feed_forward_sites(model)
    tables = dict(iter(labels.groupby("layer", sort=False)))
    for site in sites:
        table = tables.pop(site.name, None)
        if table is None or sorted(table["neuron"]) != list(range(site.d_inner)):
            raise UserError(f"labels do not name each of the {site.d_inner} neurons of {site.name} once; cluster again")
    if tables:
        raise UserError(f"labels name {next(iter(tables))}, which the network lacks; cluster again")
    for site in sites:
        experts = labels[labels["layer"] == site.name].sort_values("neuron")["expert"].to_numpy()
        order = torch.from_numpy(np.argsort(experts, kind="stable"))
        site.reorder(order.to(site.weights().w1.device))
