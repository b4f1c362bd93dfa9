"""What the stage `customize` reads."""

from stages.declaration import DEEPSPEED_FILES, Stage, base_unless_given

STAGE = Stage(
    name="customize",
    module="stages.customize.stage",
    inputs=lambda config: [
        *(["prompts", "contextualizer"] if config.customize.mlm else []),
        *base_unless_given(config),
        *(["microworld"] if config.customize.subjects is None else []),
    ],
    settings=(
        "customize",
        "backbone.weights",
        "backbone.resolution",
        "evaluate.prompts",
        "evaluate.similarity",
        "evaluate.clip",
        "evaluate.dino",
        "evaluate.batch_size",
    ),
    data=(DEEPSPEED_FILES,),
    cpus=lambda config: config.customize.trainer.workers * config.customize.concepts,
    absent_when="customize.subjects=[]",
)
