"""Images in the size and with the colours that a network reads, as bytes.

The image processor resizes; subtracting the mean and dividing are left to the batches, which keeps a byte a value.
Letters in shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from planer.data.labelled.examples import LabelledSet
from planer.data.task_files import TaskFacts
from planer.errors import UserError
from planer.parsing import show
from planer.pretrained.folder import Folder
from planer.pretrained.load import load_config, load_image_processor

AT_ONCE = 256
"""Images that the processor gets together."""


def image_facts(network: Folder, metric: str, label_names: tuple[str, ...]) -> TaskFacts:
    """What the batches need to know.  Raises UserError for a processor that does not map 0 to 255 to 0 to 1."""
    processor = load_image_processor(network)
    if not processor.do_rescale or abs(255 * processor.rescale_factor - 1) > 1e-6:
        raise UserError(f"pretrained.folder: {network.path} has an image processor without rescale_factor 1/255")
    channels, size, patch = _sizes(network)
    mean = processor.image_mean if processor.do_normalize else [0.0] * channels
    std = processor.image_std if processor.do_normalize else [1.0] * channels
    tokens = (size // patch) ** 2 + 1
    return TaskFacts("labelled_images", metric, label_names, mean=tuple(mean), std=tuple(std), tokens_per_image=tokens)


def image_tensors(network: Folder, examples: LabelledSet) -> dict[str, Tensor]:
    """pixels uint8 [N, C, H, W] and labels.  Raises UserError for an image that cannot be read."""
    processor, (channels, size, _) = load_image_processor(network), _sizes(network)
    pixels = np.empty((len(examples), channels, size, size), np.uint8)
    for start in range(0, len(examples), AT_ONCE):
        stop = min(start + AT_ONCE, len(examples))
        images = [_coloured(examples.inputs[i], channels) for i in range(start, stop)]
        if any(image.shape != (size, size, channels) for image in images):
            images = _resized(processor, images, (channels, size))
        pixels[start:stop] = np.stack(images).transpose(0, 3, 1, 2)
    return {"pixels": torch.from_numpy(pixels), "labels": torch.from_numpy(examples.labels)}


def _sizes(network: Folder) -> tuple[int, int, int]:
    """Channels, and the side of an image and of a patch.  Raises UserError for images that are no squares."""
    config = load_config(network)
    for key in ("num_channels", "image_size", "patch_size"):
        if not isinstance(value := getattr(config, key), int):
            raise UserError(f"pretrained.folder: {network.path} has {key} {show(value)}; only whole numbers are read")
    return config.num_channels, config.image_size, config.patch_size


def _coloured(image: np.ndarray, channels: int) -> np.ndarray:
    """[H, W, 1 or 3] to [H, W, C]."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return image.repeat(3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _resized(processor, images: list[np.ndarray], shape: tuple[int, int]) -> list[np.ndarray]:
    """Images as the processor resizes and crops them: [H, W, C] bytes each.  It knows coloured images only."""
    channels, size = shape
    coloured = [image.repeat(3, axis=2) if channels == 1 else image for image in images]
    options = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
    resized = np.stack([processor(image, return_tensors="np", **options)["pixel_values"][0] for image in coloured])
    if resized.shape[1:] != (3, size, size):
        raise UserError(f"pretrained.folder: the image processor makes {resized.shape[2:]}, the network reads {size}")
    return list(resized.round().astype(np.uint8)[:, :channels].transpose(0, 2, 3, 1))
