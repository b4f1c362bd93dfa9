"""What each stage can be told. Plain typed dataclasses: no heavy import belongs here.

The defaults are those of the profile `micro`; `pipelines/config/profiles/*.yaml` holds what the other profiles change.
A section has its stage's name; `run`, `backbone` and `inference` are shared. `None` switches a threshold off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model.guidance.settings import InferenceSettings
from model.micro_sd.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run keeps everything it writes, and what it may use."""

    folder: str = "runs/micro"
    seed: int = 0
    cpus: int | None = None  # None: all of the machine's


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The latent diffusion model that is customized, and the image encoders that look at the subject."""

    weights: str | None = None  # None: the output of stage `base`; else a hub id or a local folder in diffusers' layout
    family: str = "sd"  # "sd" (one text encoder) or "sdxl"
    dtype: str = "float32"
    resolution: int = 64  # side of the pictures the backbone paints, pixels
    # Subfolders of the backbone, hub ids or local folders.
    image_encoders: list[str] = field(default_factory=lambda: ["clip", "dino"])
    # An encoder each; blocks from 0.
    shallow_layers: list[list[int]] = field(default_factory=lambda: [[0, 1, 2], [0, 1, 2]])
    reference_size: int = 64  # side of the reference as the encoders see it; 384 in the paper
    high_resolution_tiles: int = 2  # the high-resolution reference is tiles x tiles encoder views; 768 = 2 * 384


@dataclass(frozen=True, kw_only=True)
class MicroworldConfig:
    """The procedural web: pictures behind URLs, and an MVImgNet-shaped folder."""

    pictures: int = 3000
    dead_share: float = 0.02
    broken_share: float = 0.02
    duplicate_share: float = 0.03
    tiny_share: float = 0.02
    poor_share: float = 0.10  # rows whose scores lie below the thresholds of `filter`
    multiview_instances: int = 240
    views: int = 8
    picture_size: int = 64
    port: int = 8973  # of the loopback server; part of the URLs and so of the sample ids


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """img2dataset. Without `metadata` the microworld's is downloaded from its own loopback server."""

    metadata: str | None = None  # Parquet file, or folder of any number; a path, or a URI such as s3://bucket/folder
    url_column: str | None = None  # None: as LAION and its relatives spell it
    caption_column: str | None = None
    # Rows whose metadata say otherwise are not downloaded; those whose metadata do not tell are.
    min_similarity: float | None = None
    max_unsafe: float | None = None
    max_watermark: float | None = None
    min_aesthetic: float | None = None
    languages: list[str] | None = None
    min_image_size: int = 24  # of the metadata's width and height, where there are, and of the picture itself
    max_aspect_ratio: float = 3.0
    image_size: int = 64
    samples_per_shard: int = 600
    processes: int = 2  # shards at work at once, each in a Ray task of its own
    threads: int = 16  # downloads at once in each
    timeout_seconds: int = 10  # for each answer
    total_seconds: int = 60  # for a picture, with all redirects and retries
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    retries: int = 1
    allow_private_addresses: bool = False  # True: URLs may lead to this machine and its neighbours
    retry: Literal["failed"] | None = None  # "failed": the stage's last output, with its failed rows asked for again
    max_failed_share: float = 0.9  # of all rows; more failures than this stop the run


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Models for the scores that a threshold needs and the metadata lacks; null: such a sample is rejected.

    A CLIP is a hub id, a local folder, or "micro": the one that ships with the code and knows the microworld only.
    """

    similarity_clip: str | None = "micro"
    aesthetic_clip: str | None = None  # LAION's heads read openai/clip-vit-large-patch14
    aesthetic_head: str | None = None  # file of LAION's aesthetic predictor (V1 or V2), .safetensors or .pth
    safety_checker: str | None = None  # a Stable Diffusion with one (hub id or folder); 0.5 is its threshold
    actors: int = 1
    gpus_per_actor: float = 0.0  # a share of a GPU, such as 0.25; 0: on the CPU
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Rules for captions and pictures, and thresholds on LAION's scores."""

    # What img2dataset wrote earlier (webdataset or Parquet), or a Hugging Face dataset on disk; None: ingest's output.
    pictures_folder: str | None = None
    min_aesthetic: float | None = 5.0
    min_similarity: float | None = 0.26
    max_unsafe: float | None = 0.5
    max_watermark: float | None = 0.8
    min_side: int | None = 48
    min_pixels: int | None = None  # width times height
    max_aspect_ratio: float | None = 2.0
    min_caption_words: int | None = 3
    max_caption_characters: int | None = 1000
    caption_script: str | None = None  # Unicode's name, such as LATIN or HAN, of at least half of a caption's letters
    languages: list[str] | None = None  # such as [en], by the metadata's column LANGUAGE
    min_contrast: float | None = 4.0  # standard deviation of a coarse grid's colours, of 255; less is a single colour
    drop_duplicates: bool = True
    scoring: ScoringConfig = field(default_factory=ScoringConfig)


