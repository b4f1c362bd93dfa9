"""Errors that a user can fix."""


class ModelError(ValueError):
    """An error that a user can fix. The message is one sentence: what is wrong and where.

    A stage adds which command or setting fixes it.
    """


class BackboneError(ModelError):
    """The backbone cannot be loaded, or cannot be used for what the configuration asks."""


class GenerationError(ModelError):
    """A request to the pipeline that cannot be carried out."""
