"""What the stage `cache_latents` reads."""

from stages.declaration import Stage, base_unless_given

STAGE = Stage(
    name="cache_latents",
    module="stages.cache_latents.stage",
    inputs=lambda config: ["filter", "multiview", "curriculum", *base_unless_given(config)],
    settings=("cache_latents", "backbone.weights"),
    cpus=lambda config: config.cache_latents.actors,
    absent_when="cache_latents.enabled=false",
)
