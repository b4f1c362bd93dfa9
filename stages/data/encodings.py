"""Latents and text states on disk, which the stage `cache_latents` writes and `train_adapter` reads.

A row is a target or a caption, with its tensors. Row groups are small, so that one row can be read without many
others. Pages have checksums, because a damaged tensor could not be recognised otherwise. Each file stores the identity
of the models that computed its rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.backbone import Backbone
from model.training.adapter_examples import PlanRow
from model.training.encodings import EncodingCacheError, check_identity, encoder_identity, target_key
from model.training.target_sizes import PictureSize
from stages.data.datasets import ColumnStore, dataset_files, read_dataset
from stages.data.plan import PlanPictures, PlanReader
from stages.data.schemas import ENCODINGS, FRAMES, SAMPLES
from stages.storage import StorePath, is_remote, open_whole, parquet_source
from stages.storage_errors import storage_error

_IDENTITY = b"encoders"
_GROUP_BYTES = 2**20
_CROP = ["target_crop_x", "target_crop_y"]
_TARGET = ["target_id", "height", "width", *_CROP]
_REMEDY = "run the stage cache_latents again (--force cache_latents)."


# --- the targets and captions of a plan -------------------------------------------------------------------------------


def distinct_targets(plan: PlanReader, pictures: PlanPictures) -> pa.Table:
    """The distinct targets of a plan, sorted.

    Returns:
        target_id, height, width, target_crop_x, target_crop_y; the position of the crop is null where the target shows
        the whole picture.
    """
    sizes = pa.concat_tables(_picture_sizes(pictures))
    found = [_distinct_crops(part, sizes) for part in plan.parts(*_TARGET)]
    table = pa.concat_tables(found).group_by(_TARGET).aggregate([])
    return table.sort_by([(name, "ascending") for name in ("height", "width", "target_id", *_CROP)])


def _picture_sizes(pictures: PlanPictures) -> Iterator[pa.Table]:
    """Tables of the pictures' ids, heights and widths."""
    for store, schema in ((pictures.samples, SAMPLES), (pictures.frames, FRAMES)):
        table = read_dataset(store.folder, schema, [store.id_column, "height", "width"])
        yield table.rename_columns(["id", "height", "width"])


def _distinct_crops(part: pa.Table, sizes: pa.Table) -> pa.Table:
    of_target = sizes.take(pc.index_in(part["target_id"], value_set=sizes["id"]))
    area = [pc.cast(table[name], pa.int64()) for table in (part, of_target) for name in ("height", "width")]
    is_whole = pc.equal(pc.multiply(area[0], area[3]), pc.multiply(area[1], area[2]))
    places = [pc.if_else(is_whole, pa.scalar(None, pa.float32()), part[name]) for name in _CROP]
    columns = [*(part[name] for name in _TARGET[:3]), *places]
    return pa.table(columns, names=_TARGET).group_by(_TARGET).aggregate([])


def distinct_captions(plan: PlanReader) -> pa.Table:
    """The distinct captions of a plan, sorted, and the empty caption, for examples whose caption is dropped."""
    captions = pc.unique(pa.chunked_array([plan.distinct("caption"), pa.array([""])]))
    return pa.table({"caption": captions}).sort_by("caption")


def keys_of_targets(targets: pa.Table) -> list[str]:
    """The keys of some rows of `distinct_targets`."""
    rows = zip(*targets.select(_TARGET).to_pydict().values(), strict=True)
    return [target_key(name, PictureSize(h, w), None if x is None else (x, y)) for name, h, w, x, y in rows]


# --- writing -------------------------------------------------------------------------------------------------------


