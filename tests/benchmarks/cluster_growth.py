"""How the data stages' time falls with the number of nodes: ingest, filter and planning on 1, 2 and 4 nodes of one CPU.

    python -m tests.benchmarks.cluster_growth               # 6,000 pictures of the micro world

Hardware and time: Linux, root (the nodes are namespaces of this machine); about 15 minutes on two cores. The nodes
share no disk; the object store is moto's S3 server on this machine. A node's CPU is a share of this machine's: with
more nodes than cores the time falls no further, and what is left shows the cost of the division. So is the CPU of the
driver, of Ray's own processes and of the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tests.benchmarks.support.command_line import benchmark_parser
from tests.support.cluster import BUCKET, NodeOptions, ray_cluster
from tests.support.cluster_runs import FOLDER, Bucket
from tests.support.hosts import missing

STAGES = ("ingest", "filter", "curriculum")


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=6000, help="of the micro world")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args(words)
    if lacks := missing():
        parser.error(f"this machine cannot make nodes: {lacks}")
    measured = {nodes: measure(nodes, arguments.pictures) for nodes in arguments.nodes}
    print(f"{arguments.pictures} pictures, {os.cpu_count()} cores\n")
    print(table(measured))


def measure(nodes: int, pictures: int) -> dict[str, float]:
    """The seconds of each stage on this number of nodes."""
    settings = {
        "run.folder": f"s3://{BUCKET}/{FOLDER}",
        "microworld.pictures": pictures,
        "microworld.multiview_instances": 8,
        "microworld.views": 4,
        "ingest.samples_per_shard": max(1, pictures // 24),
        "ingest.processes": nodes,
        "curriculum.steps": 2000,
    }
    options = [f"--set={key}={value}" for key, value in settings.items()]
    with ray_cluster(s3=True) as cluster:
        head = cluster.start_head(NodeOptions(name="head", cpus=0))
        cluster.add_nodes(*(NodeOptions(name=f"node{number}", cpus=1) for number in range(nodes)))
        head.run("python", "pipeline.py", "run", "--stage=curriculum", "--ray-address=auto", *options, seconds=3000)
        manifests = Bucket(cluster).manifests()
        return {stage: float(manifests[stage]["seconds"]) for stage in STAGES}


def table(measured: Mapping[int, Mapping[str, float]]) -> str:
    """One line for each number of nodes: seconds of each stage, and how many times faster than on the first number."""
    first = next(iter(measured.values()))
    lines = ["nodes  " + "".join(f"{stage:>20}" for stage in STAGES)]
    for nodes, seconds in measured.items():
        cells = (f"{seconds[stage]:.1f} s ({first[stage] / seconds[stage]:.2f})" for stage in STAGES)
        lines.append(f"{nodes:<7}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
