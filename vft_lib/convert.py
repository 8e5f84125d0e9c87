"""Published files -> our classes. The only file that knows foreign names.

The published config describes a network as two ordered lists of modules that hand tensors to one
another under string keys. :class:`_Side` walks such a list once, following which key holds what;
that says where each module stands, so that names chosen by the file's author do not matter. A
class named in the file is a row of `_HANDLERS` or an error: nothing is imported or executed, and an
option we do not know is an error that names it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
import yaml
from torch import Tensor

from .checkpoint import check_shapes, weight_shapes
from .config import (
    DecoderConfig,
    DecoderStep,
    EncoderConfig,
    MaskConfig,
    MaskMode,
    PosembConfig,
    PosembKind,
    SamplingDefaults,
    TokenizerConfig,
    TransformerConfig,
    VAEConfig,
    typed_value,
)
from .errors import CheckpointError, ConfigError
from .tensor_files import Source

CONFIG_BYTES = 1 << 24
VAES = {f"vidtok_kl_causal_488_{c}chn": VAEConfig(latent_channels=c) for c in (4, 8, 16)}
VAE_KEY = re.compile(
    r"(?:.*\.)?((?:encoder|decoder)\.(?:conv_in|conv_out|norm_out|mid|(?:down|up)(?:_temporal)?)\..+)"
)
_Switch = Literal["full", "none"]
_REQUIRED: Any = object()


# ------------------------------------------------------------------ from a path to our weights


def read_published(
    source: Source, *, vae: Source | None = None, name: str | None = None
) -> tuple[TokenizerConfig, Mapping[str, Tensor]]:
    """A published folder or file as a config of ours and our weights, read when asked for.

    Where the file carries no video autoencoder it is taken from `vae`, another published file.
    Raises CheckpointError for anything unknown, missing, left over or of another shape.
    """
    where = str(source.path)
    name = name or (source.path.name if source.path.is_dir() else source.path.stem)
    data = read_config(source)
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


class Renamed(Mapping[str, Tensor]):
    """Published tensors under our names, read when asked for; reshaped where `shapes` says: the
    autoencoder's 1 x 1 and temporal kernels are stored with axes of length one that ours lack."""

    def __init__(
        self, places: dict[str, tuple[Source, str]], shapes: Mapping[str, torch.Size] | None = None
    ) -> None:
        self.places, self.shapes = places, shapes

    def __getitem__(self, name: str) -> Tensor:
        source, key = self.places[name]
        return source[key] if self.shapes is None else source[key].reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


TOKENIZER_ENTRIES = frozenset({"video_flex_tok", "videoflextok", "config"})


def read_config(source: Source, known: frozenset[str] = TOKENIZER_ENTRIES) -> dict[str, Any]:
    """`config.json` of a folder, or the entries of a single file's header (in which one of `known`
    must stand), as plain data."""
    file = source.path / "config.json"
    if source.path.is_dir():
        if not file.is_file() or file.stat().st_size > CONFIG_BYTES:
            raise CheckpointError(f"{file} is missing, or no config: the folder is not a tokenizer")
        return parse_config(file.read_bytes(), str(file))
    entries = {k: _literal(v) for k, v in source.metadata.items()}
    if not entries.keys() & known:
        raise CheckpointError(
            f"{source.path} is neither a file of ours nor a published one: its header holds no "
            "config (a published folder is given as the folder, not as the file in it)"
        )
    entries.pop("format", None)  # "pt": whose tensors they are, written by most tools
    return entries


