"""Builders of the parts of the micro Stable Diffusion, all classes of diffusers and transformers.

64 x 64 pixels, four latent channels at 16 x 16, text states of width 128.
"""

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

from model.microworld.captions import VOCABULARY

IMAGE_SIZE = 64
LATENT_CHANNELS = 4
LATENT_SIZE = 16
MAX_TOKENS = 16
WIDTH = 128  # of text states, image features and the shared embedding
PATCH_SIZE = 8

_UNKNOWN, _BEGIN, _END = "<unk>", "<bos>", "<eos>"
TOKENS: tuple[str, ...] = (*VOCABULARY, _UNKNOWN, _BEGIN, _END)  # CLIP pools at the end token: it has the highest id


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the world's vocabulary: lower-cases, drops punctuation, pads with the end token."""
    ids = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A {_END}", special_tokens=[(_BEGIN, ids[_BEGIN]), (_END, ids[_END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        bos_token=_BEGIN,
        eos_token=_END,
        pad_token=_END,
        unk_token=_UNKNOWN,
    )


def build_vae() -> AutoencoderKL:
    """KL autoencoder, factor 4, 0.65 M parameters; training folds whitening in, hence scaling factor 1."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def build_clip() -> CLIPModel:
    """Contrastive text and image encoders, 0.4 M and 0.7 M parameters."""
    begin, end = TOKENS.index(_BEGIN), TOKENS.index(_END)
    text = {
        "vocab_size": len(TOKENS),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": WIDTH,
    }
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, logit_scale_init_value=3.2)
    return CLIPModel(config)


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """Copy the text tower alone, in the form that Stable Diffusion stores."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


def build_dino() -> Dinov2Model:
    """Second image encoder, 0.7 M parameters, with the patches and blocks of CLIP's image tower."""
    return Dinov2Model(
        Dinov2Config(
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            hidden_size=WIDTH,
            mlp_ratio=3,
            num_hidden_layers=4,
            num_attention_heads=4,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """4.8 M parameters; cross-attention at 16 x 16 and 8 x 8, heads of width 32."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 3, 4),  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with velocity prediction (Salimans & Ho 2022)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )
