"""Which folders of a user's data are instances: objects with two or more pictures each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from upath import UPath

from model.files import is_hidden, is_utf8, printable_name, read_text, visible_entries
from model.pictures.decoding import PICTURE_SUFFIXES, picture_files
from prompts import dreambench
from stages.class_words import word_of_folder
from stages.multiview.co3d import ANNOTATIONS
from stages.storage import StorePath, name_below, names_below

CATEGORY_FILE = "mvimgnet_category.txt"
#: An instance in MVImgNet's or CO3D's layout has one of these.
_MARKS = ("images", "sparse")
#: class_label/instance_id, and both in the folder of an archive that was unpacked.
_DEPTHS = (2, 3)
#: Names of a folder in a subject's that holds its pictures, and of folders that hold no pictures of the subject.
SUBJECT_FOLDERS = frozenset({"images", "image", "imgs", "img", "rgb", "photos", "pictures"})
_NO_SUBJECTS = frozenset({"masks", "mask", "depths", "depth", "depth_masks", "sparse", "sparse_pc"})

Layout = Literal["colmap", "co3d", "pictures"]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object.

    Attributes:
        folder: The folder's path.
        category: The name of the class.
        name: Unique within the category.
        layout: Where the cameras are: in COLMAP's model, in CO3D's annotations of the category, or nowhere. Without
            cameras the pictures lie in the folder itself, else in `images/`.
    """

    folder: StorePath
    category: str
    name: str
    layout: Layout


def category_names(root: StorePath) -> dict[str, str]:
    """Class names by the names of folders: MVImgNet's list, or DreamBench's; empty without one.

    Raises:
        TextError: The file is not text.
    """
    names: dict[str, str] = {}
    if (file := root / dreambench.LISTING).is_file():
        names |= dreambench.read_benchmark(read_text(file)).classes
    if (file := root / CATEGORY_FILE).is_file():
        pairs = (line.split(",", 1) for line in read_text(file).splitlines() if "," in line)
        names |= {label.strip(): name.strip().lower() for label, name in pairs}
    return names


def find_instances(roots: Iterable[StorePath]) -> tuple[list[Instance], list[str]]:
    """The instances below the roots, sorted within each root, and a description of each that is left out.

    Left out are those with the class and name of another, and those whose class is a name that is not UTF-8.
    """
    found: dict[tuple[str, str], Instance] = {}
    left_out: list[str] = []
    for root in roots:
        for instance in sorted(_instances(root), key=lambda one: name_below(one.folder, root.parent).split("/")):
            place = f"the instance {printable_name(str(instance.folder))}"
            if not is_utf8(instance.category):
                left_out.append(f"{place}: the name of its class is not UTF-8; rename the folder")
                continue
            category = printable_name(" ".join(instance.category.split()))
            instance = replace(instance, category=category)
            first = found.setdefault((instance.category, instance.name), instance)
            if first is not instance:
                left_out.append(f"{place}: {printable_name(str(first.folder))} has the same class and name")
    return list(found.values()), left_out


def _instances(root: StorePath) -> list[Instance]:
    tree: _Tree = _FolderTree(root) if isinstance(root, Path) else _StoredTree(root)
    names = category_names(root)
    turntables = list(_turntables(tree, names))
    subjects = list(_subjects(tree, root.name, names, taken={instance.folder for instance in turntables}))
    if not turntables and not subjects and tree.holds_pictures:  # one subject
        subjects = [_subject(root, root.name, root.parent.name, names)]
    return [*turntables, *subjects]


def _turntables(tree: _Tree, names: dict[str, str]) -> Iterator[Instance]:
    annotated = tree.with_file(ANNOTATIONS)
    for folder in tree.with_marks:
        label, name = folder.parent.name, printable_name(folder.name)
        if folder.parent in annotated:
            yield Instance(folder=folder, category=names.get(label, _co3d_word(label)), name=name, layout="co3d")
        elif folder.parent != tree.root:
            yield Instance(folder=folder, category=names.get(label, label), name=name, layout="colmap")


def _co3d_word(label: str) -> str:
    """CO3D's categories are one word each: "toytruck", "hairdryer"."""
    return _CO3D_WORDS.get(label, label)


_CO3D_WORDS = {
    "baseballbat": "baseball bat", "baseballglove": "baseball glove", "cellphone": "cell phone", "hotdog": "hot dog",
    "hairdryer": "hair dryer", "parkingmeter": "parking meter", "stopsign": "stop sign", "teddybear": "teddy bear",
    "toybus": "toy bus", "toyplane": "toy plane", "toytrain": "toy train", "toytruck": "toy truck", "tv": "TV",
    "wineglass": "wine glass",
}  # fmt: skip


def _subjects(tree: _Tree, root: str, names: dict[str, str], taken: set[StorePath]) -> Iterator[Instance]:
    """Folders of pictures below the root, or below a folder for each class; none in a folder that is `taken`."""
    first = tree.with_pictures(1)
    for folder in first:
        yield _subject(folder, folder.name, root, names)
    for folder in tree.with_pictures(2):
        label = folder.parent.name
        if folder.parent in first or folder.name.lower() in _NO_SUBJECTS or taken & {folder, folder.parent}:
            continue
        if folder.name.lower() in SUBJECT_FOLDERS:
            if not tree.has_model(folder.parent):  # else it is an instance of a class whose folder is the root
                yield _subject(folder, label, root, names)
        else:
            category = names.get(label, word_of_folder(label).lower())
            name = printable_name(f"{label}/{folder.name}")
            yield Instance(folder=folder, category=category, name=name, layout="pictures")


def _subject(folder: StorePath, label: str, root: str, names: dict[str, str]) -> Instance:
    """The class of a subject is its folder's name without a number ("dog2": dog), or that of the folder above."""
    word = word_of_folder(label).lower()
    if word.isascii() and not any(letter.isalpha() for letter in word):
        word = word_of_folder(root).lower()
    name = printable_name(f"{root}/{label}")
    return Instance(folder=folder, category=names.get(label, word), name=name, layout="pictures")


class _Tree(Protocol):
    """The folders near a root, without hidden ones."""

    @property
    def root(self) -> StorePath:
        """The folder."""

    @property
    def with_marks(self) -> set[StorePath]:
        """The folders with `images/` or `sparse/`, one to three levels below the root."""

    @property
    def holds_pictures(self) -> bool:
        """Whether the root itself does."""

    def with_file(self, name: str) -> set[StorePath]:
        """The folders that have a file of this name: the root, or up to two levels below it."""

    def with_pictures(self, depth: int) -> list[StorePath]:
        """The folders of pictures at a depth below the root."""

    def has_model(self, folder: StorePath) -> bool:
        """Whether a folder has COLMAP's `sparse/`."""


class _FolderTree:
    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def with_marks(self) -> set[StorePath]:
        patterns = ("*/" * depth + mark for depth in (1, *_DEPTHS) for mark in _MARKS)
        marks = (mark for pattern in patterns for mark in visible_entries(self.root, pattern))
        return {mark.parent for mark in marks if os.path.isdir(mark.parent)}

    @property
    def holds_pictures(self) -> bool:
        return bool(picture_files(self.root))

    def with_file(self, name: str) -> set[StorePath]:
        return {file.parent for depth in range(3) for file in visible_entries(self.root, "*/" * depth + name)}

    def with_pictures(self, depth: int) -> list[StorePath]:
        folders = visible_entries(self.root, "/".join("*" * depth))
        return [folder for folder in folders if os.path.isdir(folder) and picture_files(folder)]

    def has_model(self, folder: StorePath) -> bool:
        return (folder / "sparse").is_dir()


class _StoredTree:
    def __init__(self, root: UPath) -> None:
        self.root = root
        names = (PurePosixPath(name) for name in names_below(root))
        self._names = [name for name in names if not is_hidden(name)]

    @cached_property
    def with_marks(self) -> set[StorePath]:
        return {
            self.root / "/".join(name.parts[:depth])
            for name in self._names
            for depth in (1, *_DEPTHS)
            if len(name.parts) > depth and name.parts[depth] in _MARKS
        }

    @property
    def holds_pictures(self) -> bool:
        return any(self._are_pictures(name, 0) for name in self._names)

    def with_file(self, name: str) -> set[StorePath]:
        files = (found for found in self._names if found.name == name and len(found.parts) <= 3)
        return {self.root / str(file.parent) if len(file.parts) > 1 else self.root for file in files}

    def with_pictures(self, depth: int) -> list[StorePath]:
        folders = {str(name.parent) for name in self._names if self._are_pictures(name, depth)}
        return [self.root / folder for folder in sorted(folders)]

    def has_model(self, folder: StorePath) -> bool:
        below = f"{name_below(folder, self.root)}/sparse/"
        return any(str(name).startswith(below) for name in self._names)

    @staticmethod
    def _are_pictures(name: PurePosixPath, depth: int) -> bool:
        return len(name.parts) == depth + 1 and name.suffix.lower() in PICTURE_SUFFIXES
