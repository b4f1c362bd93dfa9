"""A concept as a folder: `concept.json` and safetensors files, which diffusers' own loaders read too.

concept.json                                    the method, the backbone's name, the tokens
learned_embeds.safetensors                      a token's embeddings (v, c); of the second token learned_embeds_2, ...
layer_embeds.safetensors                        XTI: (v, c) by `clip_l.<cross-attention layer>`; diffusers has no loader
pytorch_custom_diffusion_weights.safetensors    Custom Diffusion's K and V
pytorch_lora_weights.safetensors                LoRA, alpha = rank, with its metadata
unet.safetensors, text_encoder.safetensors, ... whole models, with the names of their parameters
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint_files import safetensors_damage
from model.concepts.concept import ENCODER_NAMES, Concept, ConceptError, ConceptToken
from model.concepts.custom_diffusion_files import CUSTOM_DIFFUSION_FILE, cross_attention_of, custom_diffusion_state
from model.concepts.lora_files import LORA_FILE, lora_of_diffusers, write_diffusers_lora
from model.files import TextError, read_text

_DESCRIPTION, _FORMAT = "concept.json", 1
_WEIGHTS = ".safetensors"
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def write_concept(folder: Path, concept: Concept) -> None:
    """Write a concept into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [_write_token(folder, token, number) for number, token in enumerate(concept.tokens, 1)]
    files = [file for token in tokens for file in (token["embeddings"], token["layer_embeddings"]) if file]
    if concept.cross_attention:
        save_file(custom_diffusion_state(concept.cross_attention), folder / CUSTOM_DIFFUSION_FILE)
        files.append(CUSTOM_DIFFUSION_FILE)
    if concept.lora:
        write_diffusers_lora(folder / LORA_FILE, concept.lora)
        files.append(LORA_FILE)
    for component, weights in _by_component(concept.weights).items():
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / component)
        files.append(component)
    description = {
        "format": _FORMAT,
        "method": concept.method,
        "backbone": concept.backbone,
        "tokens": tokens,
        "files": files,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _by_component(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The file of each model -> its weights, by their names in the model."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        component, _, own = name.partition(".")
        found.setdefault(f"{component}{_WEIGHTS}", {})[own] = weight
    return found


def _write_token(folder: Path, token: ConceptToken, number: int) -> dict[str, str | None]:
    suffix = "" if number == 1 else f"_{number}"
    plain = f"learned_embeds{suffix}.safetensors" if token.embeddings else None
    layers = f"layer_embeds{suffix}.safetensors" if token.layer_embeddings else None
    if plain:
        save_file(embedding_state(token.placeholder, token.embeddings), folder / plain)
    if layers:
        state = {
            f"{name}.{layer}": embedding.detach().cpu().contiguous()
            for layer, embeddings in token.layer_embeddings.items()
            for name, embedding in zip(ENCODER_NAMES, embeddings, strict=False)
        }
        save_file(state, folder / layers)
    named = {"placeholder": token.placeholder, "word": token.word, "subject": token.subject}
    return {**named, "embeddings": plain, "layer_embeddings": layers}


def embedding_state(placeholder: str, embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The state in which diffusers keeps a token's embeddings, (v, c) for each text encoder."""
    names = ENCODER_NAMES if len(embeddings) > 1 else (placeholder,)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in zip(names, embeddings, strict=True)}


def read_concept(folder: Path) -> Concept:
    """Read a concept that `write_concept` wrote.

    Raises:
        ConceptError: There is none, or it is damaged or of a later version; names the file.
    """
    try:
        description = json.loads(read_text(folder / _DESCRIPTION))
    except OSError as error:
        raise ConceptError(
            f"{folder} has no concept: {error.strerror} ({error.filename}); files of other tools are read by "
            "model.concepts.other_files."
        ) from error
    except (json.JSONDecodeError, TextError) as error:
        raise ConceptError(f"the concept {folder} is damaged: {_DESCRIPTION}: {error}.") from error
    try:
        concept = _concept_of(folder, description)
    except KeyError as error:
        raise ConceptError(f"the concept {folder} is damaged: {error} is missing.") from error
    except (TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ConceptError):
            raise
        raise ConceptError(f"the concept {folder} is damaged: {error}.") from error
    if not all(tensor.isfinite().all() for tensor in concept.tensors()):
        raise ConceptError(f"the concept {folder} is damaged: it holds values that are no finite numbers.")
    return concept


def _concept_of(folder: Path, description: Mapping[str, Any]) -> Concept:
    if "placeholder" in description:  # as it was written before there was a format
        token = _read_token(folder, {"embeddings": "learned_embeds.safetensors", **description})
        return Concept(method="textual_inversion", backbone="", tokens=(token,))
    if description["format"] != _FORMAT:
        raise ConceptError(
            f"the concept {folder} has the format {description['format']!r}, which a later version wrote."
        )
    files = description["files"]
    custom = _load(folder, CUSTOM_DIFFUSION_FILE) if CUSTOM_DIFFUSION_FILE in files else {}
    lora = _load(folder, LORA_FILE) if LORA_FILE in files else {}
    concept = Concept(
        method=str(description["method"]),
        backbone=str(description["backbone"]),
        tokens=tuple(_read_token(folder, entry) for entry in description["tokens"]),
        cross_attention=cross_attention_of(custom),
        lora=lora_of_diffusers(lora),
        weights={
            f"{component}.{name}": weight
            for component in _COMPONENTS
            if f"{component}{_WEIGHTS}" in files
            for name, weight in _load(folder, f"{component}{_WEIGHTS}").items()
        },
    )
    if not concept.tokens:
        raise ConceptError(f"the concept {folder} is damaged: it has no token.")
    return concept


def _read_token(folder: Path, entry: Mapping[str, Any]) -> ConceptToken:
    named = {key: str(entry[key]) for key in ("placeholder", "word", "subject")}
    plain, layers = entry.get("embeddings"), entry.get("layer_embeddings")
    by_layer: dict[str, tuple[Tensor, ...]] = {}
    for key, tensor in _load(folder, layers).items() if layers else ():
        layer = key.partition(".")[2]
        by_layer[layer] = (*by_layer.get(layer, ()), as_vectors(tensor))  # clip_g comes after clip_l: see below
    embeddings = embeddings_of(_load(folder, plain), named["placeholder"]) if plain else ()
    return ConceptToken(**named, embeddings=embeddings, layer_embeddings=by_layer)


def embeddings_of(state: Mapping[str, Tensor], placeholder: str) -> tuple[Tensor, ...]:
    """The embeddings in a state of diffusers, as `ConceptToken.embeddings`.

    Raises:
        KeyError: They are not there.
    """
    names = ENCODER_NAMES if set(ENCODER_NAMES) <= set(state) else (placeholder,)
    return tuple(as_vectors(state[name]) for name in names)


def as_vectors(tensor: Tensor) -> Tensor:
    """(v, c) of an embedding that may be (c).

    Raises:
        ValueError: It has another shape, or holds integers.
    """
    if tensor.dim() not in (1, 2) or not tensor.is_floating_point():
        raise ValueError(f"an embedding has the shape {tuple(tensor.shape)} instead of (vectors, width)")
    return tensor[None] if tensor.dim() == 1 else tensor


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file of the folder, clip_l before clip_g.

    Raises:
        ConceptError: It is missing or damaged.
    """
    file = folder / Path(name).name  # no other folder's
    try:
        damage = safetensors_damage(file)
        state = {} if damage else load_file(file)
    except OSError as error:
        raise ConceptError(f"the concept {folder} is damaged: {name}: {error.strerror}.") from error
    except SafetensorError as error:
        raise ConceptError(f"the concept {folder} is damaged: {name}: {error}.") from error
    if damage:
        raise ConceptError(f"the concept {folder} is damaged: {name} {damage}.")
    order = sorted(state, key=lambda key: key.startswith(ENCODER_NAMES[1]))
    return {key: state[key] for key in order}


def diffusers_calls(folder: Path, concept: Concept) -> str:
    """The calls of diffusers that load a folder into `pipeline`, without this project; for people.

    Raises:
        ConceptError: diffusers has no loader for it: XTI.
    """
    lines: list[str] = []
    for number, token in enumerate(concept.tokens, 1):
        if token.layer_embeddings:
            raise ConceptError(
                f"diffusers cannot load the concept {folder}: it has no embeddings for each layer (XTI)."
            )
        name = f"learned_embeds{'' if number == 1 else f'_{number}'}.safetensors"
        if len(token.embeddings) == 1:
            lines.append(f"pipeline.load_textual_inversion({str(folder)!r}, weight_name={name!r})")
        elif token.embeddings:
            lines.append(f"state = safetensors.torch.load_file({str(folder / name)!r})")
            for key, suffix in zip(ENCODER_NAMES, ("", "_2"), strict=True):
                encoder = f"text_encoder=pipeline.text_encoder{suffix}, tokenizer=pipeline.tokenizer{suffix}"
                lines.append(f"pipeline.load_textual_inversion(state[{key!r}], token={token.placeholder!r}, {encoder})")
    if concept.cross_attention:
        # Without `_pipeline` diffusers 0.42 reads the file and sets nothing.
        options = f"weight_name={CUSTOM_DIFFUSION_FILE!r}, _pipeline=pipeline"
        lines.append(f"pipeline.unet.load_attn_procs({str(folder)!r}, {options})")
    for file in _by_component(concept.weights):
        model = f"pipeline.{file.removesuffix(_WEIGHTS)}"
        state = f"safetensors.torch.load_file({str(folder / file)!r})"
        if file == f"unet{_WEIGHTS}":
            lines.append(f"{model}.load_state_dict({state})")
        else:  # transformers knows its own names for those of files
            lines.append(f"{model} = type({model}).from_pretrained(None, config={model}.config, state_dict={state})")
    if concept.lora:
        lines.append(f"pipeline.load_lora_weights({str(folder)!r}, weight_name={LORA_FILE!r})")
    return "\n".join(lines)
