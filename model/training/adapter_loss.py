"""The adapter's diffusion loss, through the frozen models (RealCustom Sec. 3.2; RealCustom++ Sec. III-C).

Legend of shapes: B batch, h, w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapters.adapter import VisualAdapter
from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.visual_attention import VisualCondition
from model.backbone import Backbone, PromptEmbedding
from model.training.diffusion_loss import diffusion_target, group_means, min_snr_weights, timestep_bands
from model.training.tensor_cache import Cache


@dataclass
class FrozenModels:
    """The models that do not learn, with what they have computed before."""

    backbone: Backbone
    encoders: ImageEncoders
    latents: Cache = field(default_factory=Cache)
    texts: Cache = field(default_factory=Cache)


class AdapterModule(nn.Module):
    """The adapter with its diffusion loss. The frozen models are no submodules: no engine copies or saves them.

    Args:
        adapter: of either method.
        frozen: the models around it.
        min_snr_gamma: of the loss weights (`min_snr_weights`); None weighs all timesteps alike, as the papers do.
    """

    def __init__(self, adapter: VisualAdapter, frozen: FrozenModels, min_snr_gamma: float | None = None) -> None:
        super().__init__()
        self.adapter = adapter
        self.frozen = frozen
        self.min_snr_gamma = min_snr_gamma
        adapter.attach(frozen.backbone.unet)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """|| target - eps_theta(z_t, t, f_ct, f_ci) ||^2, where the target is eps, or v if the scheduler says so.

        Only the loss itself is weighted: curves can be compared between runs with and without weights.

        Args:
            batch: as made by `AdapterTask.batch`.

        Returns:
            loss; its mean over the examples of each source ("loss/multiview", ...) and of each quarter of the schedule
            ("loss/t_750_1000", ...) that the batch has; multiview_share; crop_ratio, the mean; on some steps also
            "gain": the loss of the base without adapter minus the loss.
        """
        backbone = self.frozen.backbone
        noisy = backbone.scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
        added: dict[str, Tensor] = {name: batch[name] for name in ("text_embeds", "time_ids") if name in batch}
        prompt = PromptEmbedding(batch["hidden"], added)
        target = diffusion_target(backbone.scheduler, batch["latents"], batch["noise"], batch["timesteps"])
        condition = self._condition(batch, noisy)
        predicted = backbone.predict(noisy, batch["timesteps"], prompt, visual=condition)
        errors = F.mse_loss(predicted.float(), target, reduction="none").mean((1, 2, 3))  # (B,)
        scalars = {"loss": self._weighted(errors, batch["timesteps"]), **self._curves(errors.detach(), batch)}
        if batch["measure_gain"].any():
            with torch.no_grad():
                alone = F.mse_loss(backbone.predict(noisy, batch["timesteps"], prompt).float(), target)
            scalars["gain"] = alone - errors.detach().mean()
        return scalars

    def _weighted(self, errors: Tensor, timesteps: Tensor) -> Tensor:
        """The mean () of the errors (B,) times their weights."""
        if self.min_snr_gamma is None:
            return errors.mean()
        return (min_snr_weights(self.frozen.backbone.scheduler, timesteps, self.min_snr_gamma) * errors).mean()

    def _curves(self, errors: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the errors (B,) come from."""
        multiview = batch["multiview"]
        length = self.frozen.backbone.scheduler.config.num_train_timesteps
        groups = {"image_text": ~multiview, "multiview": multiview, **timestep_bands(batch["timesteps"], length)}
        means = {f"loss/{name}": mean for name, mean in group_means(errors, groups).items()}
        return {**means, "multiview_share": multiview.float().mean(), "crop_ratio": batch["crop_ratio"].mean()}

    def _condition(self, batch: dict[str, Tensor], noisy: Tensor) -> VisualCondition:
        """Of the references, or of a black picture where the image is dropped; z_t `noisy` (B, 4, h, w)."""
        encoders, reference, keep = self.frozen.encoders, batch["reference"], batch["keep_image"]
        black = encoders.black(len(noisy))
        condition: VisualCondition
        if isinstance(self.adapter, RealCustomAdapter):
            tokens = encoders.tokens(reference).where(keep[:, None, None], black.deep)
            alpha_bar = self.frozen.backbone.scheduler.alphas_cumprod.to(noisy.device)[batch["timesteps"]]
            condition = self.adapter(tokens, batch["hidden"], noisy, alpha_bar, batch["gamma_num"].item())
        else:
            condition = self.adapter(encoders.features(reference).where(keep, black))
        return condition
