"""Published tokenizers -> our config and names.

`convert_walk.py` follows the two lists of modules in a published config; what it finds becomes our
config here, and the places of the modules become our tensor names. No file but the three
`convert*.py` knows foreign names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config.sampling import SamplingDefaults
from ..config.tokenizer import (
    DecoderConfig,
    EncoderConfig,
    FeatureAggregate,
    GlobalMode,
    PosembConfig,
    TokenizerConfig,
    VAEConfig,
)
from ..errors import CheckpointError, ConfigError, one_line
from ..files.tensor_files import Source
from .checkpoint import check_shapes, weight_shapes
from .convert_walk import JOINED, Module, Options, Side
from .published import Renamed, read_config

TOKENIZER_ENTRIES = frozenset({"video_flex_tok", "videoflextok", "config"})
VAES = {f"vidtok_kl_causal_488_{c}chn": VAEConfig(latent_channels=c) for c in (4, 8, 16)}
VAE_KEY = re.compile(
    r"(?:.*\.)?((?:encoder|decoder)\.(?:conv_in|conv_out|norm_out|mid|(?:down|up)(?:_temporal)?)\..+)"
)


# ------------------------------------------------------------------ from a path to our weights


def read_published(
    source: Source, *, vae: Source | None = None, name: str | None = None
) -> tuple[TokenizerConfig, Mapping[str, Tensor]]:
    """A published folder or file as a config of ours and our weights, read when asked for.

    Where the file carries no video autoencoder it is taken from `vae`, another published file.
    Raises CheckpointError for anything unknown, missing, left over or of another shape.
    """
    where = str(source.path)
    name = one_line(name or (source.path.name if source.path.is_dir() else source.path.stem))
    data = read_config(source, TOKENIZER_ENTRIES)
    source.check_dtypes()
    shapes, keys = fit(source.shapes)
    foreign: dict[str, str] = {}
    if not any(k.startswith("vae.") for k in keys):
        hub = data.get("hub_vae")
        hub = hub if isinstance(hub, dict) else {}
        if vae is None:
            raise CheckpointError(
                f"{where} holds no video autoencoder; it is the one of "
                f"{hub.get('repo', 'another repository')} (revision "
                f"{hub.get('revision', 'main')}): name a copy of that with --vae"
            )
        found = ((VAE_KEY.fullmatch(k), k) for k in vae if ".module_dict." not in k)
        foreign = {f"vae.vidtok.{m[1]}": k for m, k in found if m}
    places = {k: (source, key) for k, key in keys.items()}
    if vae is not None:
        shapes |= {k: vae.shapes[key] for k, key in foreign.items()}
        places |= {k: (vae, key) for k, key in foreign.items()}
    config, ours = plan(data, shapes, name, where)
    return config, Renamed({k: places[key] for k, key in ours.items()}, weight_shapes(config))


def fit(shapes: Mapping[str, list[int]]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Tensor names may all begin alike (`video_tokenizer.`). Returns the shapes under the names
    that a config knows, and those names -> names in the file."""
    found = (re.search(r"(?<![^.])encoder\.module_dict\.", k) for k in shapes)
    prefix = next((m.string[: m.start()] for m in found if m), "")
    names: dict[str, str] = {}
    for key in shapes:
        known = key.removeprefix(prefix)
        if known in names:
            raise CheckpointError(f"two tensors are called {known!r}: {names[known]!r} and {key!r}")
        names[known] = key
    return {known: shapes[key] for known, key in names.items()}, names


# ------------------------------------------------------------------ from a config to a plan


def plan(
    data: dict[str, Any], shapes: Mapping[str, list[int]], name: str, where: str, *,
    has_vae: bool = True,
) -> tuple[TokenizerConfig, dict[str, str]]:  # fmt: skip
    """What a published config means: our config, and our tensor names -> published ones (without
    their common prefix). `shapes` are those of the tensors in the file; each is used, or dropped
    by name, or an error. `has_vae=False`: the autoencoder may be left out (parity cases)."""
    try:
        config, rename = architecture(data, shapes, name)
    except ConfigError as e:
        raise CheckpointError(f"{where}: {e}") from None
    ours: dict[str, str] = {}
    for key in shapes:
        target = rename(key)
        if target is None:
            raise CheckpointError(f"{where} has an unexpected tensor {key!r}")
        if target:
            ours[target] = key
    wanted = weight_shapes(config)
    found = {k: list(shapes[key]) for k, key in ours.items()}
    for k, shape in found.items():
        if k.startswith("vae.") and k in wanted and _squeezed(shape) == _squeezed(wanted[k]):
            found[k] = list(wanted[k])
    if not has_vae:
        found |= {k: list(s) for k, s in wanted.items() if k.startswith("vae.") and k not in found}
    check_shapes(found, config, where, ours)
    return config, ours


