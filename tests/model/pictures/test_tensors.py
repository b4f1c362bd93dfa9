from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from model.pictures.tensors import mask_picture, to_pictures, to_tensor


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def test_tensors_and_back() -> None:
    pictures = [noise(5, 4), noise(5, 4).transpose(Image.Transpose.ROTATE_180)]
    tensor = to_tensor(pictures)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor[0, :, 1, 2].mul(255).round().int().tolist() == np.asarray(pictures[0])[1, 2].tolist()
    assert [picture.tobytes() for picture in to_pictures(tensor)] == [picture.tobytes() for picture in pictures]
    assert torch.equal(to_tensor(to_pictures(tensor * 3 - 1)), to_tensor(to_pictures((tensor * 3 - 1).clamp(0, 1))))


def test_mask_picture_enlarges_in_whole_blocks() -> None:
    picture = mask_picture(torch.tensor([[[0.0, 0.2, 0.5]], [[0.0, 1.0, 0.0]]]), 2)
    assert (picture.mode, picture.size) == ("L", (6, 2))
    assert [picture.getpixel((x, 1)) for x in (0, 2, 5)] == [0, 255, 128]
