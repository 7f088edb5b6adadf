"""ViT: pre-LN, GELU, residual and dropout in the module around the layer."""

from planer.pretrained.adapters.adapter import Adapter

ADAPTER = Adapter(
    model_types=("vit",),
    heads=("image_classification",),
    layers=("ViTMLP",),
    up="fc1",
    down="fc2",
    activation="activation_fn",
    activation_key="hidden_act",
    attention=("ViTAttention",),
    projections=("q_proj", "k_proj", "v_proj", "o_proj"),
)
