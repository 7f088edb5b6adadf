"""Heads: what turns hidden states into a loss and log-probabilities.  A file in this folder adds one.

No module here imports PyTorch when it is imported: the configuration asks heads for their names and counts.
"""

from planer.heads.adaptive_softmax import AdaptiveSoftmax
from planer.heads.head import Cluster, HeadSpec
from planer.heads.softmax import Softmax

__all__ = ["AdaptiveSoftmax", "Cluster", "HeadSpec", "Softmax"]
