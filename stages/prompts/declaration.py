"""What the stage `prompts` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="prompts",
    module="stages.prompts.stage",
    inputs=lambda config: ["filter"] if config.prompts.captions else [],
    settings=("prompts",),
    data=("prompts/**/*",),
    absent_when="customize.subjects=[] or customize.mlm=false",
)
