"""What the stage `evaluate` reads."""

from stages.declaration import IMAGE_ENCODERS, Stage, base_unless_given, customize_if_wanted

STAGE = Stage(
    name="evaluate",
    module="stages.evaluate.stage",
    inputs=lambda config: [
        "train_adapter",
        *customize_if_wanted(config),
        *base_unless_given(config),
        *(["microworld"] if None in (config.evaluate.subjects_folder, config.customize.subjects) else []),
        # The report shows what these have done.
        *(["ingest"] if config.filter.pictures_folder is None else []),
        "filter",
        "curriculum",
        *(["prompts"] if config.customize.is_wanted else []),
        *(["contextualizer"] if config.customize.is_wanted and config.customize.mlm else []),
    ],
    settings=(
        "evaluate",
        "customize.subjects",
        "inference",
        "backbone.weights",
        "backbone.dtype",
        *IMAGE_ENCODERS,
    ),
    data=("stages/evaluate/**/*",),
    cpus=lambda config: config.evaluate.workers,
    absent_when="evaluate.subjects=0",
)
