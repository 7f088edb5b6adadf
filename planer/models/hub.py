"""Exported networks in transformers: import this module, then AutoModelForCausalLM.from_pretrained(folder).

A network takes no padding: prompts of a batch have the same length.

Letters in shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from planer.config import bounds
from planer.models.export import MODEL_TYPE
from planer.models.transformer import LanguageModel
from planer.parsing import convert
from planer.specs import Architecture


class PlanerConfig(PreTrainedConfig):
    """config.json of an exported network.

    architecture: ``Architecture.to_dict``.  mem_len, clamp_len: how it was evaluated, and is read.  Raises UserError
    when one of these is no length.
    """

    model_type = MODEL_TYPE

    def __init__(self, architecture: dict | None = None, mem_len: int = 0, clamp_len: int = 0, **kwargs):
        self.mem_len = convert(bounds.Memory, mem_len, "mem_len")
        self.clamp_len = convert(bounds.Memory, clamp_len, "clamp_len")
        self.architecture = architecture or {}
        super().__init__(**kwargs)


class Memory(list):
    """What the blocks remember of the tokens read so far: one entry a block."""

    is_compileable = False

    def __init__(self, entries: Iterable, seen: int):
        super().__init__(entries)
        self.seen = seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.seen


class PlanerForCausalLM(PreTrainedModel, GenerationMixin):
    """A planer network behind transformers' interface; ``network`` is the network itself."""

    config_class = PlanerConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"

    def __init__(self, config: PlanerConfig):
        super().__init__(config)
        self.network = LanguageModel(Architecture.from_dict(config.architecture))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments, **options):
        """As of every model, with copied weights: those that are mapped from a file begin at addresses where products
        on a CPU are rounded differently, by 1e-6."""
        loaded = super().from_pretrained(*arguments, **options)
        for weight in (loaded[0] if isinstance(loaded, tuple) else loaded).parameters():
            weight.data = weight.data.clone()
        return loaded

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: the blocks' memory is not transformers' cache."""
        return False

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights come from the file."""

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.network.embedding

    def prepare_inputs_for_generation(self, input_ids: Tensor, cache: Memory | None = None, **options) -> dict:
        """The tokens that are not in the memory yet."""
        unread = input_ids[:, cache.seen if cache else 0 :]
        return {"input_ids": unread, "cache": cache, **{k: options.get(k) for k in ("attention_mask", "use_cache")}}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Memory | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **ignored,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of the token after each; every token sees itself and the mem_len before it.

        labels: [B, T], -100 where none; the loss is the mean negative log-likelihood of each token after its
        predecessors.  Raises ValueError for padding, and when hidden states are wanted.
        """
        if output_hidden_states or output_hidden_states is None and self.config.output_hidden_states:
            raise ValueError("planer networks return no hidden states of single blocks; leave out output_hidden_states")
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("planer networks take no padding; give prompts of one length, or one at a time")
        use_cache = not self.training if use_cache is None else use_cache
        output = self.network(
            input_ids,
            cache,
            mem_len=self.config.mem_len,
            clamp_len=self.config.clamp_len,
            same_length=True,
            attention="recompute" if self.training else "cached",
        )
        logits, loss = self.network.logits(output.hidden), None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        memory = Memory(output.state, (cache.seen if cache else 0) + input_ids.shape[1]) if use_cache else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=memory)


AutoConfig.register(MODEL_TYPE, PlanerConfig)
AutoModelForCausalLM.register(PlanerConfig, PlanerForCausalLM)
