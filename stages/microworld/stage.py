"""Stage `microworld`: a small web of captioned pictures, a turntable data set, and held-out subjects.

The output has the form of real data. The web has LAION's metadata columns and URLs on a loopback web server, with the
dead links, broken files, duplicates and poor rows of a real crawl. The turntable sequences have MVImgNet's folders with
COLMAP's camera files. The run's seed determines everything. The web and the turntables show objects of the split
`adapter`, the subjects are objects of the split `test`.
"""

from __future__ import annotations

import json

from stages.contract import StageContext, StageResult
from stages.microworld.subjects import write_subjects
from stages.microworld.turntables import write_turntables
from stages.microworld.web import write_web
from stages.storage import local_folder


def run(context: StageContext) -> StageResult:
    """Write `metadata/`, `web/`, `site.json`, `mvimgnet/` and `subjects/`."""
    settings, seed = context.config.microworld, context.config.run.seed
    with local_folder(context.output) as output:
        rows = write_web(output, settings, seed, context.report)
        site = {"port": settings.port, "root": "web"}
        (output / "site.json").write_text(json.dumps(site) + "\n")
        frames = write_turntables(output / "mvimgnet", settings, seed, context.report)
        subjects = write_subjects(output / "subjects", settings.picture_size, seed)
    return StageResult(
        rows={"metadata": sum(rows.values()), "mvimgnet": frames, "subjects": subjects},
        metrics={f"rows_{kind}": float(count) for kind, count in rows.items()},
    )
