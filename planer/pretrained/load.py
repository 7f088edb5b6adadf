"""Networks, tokenizers and image processors of a checked folder.  No network is asked, and no code of the folder run.

transformers is imported by the functions, since it takes three seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import nn

from planer.errors import UserError
from planer.files import one_line
from planer.pretrained.folder import SAVE_AGAIN, Folder

if TYPE_CHECKING:
    import transformers

HEADS = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "image_classification": "AutoModelForImageClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}
NEW_HEADS = ("sequence_classification", "image_classification", "question_answering")
"""Heads that may start from random weights, since training makes them."""
PADDED = 1024
"""The most padding symbols that a vocabulary may have."""


def load_model(
    folder: Folder,
    labels: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    new_head: bool = True,
) -> transformers.PreTrainedModel:
    """The network with the folder's head, in eval mode on the CPU.

    labels: of a classification, in the order of their ids; the folder's by default.  Where the folder has no such
    head, it gets random weights from PyTorch's generator, unless new_head is False.  dtype: of the weights, whatever
    the folder's.  attention: ``sdpa`` or ``eager``.  Feed-forward layers compute all tokens at once; the configuration
    keeps its chunk_size_feed_forward.
    Raises UserError when weights are missing, superfluous, of another size than config.json says, or not finite.
    """
    options = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    with quiet_transformers() as library:
        model, report = _read(
            folder,
            getattr(library, HEADS[folder.head]),
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are in the report, which is checked below
            output_loading_info=True,
            **(options if labels else {}),
        )
    _check_report(folder, model, report, new_head)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            _refuse(folder, f"has values in {name} that are not finite; copy it again")
        # Weights that are mapped from a file begin at addresses where products on a CPU are rounded differently.
        weight.data = weight.data.clone()
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 0  # statistics and counts need all tokens of a pass at once
    return model


def load_config(folder: Folder) -> transformers.PreTrainedConfig:
    """The folder's configuration, with transformers' defaults for what config.json leaves out.

    Raises UserError when it cannot be read.
    """
    with quiet_transformers() as library:
        return _read(folder, library.AutoConfig)


def load_tokenizer(folder: Folder) -> transformers.PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Raises UserError when it cannot be read, or does not fit the network: transformers makes one of a few symbols where
    files are missing.
    """
    with quiet_transformers() as library:
        tokenizer = _read(folder, library.AutoTokenizer)
    vocab_size = load_config(folder).vocab_size
    if not vocab_size - PADDED <= len(tokenizer) <= vocab_size:
        sizes = f"of {len(tokenizer):,} symbols, the network one of {vocab_size:,}"
        _refuse(folder, f"has a tokenizer {sizes}; copy the tokenizer's files from where the network came from")
    ids = tokenizer("the text in an other one", add_special_tokens=False).input_ids
    if set(ids) <= {tokenizer.unk_token_id}:
        _refuse(folder, "has a tokenizer to which all English text is unknown; copy the tokenizer's files again")
    return tokenizer


def padding_id(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """The symbol that fills up shorter texts of a batch: the tokenizer's own, else its end of a text, else 0."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def load_image_processor(folder: Folder) -> transformers.BaseImageProcessor:
    """The folder's image processor, in Pillow.  Raises UserError when it cannot be read."""
    with quiet_transformers() as library:
        return _read(folder, library.AutoImageProcessor, use_fast=False)


@contextmanager
def quiet_transformers() -> Iterator[ModuleType]:
    """The library, without network, progress bars and reports."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    from planer.pretrained import configs  # noqa: F401, it registers types

    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _read(folder: Folder, auto: type, **options):
    """What an Auto class makes of a folder.  Raises UserError for any mistake that transformers finds."""
    try:
        return auto.from_pretrained(str(folder.path), local_files_only=True, trust_remote_code=False, **options)
    except UserError:  # of planer/conversion/hub.py
        raise
    except Exception as error:  # transformers and its file formats raise whatever a wrong value makes them raise
        raise UserError(
            f"pretrained.folder: {folder.path} cannot be loaded by {auto.__name__} ({one_line(error)}); {SAVE_AGAIN}"
        ) from error


def _check_report(folder: Folder, model: nn.Module, report: dict, new_head: bool) -> None:
    """Raise UserError unless weights and network fit each other, but for a head that training makes."""
    absent, sized = list(report["missing_keys"]), [name for name, *_ in report["mismatched_keys"]]
    missing, wrong = ([name for name in names if not _may_be_new(folder, model, name)] for names in (absent, sized))
    new = sorted({*absent, *sized} - {*missing, *wrong})
    # Attention's masked_bias, in older folders of GPT-2, is a constant.
    unexpected = (name for name in report["unexpected_keys"] if not name.endswith(".masked_bias"))
    surplus = [name for name in unexpected if re.search(r"\.\d+\..*(weight|bias)$", name)]
    if missing:
        _refuse(folder, f"lacks the weights {_first(missing)}; name another head, or copy it again")
    if wrong:
        _refuse(folder, f"has weights {_first(wrong)} of another size than config.json says; copy it again")
    if surplus:
        _refuse(folder, f"has weights {_first(surplus)} that config.json has no place for; copy it again")
    if new and not new_head:
        problem = f"lacks a head for the task's labels ({_first(new)}), and with 0 steps none is trained"
        _refuse(folder, f"{problem}; set steps, or name a folder with a head for these labels")


def _may_be_new(folder: Folder, model: nn.Module, name: str) -> bool:
    """Whether weights are those of a head that training makes.  A pooler belongs to the head."""
    below = name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name
    return folder.head in NEW_HEADS and not below


def _first(names: list[str]) -> str:
    return min(names) if len(names) == 1 else f"{min(names)} and {len(names) - 1:,} others"


def _refuse(folder: Folder, problem: str) -> NoReturn:
    raise UserError(f"pretrained.folder: {folder.path} {problem}")
