"""Whether MLflow's records and registry can be used."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.doctor.findings import Finding, Setup, good, problem, warning
from pipelines.errors import PipelineError
from pipelines.store.records import EXPERIMENT
from pipelines.tracking_store import no_tracking_store, tracking_store
from stages.tracking_server import TrackingServerError, check_tracking_server


def check(setup: Setup) -> Iterator[Finding]:
    """The server or database of `run.tracking_uri`, or the run folder's."""
    try:
        place = tracking_store(setup.config, setup.store)
        if place is None:
            found = problem if "register" in setup.graph.stages else warning
            yield found(f"there are no records and no registry: {no_tracking_store(setup.store)}")
        elif place.in_run_folder:
            yield good("records and registry are in the run folder")
        else:
            check_tracking_server(place.uri, EXPERIMENT)
            yield good(f"{place} answers")
    except (PipelineError, TrackingServerError) as error:
        yield problem(str(error).rstrip("."))
