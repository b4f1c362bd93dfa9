"""What the stage `contextualizer` reads."""

from stages.declaration import DEEPSPEED_FILES, Stage, base_unless_given

STAGE = Stage(
    name="contextualizer",
    module="stages.contextualizer.stage",
    inputs=lambda config: ["prompts", *base_unless_given(config)],
    settings=("contextualizer", "backbone.weights"),
    data=(DEEPSPEED_FILES,),
    cpus=lambda config: config.contextualizer.trainer.workers,
    absent_when="customize.subjects=[] or customize.mlm=false",
)
