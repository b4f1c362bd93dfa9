"""What the stage `curriculum` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="curriculum",
    module="stages.curriculum.stage",
    inputs=lambda config: ["filter", "multiview"],
    settings=("curriculum", "backbone.resolution"),
)
