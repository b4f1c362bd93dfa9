"""Two captioned pictures in the layouts and with the column names of public sets and of tools."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.picture_files import encode, scene

Write = Callable[[Path], object]
PICTURES = (encode(scene(1)), encode(scene(2)))
CAPTIONS = ("a red cup", 'a blue bowl, "old"')
PAIRS = tuple(zip(PICTURES, CAPTIONS, strict=True))
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = pa.array([{"bytes": one, "path": f"{number}.jpg"} for number, one in enumerate(PICTURES)], STRUCT)


def parquet(name: str = "data/train-00000-of-00001.parquet", **columns: Any) -> Write:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / name)

    return write


def archive(members: Callable[[int, bytes, str], Mapping[str, bytes]], name: str = "00000.tar") -> Write:
    """A webdataset with the members of each pair."""

    def write(folder: Path) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number, (picture, caption) in enumerate(PAIRS):
                for member, data in members(number, picture, caption).items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (folder / name).write_bytes(buffer.getvalue() if name.endswith(".tar") else gzip.compress(buffer.getvalue()))

    return write


def as_json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def files(*names: str) -> Write:
    """The two picture files."""

    def write(folder: Path) -> None:
        for name, picture in zip(names, PICTURES, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture)

    return write


def text(name: str, content: str) -> Write:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return write


def lines(name: str, *rows: Mapping[str, Any]) -> Write:
    return text(name, "".join(json.dumps(row) + "\n" for row in rows))


def table(name: str, head: str, *rows: tuple[str, ...], delimiter: str = ",") -> Write:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([head.split(","), *rows])
    return text(name, buffer.getvalue())


def all_of(*writers: Write) -> Write:
    return lambda folder: [write(folder) for write in writers]


COCO = {
    "images": [{"id": 7, "file_name": "000.jpg"}, {"id": 9, "file_name": "001.jpg"}],
    "annotations": [
        {"image_id": 9, "caption": CAPTIONS[1]},
        {"image_id": 7, "caption": CAPTIONS[0]},
        {"image_id": 7, "caption": "another"},
    ],
}
ROWS = tuple({"file_name": f"{number}.jpg", "text": caption} for number, caption in enumerate(CAPTIONS))

BARS = f"image_name| comment_number| comment\n0.jpg| 0| {CAPTIONS[0]}\n1.jpg| 0| {CAPTIONS[1]}\n".replace('"', "'")

#: What other people publish and tools write; each holds both pairs.
LAYOUTS: dict[str, Write] = {
    # Parquet of the hub
    "image and text": parquet(image=IMAGES, text=CAPTIONS),
    "image and caption": parquet(image=IMAGES, caption=CAPTIONS),
    "image and prompt": parquet(image=IMAGES, prompt=CAPTIONS, seed=[1, 2]),
    "image and description": parquet(image=IMAGES, description=CAPTIONS),
    "capital letters": parquet(Image=IMAGES, Caption=CAPTIONS),
    "bytes, not a struct": parquet(jpg=PICTURES, txt=CAPTIONS),
    "lists of captions": parquet(image=IMAGES, caption=[[CAPTIONS[0], "another"], [CAPTIONS[1]]]),
    "lists with blanks": parquet(image=IMAGES, captions=[["", CAPTIONS[0]], [" ", CAPTIONS[1]]]),
    "structs of captions": parquet(image=IMAGES, sentences=[{"raw": one, "sentid": 1} for one in CAPTIONS]),
    "lists of structs": parquet(image=IMAGES, sentences=[[{"raw": one, "tokens": ["a"]}] for one in CAPTIONS]),
    "numbered captions": parquet(image=IMAGES, caption_0=CAPTIONS, caption_1=["x", "y"]),
    "short and long captions": parquet(image=IMAGES, long_caption=["long", "longer"], short_caption=CAPTIONS),
    "splits": all_of(
        parquet("data/train-0.parquet", image=IMAGES[:1], text=CAPTIONS[:1]),
        parquet("data/validation-0.parquet", image=IMAGES[1:], text=CAPTIONS[1:]),
    ),
    "paths in parquet": all_of(
        parquet("metadata.parquet", file_name=["0.jpg", "1.jpg"], text=CAPTIONS), files("0.jpg", "1.jpg")
    ),
    "paths beside null bytes": all_of(
        parquet(
            image=pa.array([{"bytes": None, "path": "pics/0.jpg"}, {"bytes": None, "path": "pics/1.jpg"}], STRUCT),
            text=CAPTIONS,
        ),
        files("pics/0.jpg", "pics/1.jpg"),
    ),
    # webdataset
    "img2dataset": archive(
        lambda n, p, c: {f"{n:09d}.jpg": p, f"{n:09d}.txt": c.encode(), f"{n:09d}.json": as_json(caption=c, key=f"{n}")}
    ),
    "caption in json": archive(lambda n, p, c: {f"{n}.jpeg": p, f"{n}.json": as_json(caption=c)}),
    "prompt in json": archive(lambda n, p, c: {f"{n}.jpg": p, f"{n}.json": as_json(prompt=c)}),
    "list in json": archive(lambda n, p, c: {f"{n}.jpg": p, f"{n}.json": as_json(captions=[c, "x"])}),
    "member caption": archive(lambda n, p, c: {f"{n}.webp": p, f"{n}.caption": c.encode()}),
    "members with a prefix": archive(lambda n, p, c: {f"{n}.image.jpg": p, f"{n}.caption.txt": c.encode()}),
    "members with folders": archive(lambda n, p, c: {f"./cc12m/{n}.jpg": p, f"./cc12m/{n}.txt": c.encode()}),
    "packed tar": archive(lambda n, p, c: {f"{n}.jpg": p, f"{n}.txt": c.encode()}, "00000.tar.gz"),
    "tgz": archive(lambda n, p, c: {f"{n}.jpg": p, f"{n}.txt": c.encode()}, "00000.tgz"),
    # files and lists
    "imagefolder, jsonl": all_of(files("0.jpg", "1.jpg"), lines("metadata.jsonl", *ROWS)),
    "imagefolder, csv": all_of(
        files("0.jpg", "1.jpg"), table("metadata.csv", "file_name,text", ("0.jpg", CAPTIONS[0]), ("1.jpg", CAPTIONS[1]))
    ),
    "imagefolder with a split": all_of(files("train/0.jpg", "train/1.jpg"), lines("train/metadata.jsonl", *ROWS)),
    "imagefolder, two splits": all_of(
        files("train/0.jpg", "test/1.jpg"),
        lines("train/metadata.jsonl", ROWS[0]),
        lines("test/metadata.jsonl", ROWS[1]),
    ),
    "paths with folders": all_of(
        files("images/a/0.png", "images/b/1.png"),
        lines(
            "data.jsonl",
            {"image": "images/a/0.png", "caption": CAPTIONS[0]},
            {"image": "images/b/1.png", "caption": CAPTIONS[1]},
        ),
    ),
    "journeydb": all_of(
        files("imgs/000/x.jpg", "imgs/001/y.jpg"),
        lines(
            "train_anno.jsonl",
            {"img_path": "./000/x.jpg", "prompt": CAPTIONS[0], "Task1": {}},
            {"img_path": "./001/y.jpg", "prompt": CAPTIONS[1]},
        ),
    ),
    "coco": all_of(files("images/000.jpg", "images/001.jpg"), text("captions_val.json", json.dumps(COCO))),
    "list in one json": all_of(
        files("0.jpg", "1.jpg"),
        text("list.json", json.dumps([{"image": r["file_name"], "caption": r["text"]} for r in ROWS])),
    ),
    "by path": all_of(
        files("a/0.jpg", "a/1.jpg"),
        text("meta.json", json.dumps({"a/0": {"caption": CAPTIONS[0]}, "a/1": {"caption": CAPTIONS[1]}})),
    ),
    "captions by path": all_of(
        files("0.jpg", "1.jpg"), text("captions.json", json.dumps({"0.jpg": CAPTIONS[0], "1.jpg": CAPTIONS[1]}))
    ),
    "tab-separated": all_of(
        files("0.jpg", "1.jpg"),
        table("list.tsv", "filename,caption", ("0.jpg", CAPTIONS[0]), ("1.jpg", CAPTIONS[1]), delimiter="\t"),
    ),
    "bars": all_of(files("0.jpg", "1.jpg"), text("results.csv", BARS)),
    "texts beside pictures": all_of(
        files("0.jpg", "1.jpg"), text("0.txt", CAPTIONS[0]), text("1.txt", CAPTIONS[1] + "\n")
    ),
    "captions beside pictures": all_of(
        files("10_cup/0.jpg", "10_cup/1.jpg"),
        text("10_cup/0.caption", CAPTIONS[0]),
        text("10_cup/1.caption", CAPTIONS[1]),
    ),
    "img2dataset's files": all_of(
        files("00000/000.jpg", "00000/001.jpg"),
        *(
            text(f"00000/00{number}.{suffix}", content)
            for number, caption in enumerate(CAPTIONS)
            for suffix, content in (("txt", caption), ("json", json.dumps({"caption": "of json", "url": "http://h"})))
        ),
        parquet("00000.parquet", url=["http://h"], caption=["x"], status=["success"]),
        text("00000_stats.json", '{"count": 2}'),
    ),
}
