import torch

from model.micro_sd.architectures import (
    MAX_TOKENS,
    TOKENS,
    build_clip,
    build_tokenizer,
    build_unet,
    build_vae,
    text_encoder_of,
)


def test_tokenizer_lower_cases_drops_punctuation_and_pads_with_the_end_token() -> None:
    tokenizer = build_tokenizer()
    words = ["a", "photo", "of", "a", "robot", "on", "the", "beach"]
    encoded = tokenizer("A Photo of a ROBOT, on the beach!", padding="max_length", max_length=MAX_TOKENS)["input_ids"]
    assert len(encoded) == MAX_TOKENS
    assert tokenizer.convert_ids_to_tokens(encoded[:10]) == ["<bos>", *words, "<eos>"]
    assert set(encoded[9:]) == {tokenizer.eos_token_id}
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values()) == len(TOKENS) - 1
    assert tokenizer("zeppelin")["input_ids"][1] == tokenizer.unk_token_id


def test_text_encoder_is_the_text_tower() -> None:
    clip = build_clip().eval()
    ids = torch.randint(len(TOKENS) - 1, (2, MAX_TOKENS))
    ids[:, -1] = len(TOKENS) - 1
    with torch.no_grad():
        expected = clip.text_model(input_ids=ids).last_hidden_state
        assert torch.allclose(text_encoder_of(clip)(input_ids=ids).last_hidden_state, expected, atol=1e-5)


def test_latents_are_four_channels_at_a_quarter_of_the_size() -> None:
    latent = build_vae().encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
    assert latent.shape == (1, 4, 16, 16)


def test_unet_attends_to_the_text_at_two_resolutions() -> None:
    unet = build_unet()
    cross = {name.split(".")[0] + name.split(".")[1] for name in unet.attn_processors if "attn2" in name}
    assert {"down_blocks0", "down_blocks1", "up_blocks1", "up_blocks2"} <= cross
    assert sum(p.numel() for p in unet.parameters()) < 5e6
