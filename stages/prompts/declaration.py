"""What the stage `prompts` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="prompts",
    module="stages.prompts.stage",
    settings=("prompts",),
    data=("prompts/**/*",),
)
