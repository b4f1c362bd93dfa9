"""Pipelines of diffusers on the tiny random models, with the arguments that each needs beside a prompt."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from PIL import Image

from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.guidance.settings import InferenceSettings
from tests.support.tiny_models import RESOLUTION
from tests.support.tiny_pipelines import CROSS

METHODS = {"realcustom++": RealCustomPlusAdapter, "realcustom": RealCustomAdapter}
STEPS = 3
_SIZE = (RESOLUTION, RESOLUTION)


def picture(seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (*_SIZE, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


#: Of "a cat in a hat".
SUBJECT: dict[str, Any] = {"subjects": picture(7), "words": "cat"}


def build_pipeline(name: str, folder: Path) -> Any:
    """A pipeline of the class `name`, from a folder of its family; ControlNets and T2I-Adapters have random weights."""
    return copy.deepcopy(_loaded(name, folder))


@functools.cache
def _loaded(name: str, folder: Path) -> Any:
    torch.manual_seed(3)
    parts: dict[str, Any] = {"add_watermarker": False} if "XL" in name else {"safety_checker": None}
    if "ControlNet" in name:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
        for parameter in controlnet.parameters():  # a new ControlNet ends in zeros
            torch.nn.init.normal_(parameter, std=0.05)
        parts["controlnet"] = controlnet.eval()
    if "Adapter" in name:
        parts["adapter"] = _t2i_adapter(xl="XL" in name)
    pipe = getattr(diffusers, name).from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _t2i_adapter(*, xl: bool) -> T2IAdapter:
    if xl:
        adapter = T2IAdapter(
            channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl"
        )
    else:
        adapter = T2IAdapter(
            channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        )
    return adapter.eval()


def arguments_of(name: str) -> dict[str, Any]:
    """The pictures that a pipeline of this class takes, and its size."""
    found: dict[str, Any] = {}
    if "Img2Img" in name or "Inpaint" in name:
        found |= {"image": picture(1), "strength": 0.9}
    if "Inpaint" in name:
        found["mask_image"] = Image.linear_gradient("L").resize(_SIZE)
    if "ControlNet" in name:
        key = "control_image" if "image" in found else "image"
        found[key] = picture(2)
    if "Adapter" in name:
        found["image"] = picture(2)
    if "Img2Img" not in name:
        found |= {"height": RESOLUTION, "width": RESOLUTION}
    return found


def widen_for_inpainting(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same UNet with the nine input channels of inpainting models."""
    wide: UNet2DConditionModel = UNet2DConditionModel.from_config(unet.config, in_channels=9)
    weights = unet.state_dict()
    more = torch.randn(weights["conv_in.weight"].shape[0], 5, 3, 3) * 0.1
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], more], dim=1)
    wide.load_state_dict(weights)
    return wide.eval()


def settings_for(family: str, **values: Any) -> InferenceSettings:
    return InferenceSettings(steps=STEPS, mask_steps=2, mask_cross_downscales=CROSS[family], **values)


def paint(pipe: Any, prompt: Any = "a cat in a hat", **options: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np", **options}
    pictures: np.ndarray = pipe(prompt, generator=generator, **options).images
    return pictures
