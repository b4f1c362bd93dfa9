"""The command line. Nothing heavy is imported here: `--help` answers at once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DESCRIPTION = "From web pictures to a served model that paints your own subject from a sentence."

#: The image that `docker build` makes as infra/Dockerfile says.
IMAGE = "realword:0.1.0"

EXAMPLES = """examples:
  python pipeline.py run --stage all
  python pipeline.py plan --set filter.min_aesthetic=6.0
  python pipeline.py generate --subject toy.png --word toy --prompt "a toy on the grass"
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="pipeline.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _add(commands, "run", "run stages that are not up to date, and what they need")
    _add_selection(run)
    run.add_argument("--dry-run", action="store_true", help="say what would run and why, and run nothing")
    _add_ray_address(run)
    _add_selection(_add(commands, "plan", "say what would run, and why"))
    _add(commands, "doctor", "say what would stop a run: weights, licences, disk, memory, GPUs, versions, data, keys")
    _add(commands, "status", "each stage's state, rows, time and output of the last run")
    _add_generate(_add(commands, "generate", "paint a subject from a sentence"))
    _add_ray_address(_add(commands, "serve", "answer requests to paint over HTTP"))
    storage = _add(commands, "storage", "list what the run folder holds, and free its space")
    storage.add_argument(
        "--remove",
        nargs="+",
        default=[],
        metavar="WHAT",
        help="remove STAGE/FINGERPRINT, or all that is 'old' or 'unfinished'; never what the last run uses",
    )
    _add(commands, "report", "say where the HTML report of the last run is")
    _add_manifests(_add(commands, "manifests", "write the manifests with which KubeRay runs pipeline and endpoint"))
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line; argparse ends the process with code 2 when they make no sense."""
    return make_parser().parse_args(arguments)


def _add(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument(
        "--profile",
        default="micro",
        metavar="NAME",
        help="micro (default), sd15, sdxl, or for one GPU sd15_one_gpu, sdxl_one_gpu",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting (docs/configuration.md), such as filter.min_aesthetic=6.0; may be repeated",
    )
    return parser


def _add_ray_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="a Ray cluster: its dashboard, http://HOST:8265, to which `run` is submitted as a job; or on a machine of "
        "the cluster auto or HOST:6379; or local, a Ray that ends with the command. Default: the cluster of the Ray "
        "job that runs the command, else local",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", default="all", metavar="NAME", help="run this stage and what it needs; default: all")
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="NAME",
        help="run this stage in any case; may be repeated",
    )
    parser.add_argument("--from", dest="start", metavar="NAME", help="run this stage and all that depend on it")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--subject", type=Path, nargs="+", required=True, metavar="FILE", help="a picture of each subject"
    )
    parser.add_argument(
        "--word", nargs="+", required=True, metavar="WORD", help="the word of the prompt that stands for each subject"
    )
    parser.add_argument("--prompt", required=True, help="the sentence to paint")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the pictures; default: generated/ in the run folder"
    )
    parser.add_argument(
        "--seed", type=_whole_number(0, 2**63 - 1), default=0, metavar="N", help="of the noise; default: 0"
    )
    parser.add_argument(
        "--steps", type=_whole_number(1, 1000), metavar="N", help="steps of the sampler; default: inference.steps"
    )


def _add_manifests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the manifests")
    parser.add_argument(
        "--image",
        type=_matching(r"[A-Za-z0-9][\w.:/@-]*", "the name of an image, such as registry.example/realword:1"),
        default=IMAGE,
        metavar="NAME",
        help=f"the image of infra/Dockerfile, as your cluster finds it; default: {IMAGE}",
    )
    for kind in ("cpus", "gpus"):
        parser.add_argument(
            f"--{kind}-per-node",
            type=_whole_number(1, 1024),
            default=8,
            metavar="N",
            help=f"what a node of your cluster has for a worker's pod; default: 8 {kind.upper()[:-1]}s",
        )
    parser.add_argument(
        "--gateway",
        type=_matching(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "the name of a GatewayClass, such as istio"),
        metavar="CLASS",
        help="upgrade the endpoint step by step through this GatewayClass; default: at once",
    )


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise argparse.ArgumentTypeError(f"takes {what}, not {text!r}")
        return text

    return convert


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.strip().isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"takes a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return convert
