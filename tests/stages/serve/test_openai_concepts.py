"""Learned concepts in OpenAI's routes."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.local_painters import NAME, noise_picture

PICTURE = {"image": ("a.png", noise_picture())}
TOM = {"prompt": "a [v] cat in a hat", "model": f"{NAME}:tom", "seed": 1}


def generate(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/images/generations", json=fields)


def edit(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/images/edits", data=fields, files=PICTURE)


def picture(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["data"][0]["b64_json"]
    return found


def test_a_concept_is_a_model_or_a_field(client: TestClient) -> None:
    by_model = generate(client, **TOM)
    assert (by_model.json()["model"], by_model.json()["concepts"]) == (f"{NAME}:tom", ["tom"])
    plain = {**TOM, "model": NAME}
    for names in (["tom"], [f"{NAME}:tom"], [" tom "]):
        assert picture(generate(client, **plain, concepts=names)) == picture(by_model)
    assert picture(generate(client, **plain)) != picture(by_model)


def test_two_concepts_in_one_prompt(client: TestClient) -> None:
    both = {**TOM, "prompt": "a [v] cat in a sks cat", "concepts": ["tina"]}
    assert generate(client, **both).json()["concepts"] == ["tom", "tina"]
    assert picture(generate(client, **both)) != picture(generate(client, **{**both, "concepts": []}))


@pytest.mark.parametrize("names", ["tom", '["tom"]', f"{NAME}:tom, ", '"tom"'])
def test_a_placeholder_in_brackets_marks_no_subject(client: TestClient, names: str) -> None:
    fields = {"prompt": "a [V] cat in a [hat]", "concepts": names.removesuffix(", "), "seed": "1"}
    answer = edit(client, **fields)
    assert (answer.json()["words"], answer.json()["concepts"]) == (["hat"], ["tom"])
    assert picture(answer) != picture(edit(client, prompt="a cat in a [hat]", seed="1"))


def test_dci(client: TestClient) -> None:
    plain, weak, strong, noun = (
        picture(generate(client, **TOM, **fields))
        for fields in (
            {},
            {"dci_lambda": -2, "dci_share": 0.5},
            {"dci_lambda": 2, "dci_share": 0.5},
            {"dci_lambda": 2, "dci_share": 0.5, "dci_auxiliary_noun": "toy"},
        )
    )
    assert len({plain, weak, strong, noun}) == 4


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": f"{NAME}:dog"}, 404, "model", "There is no model"),
        ({"model": "dog"}, 404, "model", f"this server has '{NAME}', '{NAME}:tom'"),
        ({"concepts": ["dog"]}, 400, "concepts", "no concept 'dog'; there are: tom, tina"),
        ({"concepts": [1]}, 400, "concepts", "valid string"),
        ({"concepts": {"a": 1}}, 400, "concepts", "valid list"),
        ({"prompt": "a cat"}, 400, "prompt", r"write '[v] cat'"),
        ({"dci_lambda": 1000}, 400, "dci_lambda", "less than or equal to 100"),
        ({"dci_lambda": 1, "model": NAME}, 400, "dci_lambda", "which needs a model or the field 'concepts'"),
        ({"dci_auxiliary_noun": "cat", "dci_share": 0.5}, 400, "dci_auxiliary_noun", "choose another"),
        ({"dci_share": 0.01}, 400, "dci_share", "leaves the auxiliary branch none of 3 steps"),
        ({"dci_share": 0.5, "steps": 1}, 400, "dci_share", "leaves the auxiliary branch none of 1 steps"),
    ],
)
def test_refusals(client: TestClient, fields: dict[str, Any], status: int, param: str, message: str) -> None:
    answer = generate(client, **{**TOM, **fields})
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


def test_the_method_of_the_model(client: TestClient) -> None:
    assert edit(client, prompt="a [cat]", method="realcustom++").status_code == 200
    refused = edit(client, prompt="a [cat]", method="realcustom").json()["error"]
    assert (refused["param"], refused["message"]) == ("method", "this model is of the method realcustom++.")