def parse_config(text: bytes | str, where: str) -> dict[str, Any]:
    """JSON -> dict, or CheckpointError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{where} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} holds a {type(data).__name__}; expected an object")
    return data


def _literal(text: str) -> Any:
    """JSON, a Python literal or YAML, whichever it is; never more than plain data."""
    for read in (json.loads, ast.literal_eval, yaml.safe_load):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, yaml.YAMLError):
            continue
    return text


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
    top = _Options("config", data)
    if "config" in top.left:  # sometimes nested
        top = _Options("config", {**data, **top.take("config", dict)}, drop=("config",))
    semantok = _Options("semantok", top.take("semantok", dict, {}))
    top.ignore("hub_vae")
    if "videoflextok" in top.left:
        inner = top.take("videoflextok", dict)
        top.close()
        top = _Options("videoflextok", inner)
        if "config" in top.left:
            top = _Options("videoflextok", {**inner, **top.take("config", dict)}, drop=("config",))
    chunk = top.take("chunk_size", int)
    overlap = top.take("overlap_size_frames", int, 0)
    grid = top.take("vae_video_sizes", tuple[int, ...])
    top.ignore("video_preprocess_args")
    net = _Module("video_flex_tok", top.take("video_flex_tok", dict), "VideoFlexTok")
    top.close()
    if len(grid) != 3 or grid[1] != grid[2] or grid[0] != 1 + (chunk - 1) // 4:
        raise ConfigError(
            f"vae_video_sizes is {list(grid)}; expected [1 + (chunk_size - 1) / 4, side, side]"
        )

    vae = _Module("vae", net.take("vae", dict), "VidTokVAE")
    tokenizer_id = vae.take("tokenizer_id", str)
    if tokenizer_id not in VAES:
        raise ConfigError(f"vae.tokenizer_id is {tokenizer_id!r}; known: {', '.join(VAES)}")
    latents = vae.take("vae_latents_write_key", str)
    vae.ignore("images_read_key", "vae_latents_read_key", "images_reconst_write_key")
    vae.close()
    fsq = _Module("regularizer", net.take("regularizer", dict), "FSQ")
    codes_in, codes_out = fsq.take("latents_read_key", str), fsq.take("quants_write_key", str)
    levels = fsq.take("levels", tuple[int, ...])
    fsq.ignore("tokens_write_key")
    fsq.close()
    noise = net.take("flow_matching_noise_module", dict, {})  # training only
    if noise:
        _Module("flow_matching_noise_module", noise, "PrefixMinRFNoiseModule", "MinRFNoiseModule")
    pipe = _Module("pipeline", net.take("pipeline", dict), "VideoMinRFPipeline")
    noised, times = pipe.take("noised_videos_read_key", str), pipe.take("timesteps_read_key", str)
    velocity = pipe.take("reconst_write_key", str)
    pipe.only("latents_read_key", codes_out, default=codes_out)
    pipe.only("out_channels", VAES[tokenizer_id].latent_channels, default=None)
    pipe.ignore("target_sizes_read_key", "cond_vae_latents_key")
    pipe.close()

    channels = VAES[tokenizer_id].latent_channels
    enc = _Side("encoder", {latents: "latents"}, net.take("encoder", dict))
    enc.ends(codes_in, "codes", "regularizer.latents_read_key")
    dec = _Side(
        "decoder", {codes_out: "codes", noised: "latents", times: "t"}, net.take("decoder", dict)
    )
    dec.ends(velocity, "velocity", "pipeline.reconst_write_key")
    net.close()

    features = enc.fact("channels_in") - channels
    if (features and not semantok.take("dino_input", bool, False)) or features < 0:
        raise ConfigError(f"encoder: channels_in is {features + channels}; expected {channels}")
    for side, fact, expected in (
        (dec, "channels_in", channels), (dec, "channels_out", channels),
        (enc, "codes", len(levels)), (dec, "codes", len(levels)),
        (dec, "head_patch_size", dec.fact("patch_size")),
    ):  # fmt: skip
        if side.fact(fact) != expected:
            raise ConfigError(f"{side.name}: {fact} is {side.fact(fact)}; expected {expected}")
    global_feature = shapes.get("global_token_input.proj.weight", [0, 0])
    semantok.ignore("dino_input", "global_token", "dino_frame_agg", "global_token_mode")
    semantok.close()

    config = TokenizerConfig(
        name=name, size=grid[1] * 8, registers=enc.fact("registers"), vae=VAES[tokenizer_id],
        encoder=EncoderConfig(
            enc.fact("trunk"), enc.fact("patch_size"), enc.fact("patch_posemb"),
            enc.fact("register_frames"), enc.fact("mask"), features, global_feature[-1],
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
        if key.startswith("global_token_input.proj.") and global_feature[-1]:
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


# ------------------------------------------------------------------ modules of a config


class _Options:
    """A dict of a config whose entries are taken one by one; what is left at the end is unknown."""

    def __init__(self, where: str, data: Any, drop: tuple[str, ...] = ()) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
        self.where = where
        self.left = {str(k): v for k, v in data.items() if k not in drop}
        self.seen = bool(data)

    def take(self, key: str, kind: Any, default: Any = _REQUIRED) -> Any:
        """The entry `key`, checked to be of `kind`."""
        if self.left.get(key) is None and default is not _REQUIRED:  # null stands for "not given"
            self.left.pop(key, None)
            return default
        if key not in self.left:
            raise ConfigError(f"{self.where}: option {key!r} is missing")
        value = self.left.pop(key)
        return value if kind is dict and isinstance(value, dict) else typed_value(
            kind, value, f"{self.where}.{key}"
        )  # fmt: skip

    def only(self, key: str, *allowed: Any, default: Any) -> None:
        """An option of which we support these values."""
        value = self.left.pop(key, default)
        if value != default and value not in allowed:
            names = ", ".join(repr(v) for v in allowed or (default,))
            raise ConfigError(f"{self.where}.{key} is {value!r}; supported: {names}")

    def ignore(self, *keys: str) -> None:
        """Options of training and of kernels, which change no result."""
        for key in keys:
            self.left.pop(key, None)

    def close(self) -> None:
        if self.left:
            raise ConfigError(f"{self.where}: unknown option {sorted(self.left)[0]!r}")


class _Module(_Options):
    """The options of one module, whose `_target_` is compared with names we know, and no more."""

    def __init__(self, where: str, data: Any, *targets: str) -> None:
        super().__init__(where, data)
        path = self.take("_target_", str)
        self.ignore("_partial_", "_recursive_", "_convert_")
        self.target = path.rpartition(".")[2]
        if self.target not in (targets or _HANDLERS):
            raise ConfigError(f"{where}: unknown _target_ {path[:80]!r}")


class _Side:
    """One walk through the modules of the encoder or the decoder, in order.

    `holds` says what lies under each key at this point of the walk; `facts` collects the sizes,
    `tensors` says which tensors of which module are which of ours.
    """

    def __init__(self, name: str, holds: dict[str, str], data: dict[str, Any]) -> None:
        self.name, self.holds = name, holds
        self.facts: dict[str, Any] = {}
        self.steps: list[DecoderStep] = []
        self.tensors: dict[str, dict[str, str]] = {}
        self.dropped: set[str] = set()
        self.key = ""
        wrapper = _Module(name, data, "SequentialModuleDictWrapper")
        modules = wrapper.take("module_dict", dict)
        wrapper.close()
        for self.key, options in modules.items():
            module = _Module(f"{name}.{self.key}", options)
            _HANDLERS[module.target](self, module)
            module.close()

    def fact(self, name: str) -> Any:
        if name not in self.facts:
            raise ConfigError(f"{self.name}: no module says what {name!r} is")
        return self.facts[name]

    def ends(self, key: str, what: str, option: str) -> None:
        if self.holds.get(key) != what:
            raise ConfigError(f"{self.name}: {option} {key!r} is not where the {what} end up")

    def set(self, m: _Module, **facts: Any) -> None:
        for name, value in facts.items():
            if name in self.facts:
                raise ConfigError(f"{m.where}: a second {m.target} sets {name!r}")
            self.facts[name] = value

    def read(self, m: _Module, option: str, *kinds: str) -> str:
        """What the module reads under `option`; it must be one of `kinds`."""
        return self.reads(m, m.take(option, str), option, *kinds)

    def reads(self, m: _Module, key: str, option: str, *kinds: str) -> str:
        held = self.holds.get(key, "nothing")
        if held not in kinds:
            raise ConfigError(
                f"{m.where}.{option} reads {key!r}, which holds {held} at that point; expected "
                f"{' or '.join(kinds)}"
            )
        return held

    def write(self, m: _Module, option: str, what: str) -> None:
        self.holds[m.take(option, str)] = what

    def weights(self, **tensors: str) -> None:
        """The beginnings of this module's tensor names (dots as two underscores) -> ours."""
        self.tensors[self.key] = {k.replace("__", "."): v for k, v in tensors.items()}

    def width(self, m: _Module) -> int:
        dim = m.take("dim", int)
        if self.facts.setdefault("dim", dim) != dim:
            raise ConfigError(
                f"{m.where}.dim is {dim}; the {self.name} is {self.facts['dim']} wide"
            )
        return dim

    # one handler for each class of module, in the order of a usual file

    def per_sample_op(self, m: _Module) -> None:
        op = _Options(f"{m.where}.per_sample_op", m.take("per_sample_op", dict))
        name = op.take("_target_", str).rpartition(".")[2]
        op.ignore("_partial_")
        op.close()
        moves = {
            "channels_first_to_last": ("latents", "latents, channels last"),
            "channels_last_to_first": ("velocity, channels last", "velocity"),
        }
        if name not in moves:
            raise ConfigError(f"{m.where}: unknown _target_ {name!r} in per_sample_op")
        self.read(m, "read_key", moves[name][0])
        self.write(m, "write_key", moves[name][1])

    def patch_embedder(self, m: _Module) -> None:
        self.read(m, "input_tensor_list_read_key", "latents, channels last")
        self.write(m, "patches_list_write_key", "patches")
        m.ignore("n_patches_write_key")
        m.only("flatten_patches", default=False)
        size = m.take("patch_sizes", tuple[int, int, int])
        self.set(m, patch_size=size, channels_in=m.take("channels_in", int))
        self.width(m)
        self.weights(patch_proj__="patch_proj.")

    def positions(self, m: _Module) -> None:
        what = self.read(m, "read_key", "patches", "registers")
        if what == "registers" and self.name == "encoder":
            raise ConfigError(f"{m.where}: positions on the encoder's registers are not supported")
        self.write(m, "write_key", what)
        self.width(m)
        posemb = PosembConfig(
            m.take("max_sizes", tuple[int, ...]),
            cast(PosembKind, m.take("posemb_type", PosembKind, "learnable_sum")),
            m.take("posemb_scaling", Literal["absolute", "interpolate"], "absolute") != "absolute",
        )
        if what == "patches":
            self.set(m, patch_posemb=posemb)
            self.weights(posembs="patch_posemb.table")
        else:
            self.set(m, register_posemb=posemb)
            self.step(m, "posemb")
            self.weights(posembs="register_posemb.table")

    def registers(self, m: _Module) -> None:
        self.read(m, "input_tensor_list_read_key", "patches")
        self.write(m, "registers_write_key", "registers")
        self.set(m, register_frames=m.take("t_max", int), registers=m.take("n_max", int))
        m.ignore("register_sizes_read_write_key", "n_min", "size_sampling_mode", "ordering_mode")
        self.width(m)
        self.weights(registers="registers")

    def step(self, m: _Module, name: DecoderStep) -> None:
        if name in self.steps:
            raise ConfigError(f"{m.where}: a second {m.target} on the registers")
        self.steps.append(name)

    def linear_layer(self, m: _Module) -> None:
        self.read(m, "read_key", "codes")
        self.write(m, "write_key", "registers")
        self.set(m, codes=m.take("dim_in", int))
        self.width(m)
        self.weights(proj__="from_codes.")

    def register_step(self, m: _Module) -> None:
        self.read(m, "read_write_key", "registers")
        self.width(m)
        if m.target == "MaskedNestedDropout":
            self.step(m, "nested_dropout")
            self.weights(dropout_mask_token="nested_mask")
        elif m.target == "MaskedPrefixDropout":
            self.step(m, "prefix_masking")
            self.weights(dropout_mask_token="prefix_mask")
        else:
            self.step(m, "null_condition")
            self.weights(nullcond="null")
            m.only("replace_with_single_token", default=False)
        m.ignore(
            "eval_keep_k_read_key", "train_keep_k_write_key", "size_sampling_mode", "dropout_prob",
            "n_min", "n_max",
        )  # fmt: skip

    def packer(self, m: _Module) -> None:
        keys = m.take("input_list_read_keys", tuple[str, ...])
        if len(keys) != 2:
            raise ConfigError(f"{m.where}: packs {list(keys)}; expected patches and registers")
        self.reads(m, keys[0], "input_list_read_keys", "patches")
        self.reads(m, keys[1], "input_list_read_keys", "registers")
        self.write(m, "packed_seq_write_key", "the packed sequence")
        self.write(m, "block_mask_write_key", "the attention mask")
        if m.left.get("emb_packing_fn_write_key") is not None:
            self.write(m, "emb_packing_fn_write_key", "the modulation's packing")
        self.facts["per_kind"] = m.take("per_subseq_embs", bool, False)
        switches = _Options(
            f"{m.where}.cross_timestep_attention_config",
            m.take("cross_timestep_attention_config", dict, {}),
        )
        mask = MaskConfig(
            cast(MaskMode, m.take("mask_mode", MaskMode)),
            switches.take("prefix2prefix", _Switch, "full"),
            switches.take("prefix2nonprefix", _Switch, "full"),
            switches.take("nonprefix2prefix", _Switch, "full"),
            switches.take("nonprefix2nonprefix", Literal["full", "none", "causal"], "full"),
        )
        self.set(m, mask=mask)
        switches.close()
        m.ignore(
            "inner_packed_shapes_write_key", "outer_packed_shapes_write_key", "pad_to_multiple",
            "compile_block_mask", "repa_block_mask_write_key", "emb_packing_fn_write_key",
        )  # fmt: skip

    def timestep(self, m: _Module) -> None:
        self.read(m, "timesteps_read_key", "t")
        self.write(m, "time_embedding_write_key", "the time embedding")
        self.set(m, max_timestep=m.take("max_timestep", float, 1.0))
        m.only("frequency_embedding_size", default=256)
        self.width(m)
        self.weights(mlp__="time.mlp.")

    def transformer(self, m: _Module) -> None:
        self.read(m, "input_seq_read_key", "the packed sequence")
        self.read(m, "block_mask_read_key", "the attention mask")
        self.write(m, "output_seq_write_key", "the transformed sequence")
        kinds = 0
        if m.left.get("adaLN_emb_read_key") is not None:
            self.read(m, "adaLN_emb_read_key", "the time embedding")
            kinds = m.take("adaLN_expansion", int, 1)
            if not self.facts["per_kind"]:
                raise ConfigError(f"{m.where}: adaLN_emb_read_key needs per_subseq_embs: true")
            self.read(m, "adaLN_packing_fn_read_key", "the modulation's packing")
            if kinds not in (1, 2):
                raise ConfigError(f"{m.where}.adaLN_expansion is {kinds}; supported: 1, 2")
        m.ignore("adaLN_emb_read_key", "adaLN_packing_fn_read_key", "adaLN_expansion")
        m.ignore("use_act_checkpoint")
        self.set(m, trunk=TransformerConfig(
            self.width(m), m.take("depth", int), m.take("head_dim", int, 64),
            m.take("mlp_ratio", float, 4.0), kinds,
        ))  # fmt: skip
        self.weights(blocks__="trunk.blocks.")

    def unpacker(self, m: _Module) -> None:
        self.read(m, "packed_seq_read_key", "the transformed sequence")
        keys = m.take("inner_seq_write_keys", tuple[str, ...])
        if len(keys) != 2:
            raise ConfigError(f"{m.where}: unpacks {list(keys)}; expected patches and registers")
        self.holds |= {keys[0]: "transformed patches", keys[1]: "transformed registers"}
        m.ignore("inner_packed_shapes_read_key", "outer_packed_shapes_read_key")

    def linear_head(self, m: _Module) -> None:
        self.read(m, "read_key", "transformed registers")
        self.write(m, "write_key", "codes")
        self.set(m, codes=m.take("dim_out", int))
        m.only("use_mup_readout", default=False)
        m.only("adaLN_emb_read_key", default=None)
        self.width(m)
        self.weights(proj__="to_codes.")

    def patches_head(self, m: _Module) -> None:
        self.read(m, "read_key", "transformed patches")
        self.write(m, "write_key", "velocity, channels last")
        modulated = m.left.get("adaLN_emb_read_key") is not None
        if modulated:
            self.read(m, "adaLN_emb_read_key", "the time embedding")
        m.ignore("adaLN_emb_read_key")
        m.only("use_mup_readout", default=False)
        self.set(
            m, channels_out=m.take("channels_out", int), head_modulation=modulated,
            head_patch_size=m.take("patch_sizes", tuple[int, int, int]),
        )  # fmt: skip
        self.width(m)
        self.weights(proj__="head.", adaLN_modulation__1__="head_modulation.")

    def training_head(self, m: _Module) -> None:
        """Feeds a training loss; its tensors are dropped."""
        self.dropped.add(self.key)
        m.left.clear()


_HANDLERS: dict[str, Callable[[_Side, _Module], None]] = {
    "PerSampleOp": _Side.per_sample_op,
    "PatchEmbedder": _Side.patch_embedder,
    "PositionalEmbeddingAdder": _Side.positions,
    "RegistersTemporal2D": _Side.registers,
    "LinearLayer": _Side.linear_layer,
    "MaskedNestedDropout": _Side.register_step,
    "MaskedPrefixDropout": _Side.register_step,
    "LearnedNullCond": _Side.register_step,
    "BlockWiseSequenceInterleavePacker": _Side.packer,
    "TimestepEmbedder": _Side.timestep,
    "FlexTransformer": _Side.transformer,
    "SequenceInterleavedUnpacker": _Side.unpacker,
    "LinearHead": _Side.linear_head,
    "ToPatchesLinearHead": _Side.patches_head,
    "TransformerHead": _Side.training_head,
}
