"""What the stage `register` reads."""

from stages.declaration import IMAGE_ENCODERS, Stage, base_unless_given, customize_if_wanted, evaluate_if_wanted

STAGE = Stage(
    name="register",
    module="stages.register.stage",
    inputs=lambda config: [
        "train_adapter",
        *customize_if_wanted(config),
        *evaluate_if_wanted(config),
        *base_unless_given(config),
    ],
    settings=("register", "inference", "backbone.weights", "backbone.dtype", "evaluate.clip", *IMAGE_ENCODERS),
)
