"""Llama, Mistral, Qwen2 and Qwen3: gated layers, down(silu(gate x) * up x)."""

from planer.pretrained.adapters.adapter import Adapter

ADAPTER = Adapter(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    heads=("causal_lm", "sequence_classification", "question_answering"),
    layers=("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"),
    up="up_proj",
    down="down_proj",
    gate="gate_proj",
    activation="act_fn",
    activation_key="hidden_act",
    attention=("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"),
    projections=("q_proj", "k_proj", "v_proj", "o_proj"),
    fixed_projections="with grouped heads the key and value projections are too small for a replacement to pay",
)
