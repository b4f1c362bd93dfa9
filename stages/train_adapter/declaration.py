"""What the stage `train_adapter` reads."""

from stages.declaration import DEEPSPEED_FILES, IMAGE_ENCODERS, Stage, base_unless_given

STAGE = Stage(
    name="train_adapter",
    module="stages.train_adapter.stage",
    inputs=lambda config: [
        "filter",
        "multiview",
        "curriculum",
        *base_unless_given(config),
        *(["cache_latents"] if config.cache_latents.enabled else []),
    ],
    settings=("train_adapter", "backbone.weights", "backbone.resolution", *IMAGE_ENCODERS),
    previews=("inference",),
    data=(DEEPSPEED_FILES,),
    cpus=lambda config: config.train_adapter.trainer.workers,
)
