"""Networks in llama.cpp's GGUF format as Hugging Face folders in single precision."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from planer.errors import UserError
from planer.pretrained.load import quiet_transformers


def save_dequantized(network: Path, folder: Path, reader: Path) -> None:
    """Save network and tokenizer of a GGUF file as a folder.  reader: the wheel of the package gguf.

    transformers reads the file with that package, which nothing else needs: it is taken from its wheel.  (Its
    from_pretrained would ask for the package accelerate too.)
    Raises UserError when the file's weights are not those of its configuration.
    """
    sys.path.insert(0, str(reader))
    try:
        with quiet_transformers() as library:
            from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

            options = {"gguf_file": network.name, "local_files_only": True}
            tokenizer = library.AutoTokenizer.from_pretrained(network.parent, **options)
            config = library.AutoConfig.from_pretrained(network.parent, **options)
            model = library.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            weights = load_gguf_checkpoint(str(network), return_tensors=True, model_to_load=model)["tensors"]
            missing, surplus = model.load_state_dict(weights, strict=False)
            if surplus or set(missing) - set(model.all_tied_weights_keys):
                raise UserError(f"{network} does not fit its own configuration: {[*missing, *surplus][0]}")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    finally:
        sys.path.remove(str(reader))
