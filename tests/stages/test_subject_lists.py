"""Folders of subjects in the layouts of benchmarks and of users: class words and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from prompts.dreambench import LIVE_PROMPTS, OBJECT_PROMPTS, read_benchmark
from stages.class_words import word_of_folder
from stages.contract import StageError
from stages.evaluate.cases import load_subjects, make_cases
from stages.evaluate.config import EvaluateConfig
from stages.subject_lists import list_subjects
from tests.support.subject_folder import png, write_subjects

CLASSES = "Classes\n\nsubject_name,class\ncat2,cat\nbear_plushie,stuffed animal\nred_teapot,teapot\n\n"
LISTS = """Prompts

Object Prompts

prompt_list = [
'a {0} {1} in a lift'.format(unique_token, class_token),
'a {0} {1} on a car'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} asleep'.format(unique_token, class_token)
]
"""
LIVE_FIRST = f"Prompts\n\n{LISTS[LISTS.index('Live') :]}\n{LISTS[LISTS.index('Object') : LISTS.index('Live')]}"
OF_OBJECTS, OF_LIVE = ("a {word} in a lift", "a {word} on a car"), ("a {word} asleep",)
NAMES = ("bear_plushie", "cat2", "red_teapot")

#: Dialects of `prompts_and_classes.txt`, and whether they have prompts of their own.
FILES: dict[str, tuple[bytes, bool]] = {
    "as published, with other prompts": ((CLASSES + LISTS).encode(), True),
    "classes only": (CLASSES.encode(), False),
    "no heading": (CLASSES.replace("Classes\n\nsubject_name,class\n", "").encode(), False),
    "another head": (CLASSES.replace("subject_name,class", "name,class_name").encode(), False),
    "carriage returns": ((CLASSES + LISTS).replace("\n", "\r\n").encode(), True),
    "byte order mark": (("\ufeff" + CLASSES + LISTS).encode(), True),
    "utf-16": ((CLASSES + LISTS).encode("utf-16"), True),
    "spaces": (CLASSES.replace(",", " ,  ").encode(), False),
    "tabs": (CLASSES.replace(",", "\t").encode(), False),
    "quotes": (CLASSES.replace("cat2,cat", '"cat2","cat"').encode(), False),
    "comments": (("# mine\n" + CLASSES + "# owl,owl\n").encode(), False),
    "double quotes in the lists": ((CLASSES + LISTS.replace("'", '"')).encode(), True),
    "f-strings": (
        (CLASSES + LISTS.replace("'a {0} {1}", "f'a {unique_token} {class_token}").replace(".format", " #")).encode(),
        False,
    ),
    "f-strings without a call": (
        (
            CLASSES
            + LISTS.replace("'a {0} {1}", "f'a {token} {word}").replace(".format(unique_token, class_token)", "")
        ).encode(),
        True,
    ),
    "one field": ((CLASSES + LISTS.replace("{0} {1}", "{}")).encode(), True),
    "live prompts first": (
        (CLASSES + LIVE_FIRST).encode(),
        True,
    ),
    "a comma behind the last prompt": ((CLASSES + LISTS.replace("\n]", ",\n]")).encode(), True),
    "indented": ((CLASSES + LISTS.replace("\n'", "\n    '")).encode(), True),
}  # fmt: skip


@pytest.mark.parametrize(("data", "has_prompts"), FILES.values(), ids=FILES)
def test_dreambench_names_classes_and_prompts(data: bytes, has_prompts: bool, tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s", dict.fromkeys(NAMES, ""), listing=False)
    (folder / "prompts_and_classes.txt").write_bytes(data)
    subjects, notes = list_subjects(folder)
    assert notes == []
    assert [(one.name, one.word) for one in subjects] == [
        ("bear_plushie", "stuffed animal"),
        ("cat2", "cat"),
        ("red_teapot", "teapot"),
    ]
    objects, live = (OF_OBJECTS, OF_LIVE) if has_prompts else (OBJECT_PROMPTS, LIVE_PROMPTS)
    assert [one.prompts for one in subjects] == [objects, live, objects]


def test_the_published_file(tmp_path: Path) -> None:
    """Its lists are those of `prompts.dreambench`."""

    def as_python(prompts: tuple[str, ...]) -> str:
        lines = (f"'{one.replace('{word}', '{0} {1}')}'.format(unique_token, class_token)" for one in prompts)
        return "prompt_list = [\n" + ",\n".join(lines) + "\n]\n"

    text = f"{CLASSES}Prompts\n\nObject Prompts\n\n{as_python(OBJECT_PROMPTS)}"
    text += f"\nLive Subject Prompts\n\n{as_python(LIVE_PROMPTS)}"
    found = read_benchmark(text)
    assert (found.objects, found.live) == (OBJECT_PROMPTS, LIVE_PROMPTS)
    shared = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "dreambench" / "prompts_and_classes.txt"
    if not shared.is_file():
        pytest.skip("../shared/data/dreambench is missing")
    benchmark = read_benchmark(shared.read_text())
    assert (len(benchmark.classes), benchmark.objects, benchmark.live) == (30, OBJECT_PROMPTS, LIVE_PROMPTS)


@pytest.mark.parametrize("place", ["", "dataset", "above"])
def test_where_dreambench_may_lie(place: str, tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s" / ("" if place == "above" else place), {"cat2": ""}, listing=False)
    file = tmp_path / "prompts_and_classes.txt" if place == "above" else folder / "prompts_and_classes.txt"
    file.write_text(CLASSES)
    ((cat,), notes) = list_subjects(tmp_path / "s")
    assert (cat.name, cat.word, notes) == ("cat2", "cat", [])


def test_a_folder_without_a_class_is_named(tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s", {"cat2": "", "old_mug_7": ""}, listing=False)
    (folder / "prompts_and_classes.txt").write_text(CLASSES)
    subjects, notes = list_subjects(folder)
    assert [one.word for one in subjects] == ["cat", "old mug"]
    assert notes == ["prompts_and_classes.txt has no class of old_mug_7: its class word is 'old mug', by its name"]


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("cat", "cat"), ("cat2", "cat"), ("dog_02", "dog"), ("dog-3", "dog"), ("dog 4", "dog"), ("dog (2)", "dog"),
        ("dog(2)", "dog"), ("dog.1", "dog"), ("dog #2", "dog"), ("02_dog", "dog"), ("1-dog", "dog"), ("3. dog", "dog"),
        ("rc_car", "rc car"), ("rc_car_2", "rc car"), ("bear  plushie", "bear plushie"), ("7up can", "7up can"),
        ("123", "123"), ("Teekännchen", "Teekännchen"), ("杯子2", "杯子"), ("_", "_"), ("t-shirt", "t-shirt"),
        ("dog_", "dog"), ("3d printer", "3d printer"),
    ],
)  # fmt: skip
def test_a_folders_name_without_its_number_is_a_class_word(folder: str, word: str) -> None:
    assert word_of_folder(folder) == word


def write_concepts(folder: Path, data: str, changes: Mapping[str, object] | None = None) -> None:
    """CustomConcept101: `dataset.json`, `prompts/` and the pictures in `data`."""
    write_subjects(folder / data, {"pet_cat1": "", "things_cup3": ""}, listing=False)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "cat.txt").write_text("Photo of a {}.\n{} in times square.\n\nno name at all\n")
    entry: dict[str, object] = {
        "instance_prompt": "photo of a <new1> cat",
        "class_prompt": "cat",
        "class_data_dir": "./regularization",
    }
    entry |= {"instance_data_dir": "./benchmark_dataset/pet_cat1", "prompt_filename": "prompts/cat.txt"}
    cup = entry | {"class_prompt": "cup", "instance_data_dir": "./benchmark_dataset/things_cup3"}
    cup |= {"prompt_filename": "prompts/missing.txt"}
    (folder / "dataset.json").write_text(json.dumps([{**entry, **(changes or {})}, cup]))


@pytest.mark.parametrize(
    ("data", "given"), [("benchmark_dataset", ""), ("benchmark_dataset", "benchmark_dataset"), ("", "")]
)
def test_custom_concepts(data: str, given: str, tmp_path: Path) -> None:
    write_concepts(tmp_path, data)
    (cat, cup), notes = list_subjects(tmp_path / given)
    assert (cat.name, cat.word, len(cat.pictures)) == ("pet_cat1", "cat", 3)
    assert cat.prompts == ("Photo of a {word}.", "{word} in times square.")
    assert (cup.name, cup.word, cup.prompts, notes) == ("things_cup3", "cup", (), [])


@pytest.mark.parametrize(
    ("changes", "word", "note"),
    [
        ({"class_prompt": "tabby cat"}, "tabby cat", None),
        ({"class_prompt": ""}, "pet cat", None),
        ({"instance_data_dir": "./benchmark_dataset/pet_cat9"}, None, "left out the subject pet_cat9 of dataset.json"),
    ],
)
def test_entries_of_custom_concepts(
    changes: Mapping[str, object], word: str | None, note: str | None, tmp_path: Path
) -> None:
    write_concepts(tmp_path, "benchmark_dataset", changes)
    subjects, notes = list_subjects(tmp_path)
    assert subjects[0].word == (word or "cup")
    assert [text.partition(":")[0] for text in notes] == ([note] if note else [])


def test_dreambench_plus_plus(tmp_path: Path) -> None:
    texts = {
        "live_subject/animal/00": "Kitten\nA kitten on a sofa\nThe Kitten, in oil\nA dog\n",
        "object/01": "red mug\r\na red mug in space\r\n",
        "style/02": "style\nnothing of it\n",
        "object/03": "lamp\na lamp\n",
    }
    for name, text in texts.items():
        caption = (tmp_path / "captions" / name).with_suffix(".txt")
        caption.parent.mkdir(parents=True, exist_ok=True)
        caption.write_text(text)
        picture = (tmp_path / "images" / name).with_suffix(".png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("03"):
            picture.write_bytes(png(1))
    subjects, notes = list_subjects(tmp_path)
    kitten, mug = subjects
    assert (kitten.name, kitten.word) == ("live_subject_animal_00_kitten", "kitten")
    assert kitten.prompts == ("A {word} on a sofa", "The {word}, in oil")
    assert (mug.name, mug.word, mug.prompts) == ("object_01_red_mug", "red mug", ("a {word} in space",))
    assert len(set(mug.pictures)) == 1 < len(mug.pictures)
    assert len(notes) == 2


def no_json(folder: Path) -> None:
    (folder / "dataset.json").write_text("{")


def not_text(folder: Path) -> None:
    (folder / "prompts_and_classes.txt").write_bytes("cat,Kätzchen".encode("cp1252"))


@pytest.mark.parametrize(
    ("change", "words"), [(no_json, "dataset.json is not JSON"), (not_text, "save it as UTF-8")], ids=["json", "text"]
)
def test_a_list_that_cannot_be_read_is_one_sentence(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    write_subjects(tmp_path / "s", {"cat": ""}, listing=False)
    change(tmp_path / "s")
    with pytest.raises(StageError, match=words) as caught:
        list_subjects(tmp_path / "s")
    assert "evaluate.subjects_folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_tools_dataset_json_is_no_list(tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "s", {"cat": ""}, listing=False)
    for content in ("{}", "[]", '[{"image": "a.jpg"}]', "[1]"):
        (folder / "dataset.json").write_text(content)
        assert [one.word for one in list_subjects(folder)[0]] == ["cat"]


def test_the_benchmarks_prompts_are_painted_unless_others_are_set(tmp_path: Path) -> None:
    write_concepts(tmp_path, "benchmark_dataset")
    cat, cup = load_subjects(tmp_path, None)
    config = EvaluateConfig(similarity="clip", prompts_per_subject=2)
    assert [case.prompt for case in make_cases([cat], config, 0)] == ["Photo of a cat.", "cat in times square."]
    assert make_cases([cup], config, 0)[0].prompt == "a cup in the jungle"
    own = EvaluateConfig(similarity="clip", prompts=["my {word}"], prompts_per_subject=1)
    assert make_cases([cat], own, 0)[0].prompt == "my cat"


def test_a_list_above_of_other_subjects_does_not_count(tmp_path: Path) -> None:
    write_concepts(tmp_path, "benchmark_dataset")
    (tmp_path / "prompts_and_classes.txt").write_text(CLASSES)
    folder = write_subjects(tmp_path / "mine", {"old_mug": ""}, listing=False)
    subjects, _ = list_subjects(folder)
    assert [(one.name, one.word, one.prompts) for one in subjects] == [("old_mug", "old mug", ())]
