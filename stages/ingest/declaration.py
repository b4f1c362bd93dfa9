"""What the stage `ingest` reads."""

from stages.declaration import Stage

STAGE = Stage(
    name="ingest",
    module="stages.ingest.stage",
    inputs=lambda config: ["microworld"] if config.ingest.metadata is None else [],
    settings=("ingest",),
    absent_when="filter.pictures_folder is set",
)
