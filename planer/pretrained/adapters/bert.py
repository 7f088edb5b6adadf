"""BERT: post-LN; one layer is spread over two modules of BertLayer, and ends in dropout, residual and LayerNorm."""

from planer.pretrained.adapters.adapter import Adapter

ADAPTER = Adapter(
    model_types=("bert",),
    heads=("masked_lm", "sequence_classification", "question_answering"),
    layers=("BertLayer",),
    up="intermediate.dense",
    down="output.dense",
    activation="intermediate.intermediate_act_fn",
    activation_key="hidden_act",
    method="feed_forward_chunk",
    finish=lambda layer, y, x: layer.output.LayerNorm(layer.output.dropout(y) + x),
    attention=("BertAttention",),
    projections=("self.query", "self.key", "self.value", "output.dense"),
)
