"""What the stage `base` reads."""

from stages.declaration import DEEPSPEED_FILES, Stage

STAGE = Stage(
    name="base",
    module="stages.base.stage",
    settings=("base",),
    data=("model/micro_sd/weights/**/*", DEEPSPEED_FILES),
    absent_when="backbone.weights is set",
)
