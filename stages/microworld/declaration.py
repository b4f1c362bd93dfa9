"""What the stage `microworld` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="microworld",
    module="stages.microworld.stage",
    settings=("microworld",),
    absent_when="each stage that would read it has data or weights of its own",
)