def _squeezed(shape: list[int] | torch.Size) -> list[int]:
    return [n for n in shape if n != 1]


def architecture(
    data: dict[str, Any], shapes: Mapping[str, list[int]], name: str
) -> tuple[TokenizerConfig, Callable[[str], str | None]]:
    """Our config of a published one, and a function from published tensor names to ours: "" for a
    tensor that is dropped on purpose, None for one that nobody asked for."""
    top = Options("config", data)
    if "config" in top.left:  # sometimes nested
        top = Options("config", {**data, **top.take("config", dict)}, drop=("config",))
    semantok = Options("semantok", top.take("semantok", dict, {}))
    top.ignore("hub_vae")
    if "videoflextok" in top.left:
        inner = top.take("videoflextok", dict)
        top.close()
        top = Options("videoflextok", inner)
        if "config" in top.left:
            top = Options("videoflextok", {**inner, **top.take("config", dict)}, drop=("config",))
    chunk = top.take("chunk_size", int)
    overlap = top.take("overlap_size_frames", int, 0)
    grid = top.take("vae_video_sizes", tuple[int, ...])
    top.ignore("video_preprocess_args")
    net = Module("video_flex_tok", top.take("video_flex_tok", dict), "VideoFlexTok")
    top.close()
    if len(grid) != 3 or grid[1] != grid[2] or grid[0] != 1 + (chunk - 1) // 4:
        raise ConfigError(
            f"vae_video_sizes is {list(grid)}; expected [1 + (chunk_size - 1) / 4, side, side]"
        )

    vae = Module("vae", net.take("vae", dict), "VidTokVAE")
    tokenizer_id = vae.take("tokenizer_id", str)
    if tokenizer_id not in VAES:
        raise ConfigError(f"vae.tokenizer_id is {tokenizer_id!r}; known: {', '.join(VAES)}")
    latents = vae.take("vae_latents_write_key", str)
    vae.ignore("images_read_key", "vae_latents_read_key", "images_reconst_write_key")
    vae.close()
    fsq = Module("regularizer", net.take("regularizer", dict), "FSQ")
    codes_in, codes_out = fsq.take("latents_read_key", str), fsq.take("quants_write_key", str)
    levels = fsq.take("levels", tuple[int, ...])
    fsq.ignore("tokens_write_key")
    fsq.close()
    noise = net.take("flow_matching_noise_module", dict, {})  # training only
    if noise:
        Module("flow_matching_noise_module", noise, "PrefixMinRFNoiseModule", "MinRFNoiseModule")
    pipe = Module("pipeline", net.take("pipeline", dict), "VideoMinRFPipeline")
    noised, times = pipe.take("noised_videos_read_key", str), pipe.take("timesteps_read_key", str)
    velocity = pipe.take("reconst_write_key", str)
    pipe.only("latents_read_key", codes_out, default=codes_out)
    pipe.only("out_channels", VAES[tokenizer_id].latent_channels, default=None)
    pipe.ignore("target_sizes_read_key", "cond_vae_latents_key")
    pipe.close()

    channels = VAES[tokenizer_id].latent_channels
    outside = {latents: "latents"} | ({JOINED: "features and latents"} if semantok.seen else {})
    enc = Side("encoder", outside, net.take("encoder", dict))
    enc.ends(codes_in, "codes", "regularizer.latents_read_key")
    dec = Side(
        "decoder", {codes_out: "codes", noised: "latents", times: "t"}, net.take("decoder", dict)
    )
    dec.ends(velocity, "velocity", "pipeline.reconst_write_key")
    net.close()

    features = enc.fact("channels_in") - channels
    images = image_inputs(semantok, shapes)
    joined = enc.fact("embeds") == "features and latents"
    if images["dino_input"] and not (joined and features > 0):
        raise ConfigError(
            f"encoder: dino_input is true, but the patch embedder reads no {JOINED!r} with image "
            f"features before {channels} latent channels"
        )
    if features and not images["dino_input"]:
        raise ConfigError(f"encoder: channels_in is {features + channels}; expected {channels}")
    for side, fact, expected in (
        (dec, "channels_in", channels), (dec, "channels_out", channels),
        (enc, "codes", len(levels)), (dec, "codes", len(levels)),
        (dec, "head_patch_size", dec.fact("patch_size")),
    ):  # fmt: skip
        if side.fact(fact) != expected:
            raise ConfigError(f"{side.name}: {fact} is {side.fact(fact)}; expected {expected}")

    config = TokenizerConfig(
        name=name, size=grid[1] * 8, registers=enc.fact("registers"), vae=VAES[tokenizer_id],
        encoder=EncoderConfig(
            enc.fact("trunk"), enc.fact("patch_size"), enc.fact("patch_posemb"),
            enc.fact("register_frames"), enc.fact("mask"), features, images["global_feature"],
            images["aggregate"], images["global_mode"],
        ),
        decoder=DecoderConfig(
            dec.fact("trunk"), dec.fact("patch_size"), dec.fact("patch_posemb"),
            dec.facts.get("register_posemb", PosembConfig((1,))), tuple(dec.steps),
            dec.fact("mask"), dec.fact("max_timestep"), dec.fact("head_modulation"),
        ),
        chunk_frames=chunk, overlap=overlap, fsq_levels=levels,
        # As published: guidance 25 in EPFL's demo, 3 in SemanTok's protocol; 30 to 50 steps.
        sampling=SamplingDefaults(30, 3.0 if semantok.seen else 25.0, apg=True),
    )  # fmt: skip

    def rename(key: str) -> str | None:
        if key.startswith("vae.") and (m := VAE_KEY.fullmatch(key)):
            return "vae." + vae_name(m[1])
        if key.startswith("global_token_input.proj.") and config.encoder.global_feature:
            return "encoder.global_proj." + key.rpartition(".")[2]
        m = re.fullmatch(r"(encoder|decoder)\.module_dict\.([^.]+)\.(.+)", key)
        if m is None:
            return None
        side = enc if m[1] == "encoder" else dec
        if m[2] in side.dropped:
            return ""
        for theirs, ours in side.tensors.get(m[2], {}).items():
            if m[3].startswith(theirs):
                rest = m[3][len(theirs) :]
                rest = rest.replace(".attn.", ".attention.")
                return f"{m[1]}.{ours}" + rest.replace(".adaLN_modulation.1.", ".modulation.")
        return None

    return config, rename


