"""The configuration of an experiment: one frozen dataclass per section, checked before any work starts.

``config/config.yaml`` has every key with its explanation and default; the dataclasses have neither.  The experiment's
file comes next, then the overlays on the command line.  ``planer.parsing.build`` turns the merged mapping into an
``Experiment``, or raises ``UserError`` with one line that names the key, the value and what is allowed.
"""

from planer.config.conversion import ClusterConfig, ProjectionConfig, RouterConfig, SparsifyConfig
from planer.config.evaluation import EvaluateConfig, ParetoConfig, RepeatabilityConfig
from planer.config.experiment import Experiment, RuntimeConfig, sections
from planer.config.latency import ATTENTIONS, Workload, WorkloadConfig
from planer.config.model import DataConfig, ModelConfig
from planer.config.search import CandidatesConfig, SearchConfig, calls_of_limit
from planer.config.thresholds import ThresholdConfig
from planer.config.training import (
    DistillConfig,
    LoopConfig,
    OptimizerConfig,
    RetrainConfig,
    TeacherConfig,
    TrainingConfig,
)

__all__ = [
    "ATTENTIONS",
    "CandidatesConfig",
    "ClusterConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "Experiment",
    "LoopConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParetoConfig",
    "ProjectionConfig",
    "RepeatabilityConfig",
    "RetrainConfig",
    "RouterConfig",
    "RuntimeConfig",
    "SearchConfig",
    "SparsifyConfig",
    "TeacherConfig",
    "ThresholdConfig",
    "TrainingConfig",
    "Workload",
    "WorkloadConfig",
    "calls_of_limit",
    "sections",
]
