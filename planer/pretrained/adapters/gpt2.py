"""GPT-2: pre-LN, tanh form of GELU, weights [in, out], dropout after the layer."""

from planer.pretrained.adapters.adapter import Adapter

ADAPTER = Adapter(
    model_types=("gpt2",),
    heads=("causal_lm", "sequence_classification", "question_answering"),
    layers=("GPT2MLP",),
    up="c_fc",
    down="c_proj",
    activation="act",
    activation_key="activation_function",
    input_major=True,
    finish=lambda layer, y, x: layer.dropout(y),
    attention=("GPT2Attention",),
    projections=("c_attn", "c_proj"),
    fixed_projections="GPT-2's quality suffers most when projections are replaced (D2DMoE, section 4.1)",
    size_keys=("n_embd", "n_inner"),
    default_ratio=4,
)
