"""What the stage `register` reads."""

from stages.declaration import IMAGE_ENCODERS, Stage, base_unless_given

STAGE = Stage(
    name="register",
    module="stages.register.stage",
    inputs=lambda config: ["train_adapter", "customize", "evaluate", *base_unless_given(config)],
    settings=("register", "inference", "backbone.weights", "backbone.dtype", *IMAGE_ENCODERS),
)
