"""The base class of the adapters: visual keys and values, attached to a UNet through its attention processors."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from huggingface_hub import HfApi
from torch import Tensor, nn

from model.adapters.model_card import model_card
from model.adapters.usage import AdapterUsage, read_usage
from model.adapters.visual_attention import VisualAttentionProcessor
from model.errors import ModelError
from model.pretrained import split_revision


class AdapterError(ModelError):
    """The adapter cannot be loaded, or does not fit the base model."""


class VisualAdapter(ModelMixin, ConfigMixin):
    """What all adapters share: W_Ki and W_Vi of every cross-attention layer (RealCustom Eq. 4).

    W_Vi starts at zero, so an untrained adapter changes nothing. The base UNet's weights stay as they are: `attach`
    replaces its attention processors, `detach` restores the original ones. With an adapter attached, the UNet still
    computes the base model unless a condition is passed:

        adapter.attach(unet)
        condition = adapter(...)
        unet(latents, t, text, cross_attention_kwargs={"visual": condition})

    A subclass sets `method_name` and `paper`, calls `_add_keys_values`, and registers at least `layers`
    (cross-attention layers of the UNet -> width C of their keys and values), `image_width` (width of the image
    encoders' features) and `token_width` (c_t, the UNet's cross-attention width).
    """

    method_name: ClassVar[str]  # as in the paper
    paper: ClassVar[str]  # its title
    usage: AdapterUsage | None = None  # how it is used; kept beside the weights
    to_k_vision: nn.ModuleDict
    to_v_vision: nn.ModuleDict

    def _add_keys_values(self, layers: dict[str, int], width: int) -> None:
        """Create W_Ki and W_Vi for image tokens of the given width."""
        widths = {_key(layer): to for layer, to in layers.items()}
        self.to_k_vision = nn.ModuleDict({key: nn.Linear(width, to, False) for key, to in widths.items()})
        values = {key: nn.Linear(width, to, False) for key, to in widths.items()}
        for linear in values.values():
            nn.init.zeros_(linear.weight)
        self.to_v_vision = nn.ModuleDict(values)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike[str], **options: Any) -> Self:
        """Load `config.json`, safetensors and `usage.json`, if there is one.

        Args:
            folder_or_hub_id: A folder, `org/name` or `org/name@revision`.
            options: Diffusers' (`subfolder`, `revision`, ...).

        Raises:
            AdapterError: the folder holds another class; weights are missing or unexpected (the message lists them) or
                have other shapes.
            OSError: the folder or hub id does not exist, or one of its files cannot be read.
        """
        location, revision = split_revision(folder_or_hub_id)
        options = {**revision, **options}
        kind = cls.load_config(location, **options).get("_class_name")
        if kind != cls.__name__:
            raise AdapterError(f"{folder_or_hub_id} holds a {kind}, not a {cls.__name__}.")
        try:
            adapter, info = super().from_pretrained(
                location, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, **options
            )
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise AdapterError(f"adapter {folder_or_hub_id}: the weights do not fit its config.json: {why}") from error
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or unexpected:
            raise AdapterError(f"adapter {folder_or_hub_id}: weights missing: {missing}, unexpected: {unexpected}.")
        adapter.usage = read_usage(location, **options)
        return adapter

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, licence: str = "unknown", **options: Any
    ) -> None:
        """Write `config.json`, safetensors, `usage.json` and a model card (README.md).

        Args:
            save_directory: A folder; it is made if it is not there.
            licence: For the card: an identifier of the hub, such as "openrail++" or "apache-2.0".
            options: Diffusers', without `push_to_hub`, which is a method of its own.
        """
        if options.pop("push_to_hub", False):
            raise AdapterError("save_pretrained does not upload; use push_to_hub, which uploads the model card too.")
        super().save_pretrained(save_directory, **options)
        folder = Path(save_directory)
        if self.usage is not None:
            self.usage.write(folder)
        about = self.method_name, self.paper, self.config, self.num_parameters()
        card = model_card(type(self), *about, usage=self.usage, licence=licence)
        (folder / "README.md").write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        *,
        revision: str | None = None,
        licence: str = "unknown",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the commit's URL.

        Args:
            repo_id: `org/name`; it is made if it is not there.
            commit_message: A default if None.
            private: Whether a new repository is private; None: as the account's default.
            token: None: that of `hf auth login`, or of the variable HF_TOKEN.
            create_pr: Whether to open a pull request instead of a commit.
            revision: Branch; None: the main one.
            licence: See `save_pretrained`.

        Raises:
            AdapterError: `usage` names image encoders that are folders of this machine.
            HfHubHTTPError: The hub refuses, for example without a token.
        """
        for location in [] if self.usage is None else self.usage.local_encoders():
            raise AdapterError(
                f"the adapter's image encoder {location} is a folder of this machine, which no other has; set "
                "adapter.usage to one that names the encoder's hub id."
            )
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, licence=licence)
            message = commit_message or f"Upload {type(self).__name__}"
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, create_pr=create_pr
            )

    def keys_values(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Image tokens f_ci (B, n_i, width) -> layer -> K_i = W_Ki f_ci, V_i = W_Vi f_ci, each (B, n_i, C)."""
        return {
            layer: (self.to_k_vision[_key(layer)](tokens), self.to_v_vision[_key(layer)](tokens))
            for layer in self.config["layers"]
        }

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Put visual attention processors into the UNet. Attaching twice is the same as once.

        Raises:
            AdapterError: the UNet's cross-attention has other layers or widths than the adapter.
        """
        self.check_fits(unet)
        attach_processors(unet)

    def detach(self, unet: UNet2DConditionModel) -> None:
        """Restore the processors that `attach` replaced."""
        processors = unet.attn_processors
        for name, processor in processors.items():
            if isinstance(processor, VisualAttentionProcessor):
                processors[name] = processor.original
        unet.set_attn_processor(processors)

    def check_fits(self, unet: UNet2DConditionModel) -> None:
        """Compare the cross-attention of the UNet with that of the UNet that the adapter was trained on.

        Raises:
            AdapterError: layers or widths differ; names the first difference.
        """
        own, base = dict(self.config["layers"]), cross_attention_widths(unet)
        for layer in sorted(own.keys() | base.keys()):
            if own.get(layer) != base.get(layer):
                raise AdapterError(
                    f"the adapter does not fit this base model: cross-attention {layer} has width "
                    f"{base.get(layer, 'none')} in the base and {own.get(layer, 'none')} in the adapter."
                )
        if self.config["token_width"] != unet.config.cross_attention_dim:
            raise AdapterError(
                "the adapter does not fit this base model: the adapter needs text states of width "
                f"{self.config['token_width']}, the base has width {unet.config.cross_attention_dim}."
            )


def attach_processors(unet: UNet2DConditionModel) -> None:
    """Put visual attention processors into a UNet; the UNet still computes the base model until it is passed more.

    Raises:
        AdapterError: the UNet has a kind of attention that Stable Diffusion 1.5 and XL do not have.
    """
    cross_attention_widths(unet)
    levels = len(unet.config.block_out_channels)
    processors = unet.attn_processors
    for name, original in processors.items():
        if not isinstance(original, VisualAttentionProcessor):
            layer = name.removesuffix(".processor")
            processors[name] = VisualAttentionProcessor(layer, layer_downscale(layer, levels), original)
    unet.set_attn_processor(processors)


def cross_attention_widths(unet: UNet2DConditionModel) -> dict[str, int]:
    """Cross-attention layers of a UNet -> width of their keys and values.

    Raises:
        AdapterError: the UNet has a kind of attention that Stable Diffusion 1.5 and XL do not have.
    """
    widths = {}
    for name, module in unet.named_modules():
        if not isinstance(module, Attention):
            continue
        if module.group_norm is not None or module.residual_connection or module.norm_q is not None:
            raise AdapterError(f"attention {name} of this UNet differs from Stable Diffusion's attention.")
        if name.endswith(".attn2"):
            widths[name] = module.to_k.out_features
    return widths


def layer_downscale(layer: str, levels: int) -> int:
    """The size of the latent divided by the size of a layer's grid.

    Args:
        layer: name in a diffusers UNet.
        levels: number of down blocks; each but the last halves the grid.
    """
    block = re.match(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?", layer)
    if block is None:
        raise AdapterError(f"attention {layer} is outside the blocks of a Stable Diffusion UNet.")
    if block[1] == "mid_block":
        return 2 ** (levels - 1)
    index = int(block[2])
    return 2 ** (index if block[1] == "down_blocks" else levels - 1 - index)


def _key(layer: str) -> str:
    """A ModuleDict takes no dots."""
    return layer.replace(".", "_")
