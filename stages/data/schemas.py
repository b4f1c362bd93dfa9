"""The schemas of the datasets. Column names are part of the contract between stages.

Pictures are stored as encoded bytes (JPEG or PNG). Ids are content hashes, never counters.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

#: LAION's score columns, which img2dataset keeps, with our names for them.
LAION_SCORES = {
    "similarity": "similarity",
    "punsafe": "unsafe",
    "pwatermark": "watermark",
    "AESTHETIC_SCORE": "aesthetic",
}

#: The columns that the rules read, and their lower-case names in LAION-400M, LAION-5B, Re-LAION, DataComp and COYO.
SPELLINGS = {
    "url": ("url", "image_url", "img_url"),
    "caption": ("text", "caption", "alt_text", "alt", "re_caption"),
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score"),
    "unsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "watermark": ("pwatermark", "watermark_score"),
    "aesthetic": ("aesthetic_score", "aesthetic", "aesthetic_score_laion_v2"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "language": ("language", "lang"),
}

#: `ingest/samples` and `filter/samples`: one picture with its caption.
SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("picture", pa.binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the stored picture, pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("original_width", pa.int32(), nullable=False),
        pa.field("original_height", pa.int32(), nullable=False),
        pa.field("similarity", pa.float32()),  # null: the metadata has no such score
        pa.field("unsafe", pa.float32()),
        pa.field("watermark", pa.float32()),
        pa.field("aesthetic", pa.float32()),
        pa.field("language", pa.string()),  # of the caption, as the metadata says
    ]
)

#: `ingest/rejected`, `ingest/failed` and `filter/rejected`: the dropped rows, each with its reason.
REJECTED = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("reason", pa.string(), nullable=False),  # a short fixed word, e.g. "aesthetic"
        pa.field("detail", pa.string(), nullable=False),  # the offending value, e.g. "4.1 < 5.0"
    ]
)

#: `multiview/frames`: a photograph of an object, with its camera (world to camera, as in COLMAP) if it is known.
FRAMES = pa.schema(
    [
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("instance", pa.string(), nullable=False),
        pa.field("picture", pa.binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rotation", pa.list_(pa.float64())),  # unit quaternion w, x, y, z; null: unknown camera
        pa.field("translation", pa.list_(pa.float64())),  # x, y, z
    ]
)

#: `multiview/pairs`: two views of one object.
PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("instance", pa.string(), nullable=False),
        pa.field("reference_frame_id", pa.string(), nullable=False),
        pa.field("target_frame_id", pa.string(), nullable=False),
        pa.field("angle_degrees", pa.float32()),  # between the viewing directions; null: unknown cameras
    ]
)

#: `curriculum/plan`: the training examples of the adapter, one a row, `batch_size` rows a step.
PLAN = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),  # position in the batch
        pa.field("source", pa.string(), nullable=False),  # "image_text" or "multiview"
        pa.field("reference_id", pa.string(), nullable=False),  # sample_id or frame_id
        pa.field("target_id", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("crop_ratio", pa.float32(), nullable=False),  # r of Eq. 11, for the reference
        pa.field("crop_x", pa.float32(), nullable=False),  # position of the reference crop in its free travel, 0 to 1
        pa.field("crop_y", pa.float32(), nullable=False),
        pa.field("target_crop_x", pa.float32(), nullable=False),  # position of the target's crop, in the same way
        pa.field("target_crop_y", pa.float32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),  # of the target, pixels; the same for all rows of a step
        pa.field("width", pa.int32(), nullable=False),
        pa.field("original_height", pa.int32(), nullable=False),  # of the target's picture before it was ingested
        pa.field("original_width", pa.int32(), nullable=False),
    ]
)

#: `cache_latents/latents` and `cache_latents/texts`: the plan's examples, encoded by the backbone.
ENCODINGS = pa.schema(
    [
        # `model.training.encodings.target_key` of a target, or the caption
        pa.field("key", pa.string(), nullable=False),
        # safetensors: latent (4, h, w); or hidden (n_t, c_t), for SDXL also text_embeds (c_p)
        pa.field("tensors", pa.binary(), nullable=False),
    ]
)

#: `prompts/prompts` and `prompts/tailored`: context-rich prompts with the concept's placeholder.
PROMPTS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("concept", pa.string(), nullable=False),  # the class word
        pa.field("prompt", pa.string(), nullable=False),  # contains "[v] <concept>"
        pa.field("variation", pa.string(), nullable=False),  # background, subject, action, style, property or tailored
        pa.field("writer", pa.string(), nullable=False),  # the grammar's or the language model's name
    ]
)

#: `prompts/captions`: captions of pictures, without a placeholder.
CAPTIONS = pa.schema(
    [
        pa.field("caption_id", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
    ]
)

#: `evaluate/scores`: one generated picture.
SCORES = pa.schema(
    [
        pa.field("arm", pa.string(), nullable=False),  # "text_only", "adapter", "adapter_mask" or "concept"
        pa.field("subject", pa.string(), nullable=False),
        pa.field("word", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("controllability", pa.float32(), nullable=False),
        pa.field("clip_t", pa.float32(), nullable=False),  # cosine(prompt, picture)
        # Similarity to the reference minus that to the other views.
        pa.field("copying", pa.float32(), nullable=False),
        # Similarities of the subject's views to each other, and to another subject with the same word; null: none.
        pa.field("real_views", pa.float32()),
        pa.field("another_subject", pa.float32()),
        # The reference's pattern; whether the picture has this pattern and the reference's two colours, 1 or 0; and the
        # share of the subject's other views that have them. By the judge; null: there is none.
        pa.field("reference_pattern", pa.string()),
        pa.field("pattern", pa.float32()),
        pa.field("colours", pa.float32()),
        pa.field("pattern_and_colours", pa.float32()),
        pa.field("views_pattern", pa.float32()),
        pa.field("views_colours", pa.float32()),
        pa.field("views_pattern_and_colours", pa.float32()),
        # Outside the subject, to the text-only picture; null: not measured.
        pa.field("background_change", pa.float32()),
        pa.field("picture", pa.binary(), nullable=False),
        pa.field("mask", pa.binary()),
    ]
)

#: `evaluate/multi_subject`: one subject of a generated picture.
MULTI_SUBJECT = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),  # "text_only", "many_to_many", "one_to_many", "round_1", ...
        pa.field("pair", pa.string(), nullable=False),  # the two subjects' names
        pa.field("subject", pa.string(), nullable=False),
        pa.field("phrase", pa.string(), nullable=False),  # the words of the prompt that the reference stands for
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # of the subject's region to its other views
        pa.field("other_similarity", pa.float32(), nullable=False),  # and to the views of the pair's other subject
        pa.field("reference", pa.binary(), nullable=False),  # as the model received it
        pa.field("picture", pa.binary(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),
    ]
)

#: `evaluate/masks`: the mask of one subject in one denoising step.
MASKS = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),  # "cross_all", "cross", "cross_self_all" or "cross_self"
        pa.field("cross_grids", pa.list_(pa.int32()), nullable=False),  # heights of the attention grids that are used
        pa.field("self_grids", pa.list_(pa.int32()), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),  # from 0
        pa.field("timestep", pa.int32(), nullable=False),
        pa.field("iou", pa.float32(), nullable=False),  # of M_hat > 0 with the object that the judge detects
        pa.field("largest_iou", pa.float32(), nullable=False),  # that a mask with this number of positions can have
        pa.field("picture", pa.binary()),  # in the last step only
        pa.field("mask", pa.binary()),
    ]
)

#: `evaluate/scene_masks`: the mask of one object in a noisy scene in which its true mask is known.
SCENE_MASKS = pa.schema(
    [
        pa.field("recipe", pa.string(), nullable=False),  # as in `evaluate/masks`
        pa.field("cross_grids", pa.list_(pa.int32()), nullable=False),
        pa.field("self_grids", pa.list_(pa.int32()), nullable=False),
        pa.field("objects", pa.int32(), nullable=False),  # in the scene, 1 or 2
        pa.field("scene", pa.int32(), nullable=False),  # number of the drawn scene
        pa.field("word", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("timestep", pa.int32(), nullable=False),
        pa.field("iou", pa.float32(), nullable=False),
        pa.field("largest_iou", pa.float32(), nullable=False),
    ]
)


def content_id(*parts: str) -> str:
    """The id of a row: the first 24 hexadecimal digits of the SHA-256 of its parts.

    The parts of a sample are its URL and its caption.
    """
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
