"""Tiny networks of every family from transformers, with random weights, and their inputs."""

from __future__ import annotations

import tokenizers
import torch
import transformers
from torch import Tensor, nn

VOCAB, WIDTH, NEURONS, LAYERS = 96, 16, 24, 2
SHARED = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS}
GROUPED = SHARED | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32}
ENCODER = {"num_attention_heads": 2, "hidden_dropout_prob": 0.1}
IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
FAMILIES = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_inner=NEURONS, n_layer=LAYERS, n_head=2, n_positions=32, **IDS
        )
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SHARED, **ENCODER)),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **{k: v for k, v in SHARED.items() if k != "vocab_size"},
            **ENCODER,
            image_size=8,
            patch_size=4,
            num_labels=3,
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, **IDS, mlp_bias=True)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED, **IDS)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED, **IDS)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, **IDS)),
}


def tiny(family: str) -> nn.Module:
    """A network in eval mode.  Large weights and nonzero biases make errors visible in the logits."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3).add_(1.0 if weight.ndim == 1 else 0.0)
    return model.eval()


def inputs(family: str) -> Tensor:
    """Two sequences of 9 tokens, or two images."""
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return torch.rand(2, 3, 8, 8, generator=generator)
    return torch.randint(5, VOCAB, (2, 9), generator=generator)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).logits


def save_tokenizer(folder) -> None:
    """A byte-pair tokenizer of at most VOCAB symbols as tokenizer.json."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog in an other text"] * 2, trainer)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names["mask_token"] = "[MASK]"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save(family: str, folder) -> None:
    """Save the network and its tokenizer or image processor."""
    tiny(family).save_pretrained(folder)
    if family == "vit":
        transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    else:
        save_tokenizer(folder)
