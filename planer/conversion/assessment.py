"""How good routers are: their scores beside the true norms of the experts' outputs.

Letters in shapes: N tokens, n experts.
"""

from __future__ import annotations

from torch import Tensor

from planer.kernels.routing import threshold

ASSESSED_TOKENS = 20_000
"""Layers are looked at on this much of the validation split."""
ASSESSED_TAUS = (0.1, 0.3)
"""Thresholds at which the router's choice of experts is compared with the oracle's."""


class Assessment:
    """Running comparison of one layer's router with the norms it predicts."""

    def __init__(self) -> None:
        self.tokens = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, scores: Tensor, norms: Tensor) -> None:
        """scores, norms: [N, n]."""
        scores, norms = scores.double(), norms.double()
        self.tokens += len(norms)
        sums = {
            "error": (scores - norms).square().sum(),
            "norm": norms.sum(0),
            "square": norms.square().sum(0),
        }
        largest = norms.sort(-1, descending=True).values.cumsum(-1)
        for tau in ASSESSED_TAUS:
            chosen = threshold(scores, tau)
            count = chosen.sum(-1)
            sums |= {
                f"chosen {tau}": count.sum(),
                f"oracle {tau}": threshold(norms, tau).sum(),
                f"kept {tau}": (norms * chosen).sum(),
                f"best {tau}": largest.gather(1, count[:, None] - 1).sum(),
            }
        self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}

    def metrics(self) -> dict[str, float]:
        """Of all tokens so far.

        - valid_loss, r2: squared error, and the share of each expert's variance over tokens that is predicted (1 is
          perfect, 0 is no better than always predicting the expert's mean)
        - chosen_tau_<tau>, oracle_tau_<tau>: share of experts that dynamic-k runs by predicted and by true norms
        - captured_tau_<tau>: sum of the chosen experts' true norms, over the largest sum that as many experts have
        """
        norm = self.sums["norm"]
        variance = (self.sums["square"] - norm.square() / self.tokens).sum().item()
        error = self.sums["error"].item()
        pairs = self.tokens * len(norm)
        metrics = {"valid_loss": error / pairs, "r2": 1 - error / variance if variance > 0 else 0.0}
        for tau in ASSESSED_TAUS:
            best = self.sums[f"best {tau}"].item()
            metrics |= {
                f"chosen_tau_{tau}": self.sums[f"chosen {tau}"].item() / pairs,
                f"oracle_tau_{tau}": self.sums[f"oracle {tau}"].item() / pairs,
                f"captured_tau_{tau}": self.sums[f"kept {tau}"].item() / best if best > 0 else 1.0,
            }
        return metrics
