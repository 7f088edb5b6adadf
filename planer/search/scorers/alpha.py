"""Architecture weights as scores, as in the paper's search."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def alpha_scores(alpha: Tensor) -> np.ndarray:
    """Log-probabilities of the options [P, N], from architecture weights [P, N]; higher is better."""
    return alpha.detach().double().log_softmax(-1).numpy(force=True)