@dataclass(frozen=True, kw_only=True)
class MultiviewConfig:
    """View pairs from folders in MVImgNet's or a plain layout. Without `folders` the microworld's is read."""

    folders: list[str] = field(default_factory=list)
    image_size: int = 64
    min_angle_degrees: float = 10.0
    max_angle_degrees: float = 120.0
    pairs_per_instance: int = 24
    pairs_per_category: int | None = None  # shared out evenly among its instances; null: no limit
    min_foreground: float = 0.02  # share of the picture that an object must take, where there is a mask that says so


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The training plan (RealCustom++ Eqs. 10-11). One row a training example; the adapter trains for `steps`.

    `model/curriculum.Recipe` has the settings of all rows of the paper's Table X.
    """

    steps: int = 700
    batch_size: int = 32
    multiview_probability: float | None = None  # None: grows from 0 to 1 (Eq. 10); RealCustom wants 0
    min_crop_ratio: float = 1.0  # r_min
    max_crop_ratio: float = 3.1622776601683795  # r_max = sqrt(10): at least 10 % of the area; 1: no crops
    crops: Literal["curriculum", "random"] = "curriculum"  # up to r_cur of Eq. 11, or always up to r_max


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Context-rich prompt sets from an OpenAI-compatible endpoint, or from the grammar when there is none."""

    concepts: list[str] = field(
        default_factory=lambda: ["toy", "ball", "box", "donut", "mushroom", "mug", "bottle", "duck"]
    )
    prompts_per_concept: int = 200
    endpoint: str | None = None  # base URL; the key is read from OPENAI_API_KEY
    model: str = "gpt-4o-mini"
    temperature: float = 1.0
    prompts_per_request: int = 20
    timeout_seconds: float = 60.0
    retries: int = 3
    concurrency: int = 4


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Ray Train with DeepSpeed, the same for everything that is trained."""

    workers: int = 2
    use_gpu: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the forward pass, by autocast; the weights stay fp32
    accumulation: int = 1  # a step's batch is cut into so many micro batches, one after the other: less memory
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up
    warmup_steps: int = 20
    final_share: float = 0.02  # of the learning rate is left at the end of the cosine
    beta2: float = 0.99  # AdamW's; 0.999 forgets too slowly for runs of some hundred steps
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float | None = None  # the exponential moving average of the weights is exported instead; null: off
    checkpoint_every: int = 100
    keep_checkpoints: int = 2  # so many of the last ones, and the one with the lowest loss
    max_failures: int = 1  # so often training goes on from its last checkpoint after a worker has died


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The micro Stable Diffusion: the weights that ship with the code when the recipe is theirs, else trained anew."""

    recipe: Recipe = field(default_factory=Recipe)
    workers: int = 2
    use_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class CacheLatentsConfig:
    """Latents and text embeddings of the plan's examples, computed once before `train_adapter` and read by it."""

    enabled: bool = False  # False: `train_adapter` computes them itself
    dtype: Literal["float32", "float16"] = "float32"  # float16: half the storage, for training in half precision
    actors: int = 1
    gpus_per_actor: float = 0.0  # a share of a GPU, such as 0.25; 0: on the CPU
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class TrainAdapterConfig:
    """What an adapter is trained on the plan for: RealCustom (Sec. 3.2) or RealCustom++ (Sec. III-C)."""

    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(learning_rate=1.5e-3))
    data_workers: int = 1  # processes that read, decode and cut pictures, for each of the trainer's workers; 0: itself
    method: Literal["realcustom++", "realcustom"] = "realcustom++"
    # RealCustom++: how the shallow and the high-resolution features join the deep ones (Eq. 9; Tables VIII and IX);
    # null: not at all.
    cross_layer: Literal["concat", "add"] | None = "concat"
    cross_scale: Literal["concat", "add"] | None = "add"
    # RealCustom: how the scores of the image tokens become one (Eq. 8; Table 3); null: no scores, all tokens.
    score_fusion: Literal["scheduled", "textual", "visual", "mean"] | None = "scheduled"
    sample_every: int | None = 175  # steps between two looks at what the adapter paints; null: none
    # A picture each, of a subject of the view pairs; {word} is its category.
    sample_prompts: list[str] = field(
        default_factory=lambda: [
            "a photo of a {word} on the beach",
            "a photo of a {word} in the snow",
            "a photo of a {word} in the forest",
            "a photo of a {word} on a wooden floor",
        ]
    )
    gradient_checkpointing: bool = False  # the UNet's activations are computed twice: less memory, more time
    min_snr_gamma: float | None = None  # weighs the loss by min(SNR, gamma); 5 is usual; null: all timesteps alike
    drop_text: float = 0.05
    drop_image: float = 0.05
    drop_both: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ContextualizerConfig:
    """Masked language modelling on the prompt sets: psi and the mask embedding (Contextualizer, Algorithm 1)."""

    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(zero_stage=2))
    steps: int = 300
    batch_size: int = 64
    layers: int = 4
    mask_rate: float = 0.15


