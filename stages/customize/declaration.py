"""What the stage `customize` reads."""

from stages.declaration import Stage, base_unless_given

STAGE = Stage(
    name="customize",
    module="stages.customize.stage",
    inputs=lambda config: [
        "contextualizer",
        *base_unless_given(config),
        *(["microworld"] if config.customize.subject is None else []),
    ],
    settings=("customize", "backbone.weights", "backbone.resolution"),
    previews=("inference",),
    cpus=lambda config: 2,
)
