"""What the stage `register` writes into the model registry and the command `serve` reads from it."""

#: The alias of the version to serve.
CHAMPION = "champion"

#: Between the names of a model and of a learned concept: the name of the concept's registered model.
CONCEPT_INFIX = "-concept-"

#: The model's settings (`inference.json` among its artifacts) carry this number. It changes with the methods of the
#: registered Python object that the server calls.
INTERFACE = 5

#: A key of the model's configuration in MLflow: False skips the checksums of files that the caller has verified.
VERIFY_CHECKSUMS = "verify_checksums"

#: Another one: how painted pictures name the model in their metadata. A model knows its version only when it is loaded.
TITLE = "title"

#: Another one: the paths of shared parts that the caller has on this machine already, by their names.
PARTS_HERE = "parts_here"

#: The folder with the parts that versions share, beside MLflow's folder with the models.
PARTS = "parts"
