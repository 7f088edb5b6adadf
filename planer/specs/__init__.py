"""What networks are made of, without torch: one kind of block a file, the pattern notation, and architectures."""

from planer.specs.plugins import plugin_folders

__path__ += plugin_folders("specs")

from planer.specs.architecture import EMBEDDING_AND_HEAD, Architecture, load_selection  # noqa: E402
from planer.specs.attention import Attention  # noqa: E402
from planer.specs.block import BlockSpec  # noqa: E402
from planer.specs.dynamic_mlp_attention import DynamicMlpAttention  # noqa: E402
from planer.specs.dynamic_moe import DynamicMoE  # noqa: E402
from planer.specs.feed_forward import FeedForward  # noqa: E402
from planer.specs.mlp_attention import MlpAttention  # noqa: E402
from planer.specs.moe import MoE  # noqa: E402
from planer.specs.notation import from_notation, to_notation  # noqa: E402
from planer.specs.registry import kind_of, kinds  # noqa: E402
from planer.specs.skip import Skip  # noqa: E402

__all__ = [
    "EMBEDDING_AND_HEAD",
    "Architecture",
    "Attention",
    "BlockSpec",
    "DynamicMlpAttention",
    "DynamicMoE",
    "FeedForward",
    "MlpAttention",
    "MoE",
    "Skip",
    "from_notation",
    "kind_of",
    "kinds",
    "load_selection",
    "to_notation",
]
