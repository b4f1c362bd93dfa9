"""Hub ids and their revisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.pretrained import hub_name, split_revision

LOCATIONS = {
    "org/name": ("org/name", None, "org/name"),
    "org/name@v1.0": ("org/name", "v1.0", "org/name"),
    "org/name@refs/pr/3": ("org/name", "refs/pr/3", "org/name"),
    "org/na.me-2_b@0123abc": ("org/na.me-2_b", "0123abc", "org/na.me-2_b"),
    "org/name@": ("org/name@", None, None),
    "name": ("name", None, None),
    "name@v1": ("name@v1", None, None),
    "a/b/c@v1": ("a/b/c@v1", None, None),
    "s3://bucket/name@v1": ("s3://bucket/name@v1", None, None),
    "s3://bucket/models/sd": ("s3://bucket/models/sd", None, None),
    "../models": ("../models", None, None),
    "./models": ("./models", None, None),
    "./models@v1": ("./models@v1", None, None),
    "/data/models": ("/data/models", None, None),
    "/data/models@v1": ("/data/models@v1", None, None),
}


@pytest.mark.parametrize(("location", "expected"), LOCATIONS.items(), ids=LOCATIONS)
def test_hub_ids_and_revisions(location: str, expected: tuple[str, str | None, str | None]) -> None:
    name, revision, on_hub = expected
    assert split_revision(location) == (name, {} if revision is None else {"revision": revision})
    assert hub_name(location) == on_hub


def test_a_folder_is_a_folder_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd@v1").mkdir(parents=True)
    assert split_revision("models/sd@v1") == ("models/sd@v1", {})
    assert split_revision(tmp_path / "models" / "sd@v1") == (str(tmp_path / "models/sd@v1"), {})
    (tmp_path / "models" / "sd").mkdir()
    assert hub_name("models/sd") is None