@dataclass(frozen=True, kw_only=True)
class CustomizeConfig:
    """One concept from a few pictures: Textual Inversion with the MLM loss (Contextualizer, Algorithm 2)."""

    subject: str | None = None  # folder of pictures of one subject; None: a held-out subject of the microworld
    word: str = "toy"  # the class word
    placeholder: str = "[v]"
    steps: int = 200
    batch_size: int = 4
    learning_rate: float = 5e-3
    mlm_weight: float = 1e-4  # lambda
    mask_rate: float = 0.15


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Held-out subjects times prompts, in three arms: text only, adapter without mask, adapter with mask.

    Pairs of subjects and the quality of masks are judged by the microworld's judge only.
    """

    subjects: int = 16
    prompts_per_subject: int = 3
    pairs: int = 6  # of subjects in one picture; the first of each pair goes through three rounds as well
    mask_subjects: int = 6  # painted once with each of the four mask recipes
    mask_scenes: int = 32  # real scenes of one object and as many of two in which the recipes look for them
    batch_size: int = 8
    workers: int = 2  # processes that paint, one CPU (or GPU) each
    use_gpu: bool = False
    subjects_folder: str | None = None  # a folder a subject, its first picture is the reference; None: the microworld's
    prompts: list[str] = field(default_factory=list)  # with {word}; empty: the microworld's grounds, or DreamBench's
    similarity: str = "judge"  # "judge" (the microworld's own), "clip" (CLIP-I) or "dino" (DINO-I)
    clip: str = "clip"  # for CLIP-T and CLIP-I: subfolder of the backbone, hub id or folder
    dino: str = "facebook/dino-vits16"


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """The model registry. `champion` moves to the new version when its score beats the last champion's."""

    model_name: str = "realword-micro"
    promote: bool = False  # move `champion` to the new version whatever the scores say


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    use_gpu: bool = False
    max_batch_size: int = 4
    max_queued_requests: int = 16
    max_picture_bytes: int = 10_000_000
    max_steps: int = 100
    timeout_seconds: float = 60.0  # from the request to the picture, waiting included


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a run depends on, one section a stage."""

    profile: str = "micro"
    run: RunConfig = field(default_factory=RunConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    microworld: MicroworldConfig = field(default_factory=MicroworldConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    multiview: MultiviewConfig = field(default_factory=MultiviewConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    cache_latents: CacheLatentsConfig = field(default_factory=CacheLatentsConfig)
    train_adapter: TrainAdapterConfig = field(default_factory=TrainAdapterConfig)
    contextualizer: ContextualizerConfig = field(default_factory=ContextualizerConfig)
    customize: CustomizeConfig = field(default_factory=CustomizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
