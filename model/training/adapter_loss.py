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
from model.adapters.visual_attention import VisualCondition
from model.backbone import Backbone, PromptEmbedding
from model.methods.registry import method_of
from model.training.diffusion_loss import diffusion_target, group_means, min_snr_weights, timestep_bands
from model.training.tensor_cache import Cache


@dataclass
class FrozenModels:
    """The models that do not learn, with caches of what they compute."""

    backbone: Backbone
    encoders: ImageEncoders
    latents: Cache = field(default_factory=Cache)
    texts: Cache = field(default_factory=Cache)


class AdapterModule(nn.Module):
    """The adapter with its diffusion loss. The frozen models are no submodules, so that no engine copies or saves them.

    Args:
        adapter: of any method.
        frozen: the models around it.
        min_snr_gamma: of the loss weights (`min_snr_weights`); None weights all timesteps equally, as the papers do.
    """

    def __init__(self, adapter: VisualAdapter, frozen: FrozenModels, min_snr_gamma: float | None = None) -> None:
        super().__init__()
        self.adapter = adapter
        self.frozen = frozen
        self.min_snr_gamma = min_snr_gamma
        adapter.attach(frozen.backbone.unet)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """|| target - eps_theta(z_t, t, f_ct, f_ci) ||^2; the target is eps, or v if the scheduler predicts v.

        Only the loss itself is weighted, so that curves of runs with and without weights can be compared.

        Args:
            batch: as made by `AdapterTask.batch`.

        Returns:
            loss; its mean over the examples of each source ("loss/multiview", ...) and of each quarter of the schedule
            ("loss/t_750_1000", ...) in the batch; multiview_share; crop_ratio, the mean; in steps with `measure_gain`
            also "gain": the loss of the base model without the adapter minus the loss.
        """
        timesteps = batch["timesteps"]
        errors = self.squared_errors(batch).mean((1, 2, 3))  # (B,)
        scalars = {"loss": self._weighted(errors, timesteps), **self._curves(errors.detach(), batch)}
        if batch["measure_gain"].any():
            with torch.no_grad():
                base = self.squared_errors(batch, with_adapter=False).mean()
            scalars["gain"] = base - errors.detach().mean()
        return scalars

    def squared_errors(self, batch: dict[str, Tensor], *, with_adapter: bool = True) -> Tensor:
        """The squared errors (B, 4, h, w) of the prediction, or of the base model's prediction."""
        backbone, timesteps = self.frozen.backbone, batch["timesteps"]
        noisy = backbone.scheduler.add_noise(batch["latents"], batch["noise"], timesteps)
        added: dict[str, Tensor] = {name: batch[name] for name in ("text_embeds", "time_ids") if name in batch}
        condition: dict[str, VisualCondition] = {}
        if with_adapter:
            alpha_bar = backbone.scheduler.alphas_cumprod.to(noisy.device)[timesteps]
            method = method_of(self.adapter)
            condition["visual"] = method.training_condition(self.adapter, self.frozen.encoders, batch, noisy, alpha_bar)
        predicted = backbone.predict(noisy, timesteps, PromptEmbedding(batch["hidden"], added), **condition)
        target = diffusion_target(backbone.scheduler, batch["latents"], batch["noise"], timesteps)
        return F.mse_loss(predicted.float(), target, reduction="none")

    def _weighted(self, errors: Tensor, timesteps: Tensor) -> Tensor:
        """The weighted mean () of the errors (B,)."""
        if self.min_snr_gamma is None:
            return errors.mean()
        return (min_snr_weights(self.frozen.backbone.scheduler, timesteps, self.min_snr_gamma) * errors).mean()

    def _curves(self, errors: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The errors (B,) by source and by band of timesteps, and the batch's composition."""
        multiview = batch["multiview"]
        length = self.frozen.backbone.scheduler.config.num_train_timesteps
        groups = {"image_text": ~multiview, "multiview": multiview, **timestep_bands(batch["timesteps"], length)}
        means = {f"loss/{name}": mean for name, mean in group_means(errors, groups).items()}
        return {**means, "multiview_share": multiview.float().mean(), "crop_ratio": batch["crop_ratio"].mean()}