def image_inputs(semantok: Options, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """What the `semantok` block says of the image features that the encoder reads. An entry of a
    switch that is off says nothing."""
    grids = semantok.take("dino_input", bool, False)
    vectors = semantok.take("global_token", bool, False)
    facts = {
        "dino_input": grids,
        "aggregate": "avg",
        "global_feature": 0,
        "global_mode": "per_frame",
    }
    if grids:
        facts["aggregate"] = semantok.take("dino_frame_agg", FeatureAggregate)
    if vectors:
        facts["global_mode"] = semantok.take("global_token_mode", GlobalMode)
        shape = shapes.get("global_token_input.proj.weight", [])
        if len(shape) != 2:
            raise ConfigError(
                "semantok: global_token is true, but there is no matrix global_token_input.proj"
            )
        facts["global_feature"] = shape[1]
    semantok.ignore("dino_frame_agg", "global_token_mode")
    semantok.close()
    return facts


def vae_name(key: str) -> str:
    """VidTok's tensor names -> ours, level by level (the decoder counts its levels backwards)."""
    side, rest = key.split(".", 1)

    def level(i: str) -> str:
        return f"{side}.levels.{i if side == 'encoder' else 3 - int(i)}"

    rest = re.sub(r"(norm\w*)\.norm\.", r"\1.", rest)
    if m := re.fullmatch(r"(?:down|up)\.(\d)\.block\.(\d)\.(.+)", rest):
        name = m[3].replace("nin_shortcut.", "skip.conv.")
        return f"{level(m[1])}.spatial.{m[2]}." + re.sub(r"(conv[12])\.", r"\1.conv.", name)
    if m := re.fullmatch(r"(?:down|up)\.(\d)\.(?:down|up)sample\.conv\.(.+)", rest):
        conv = "conv" if side == "encoder" else "conv.conv"
        return f"{level(m[1])}.space.{conv}.{m[2]}"
    if m := re.fullmatch(r"(?:down|up)_temporal\.(\d)\.block\.(\d)\.(.+)", rest):
        return f"{level(m[1])}.temporal.{m[2]}.{m[3]}"
    if m := re.fullmatch(r"(?:down|up)_temporal\.(\d)\.(?:down|up)sample\.(.+)", rest):
        return f"{level(m[1])}.time." + m[2].replace("mix_factor", "mix")
    rest = rest.replace("mid.block_", "middle.block").replace("mid.attn_1.", "middle.attention.")
    rest = rest.replace("attention.proj_out.conv.", "attention.out.")
    return f"{side}." + re.sub(r"attention\.([qkv])\.conv\.", r"attention.\1.", rest)
