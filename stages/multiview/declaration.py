"""What the stage `multiview` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="multiview",
    module="stages.multiview.stage",
    inputs=lambda config: [] if config.multiview.folders else ["microworld"],
    settings=("multiview",),
)