def encoding_rows(keys: Sequence[str], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> pa.Table:
    """Rows of the schema `ENCODINGS`.

    Args:
        keys: B keys.
        tensors: Each (B, ...).
        dtype: The dtype to store.

    Raises:
        EncodingCacheError: A value is not finite in this dtype.
    """
    kept = {name: tensor.cpu().to(dtype) for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        finite = tensor.isfinite().flatten(1).all(1)
        if not finite.all():
            remedy = (
                "set cache_latents.dtype=float32" if tensors[name].isfinite().all() else "check the backbone's weights"
            )
            raise EncodingCacheError(
                f"{name} of {keys[int(finite.int().argmin())]!r} has values that are not finite in {dtype}: {remedy}."
            )
    rows = [save({name: tensor[row].contiguous() for name, tensor in kept.items()}) for row in range(len(keys))]
    return pa.table({"key": list(keys), "tensors": rows}, schema=ENCODINGS)


def write_encodings(file: StorePath, identity: Mapping[str, str], tables: Iterable[pa.Table]) -> None:
    """Write one file of a dataset, whole or not at all. Holds one table in memory."""
    schema = ENCODINGS.with_metadata({_IDENTITY: json.dumps(identity)})
    options = {"compression": "NONE", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with open_whole(file) as sink, pq.ParquetWriter(sink, schema, **options) as writer:
        for table in tables:
            rows = max(1, _GROUP_BYTES * table.num_rows // table.nbytes)
            writer.write_table(table.cast(schema), row_group_size=rows)


def identity_of(file: StorePath) -> dict[str, str]:
    """The identity of the models that computed the rows of a file.

    Raises:
        EncodingCacheError: The file is damaged.
    """
    with _damage_named(file):
        identity: dict[str, str] = json.loads(pq.read_schema(parquet_source(file)).metadata[_IDENTITY])
    return identity


# --- reading -------------------------------------------------------------------------------------------------------


@contextmanager
def _damage_named(path: StorePath) -> Iterator[None]:
    """Turn the errors of reading damaged files into EncodingCacheErrors that name the path."""
    try:
        yield
    except (pa.ArrowException, OSError, SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
        if is_remote(path) and storage_error(error, str(path)):
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise EncodingCacheError(f"{path} is damaged: {reason}; {_REMEDY}") from error


class EncodingStore(ColumnStore):
    """Random access to the tensors of one dataset."""

    def __init__(self, folder: StorePath) -> None:
        super().__init__(folder, "key", "tensors")

    def batch(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The tensors (B, ...) of B keys, in float32.

        Raises:
            EncodingCacheError: A key is missing, or a file is damaged.
        """
        with _damage_named(self.folder):
            missing = [key for key in keys if key not in self]
            if missing:
                raise EncodingCacheError(f"{self.folder} has no {missing[0]!r}: it is of another plan; {_REMEDY}")
            rows = {key: load(self[key]) for key in dict.fromkeys(keys)}
        return {name: torch.stack([rows[key][name].float() for key in keys]) for name in rows[keys[0]]}


@dataclass(frozen=True)
class StoredEncodings:
    """An `EncodingCache` in the output of the stage `cache_latents`."""

    targets: EncodingStore
    captions: EncodingStore

    @classmethod
    def of(cls, folder: StorePath) -> Self:
        """The datasets `latents` and `texts` in a folder."""
        return cls(EncodingStore(folder / "latents"), EncodingStore(folder / "texts"))

    def latents(self, rows: Sequence[PlanRow]) -> Tensor:
        """Latents (B, 4, h, w) of the rows' targets; raises EncodingCacheError."""
        return self.targets.batch([self._key(row) for row in rows])["latent"]

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """hidden (B, n_t, c_t); for SDXL also text_embeds. Raises EncodingCacheError."""
        return self.captions.batch(captions)

    def check(self, backbone: Backbone) -> None:
        """Raises EncodingCacheError if another backbone was used, or a file is damaged."""
        needed = encoder_identity(backbone)
        for store in (self.targets, self.captions):
            for file in dataset_files(store.folder):
                try:
                    check_identity(identity_of(file), needed, str(store.folder.parent))
                except EncodingCacheError as error:
                    raise EncodingCacheError(f"{str(error).rstrip('.')}; {_REMEDY}") from error

    def check_plan(self, plan: PlanReader, pictures: PlanPictures) -> None:
        """Check that the cache holds all targets and captions of a plan.

        Raises:
            EncodingCacheError: One is missing, or a file is damaged.
        """
        wanted = [
            (self.targets, keys_of_targets(distinct_targets(plan, pictures))),
            (self.captions, distinct_captions(plan)["caption"].to_pylist()),
        ]
        for store, keys in wanted:
            with _damage_named(store.folder):
                missing = [key for key in keys if key not in store]
            if missing:
                raise EncodingCacheError(
                    f"{store.folder} is of another plan: it lacks {len(missing)} of {len(keys)} rows, such as "
                    f"{missing[0]!r}; {_REMEDY}"
                )

    def _key(self, row: PlanRow) -> str:
        """The key of a row's target; one that shows the whole picture has no position of the crop in its key."""
        whole = target_key(row.target_id, row.size, None)
        if whole in self.targets:
            return whole
        return target_key(row.target_id, row.size, (row.target_crop_x, row.target_crop_y))
