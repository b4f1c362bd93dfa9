"""What the stage `filter` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="filter",
    module="stages.filter.stage",
    inputs=lambda config: ["ingest"] if config.filter.pictures_folder is None else [],
    settings=("filter",),
    data=("model/micro_sd/weights/clip/*", "model/micro_sd/weights/tokenizer/*"),
)
