"""What the stage `microworld` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="microworld",
    module="stages.microworld.stage",
    settings=("microworld",),
)
