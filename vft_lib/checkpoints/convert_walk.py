"""One walk through a published config: what each module is, and which tensors are its own.

The published config describes a network as two ordered lists of modules that hand tensors to one
another under string keys. :class:`Side` walks such a list once, following which key holds what;
that says where each module stands, so that names chosen by the file's author do not matter. A
class named in the file is a row of `_HANDLERS` or an error: nothing is imported or executed, and an
option we do not know is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

from ..config.fields import typed_value
from ..config.tokenizer import (
    DecoderStep,
    MaskConfig,
    MaskMode,
    PosembConfig,
    PosembKind,
    TransformerConfig,
)
from ..errors import ConfigError

_Switch = Literal["full", "none"]
_REQUIRED: Any = object()
JOINED = "enc_dino_vae_bthwc"  # no module writes it: features, then latents, handed in from outside


class Options:
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


class Module(Options):
    """The options of one module, whose `_target_` is compared with names we know, and no more."""

    def __init__(self, where: str, data: Any, *targets: str) -> None:
        super().__init__(where, data)
        path = self.take("_target_", str)
        self.ignore("_partial_", "_recursive_", "_convert_")
        self.target = path.rpartition(".")[2]
        if self.target not in (targets or _HANDLERS):
            raise ConfigError(f"{where}: unknown _target_ {path[:80]!r}")


class Side:
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
        wrapper = Module(name, data, "SequentialModuleDictWrapper")
        modules = wrapper.take("module_dict", dict)
        wrapper.close()
        for self.key, options in modules.items():
            module = Module(f"{name}.{self.key}", options)
            _HANDLERS[module.target](self, module)
            module.close()

    def fact(self, name: str) -> Any:
        if name not in self.facts:
            raise ConfigError(f"{self.name}: no module says what {name!r} is")
        return self.facts[name]

    def ends(self, key: str, what: str, option: str) -> None:
        if self.holds.get(key) != what:
            raise ConfigError(f"{self.name}: {option} {key!r} is not where the {what} end up")

    def set(self, m: Module, **facts: Any) -> None:
        for name, value in facts.items():
            if name in self.facts:
                raise ConfigError(f"{m.where}: a second {m.target} sets {name!r}")
            self.facts[name] = value

    def read(self, m: Module, option: str, *kinds: str) -> str:
        """What the module reads under `option`; it must be one of `kinds`."""
        return self.reads(m, m.take(option, str), option, *kinds)

    def reads(self, m: Module, key: str, option: str, *kinds: str) -> str:
        held = self.holds.get(key, "nothing")
        if held not in kinds:
            raise ConfigError(
                f"{m.where}.{option} reads {key!r}, which holds {held} at that point; expected "
                f"{' or '.join(kinds)}"
            )
        return held

    def write(self, m: Module, option: str, what: str) -> None:
        self.holds[m.take(option, str)] = what

    def weights(self, **tensors: str) -> None:
        """The beginnings of this module's tensor names (dots as two underscores) -> ours."""
        self.tensors[self.key] = {k.replace("__", "."): v for k, v in tensors.items()}

    def width(self, m: Module) -> int:
        dim = m.take("dim", int)
        if self.facts.setdefault("dim", dim) != dim:
            raise ConfigError(
                f"{m.where}.dim is {dim}; the {self.name} is {self.facts['dim']} wide"
            )
        return dim

    # one handler for each class of module, in the order of a usual file

    def per_sample_op(self, m: Module) -> None:
        op = Options(f"{m.where}.per_sample_op", m.take("per_sample_op", dict))
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

    def patch_embedder(self, m: Module) -> None:
        held = self.read(
            m, "input_tensor_list_read_key", "latents, channels last",
            *["features and latents"] * (self.name == "encoder"),
        )  # fmt: skip
        self.write(m, "patches_list_write_key", "patches")
        m.ignore("n_patches_write_key")
        m.only("flatten_patches", default=False)
        size = m.take("patch_sizes", tuple[int, int, int])
        self.set(m, patch_size=size, channels_in=m.take("channels_in", int), embeds=held)
        self.width(m)
        self.weights(patch_proj__="patch_proj.")

    def positions(self, m: Module) -> None:
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

    def registers(self, m: Module) -> None:
        self.read(m, "input_tensor_list_read_key", "patches")
        self.write(m, "registers_write_key", "registers")
        self.set(m, register_frames=m.take("t_max", int), registers=m.take("n_max", int))
        m.ignore("register_sizes_read_write_key", "n_min", "size_sampling_mode", "ordering_mode")
        self.width(m)
        self.weights(registers="registers")

    def step(self, m: Module, name: DecoderStep) -> None:
        if name in self.steps:
            raise ConfigError(f"{m.where}: a second {m.target} on the registers")
        self.steps.append(name)

    def linear_layer(self, m: Module) -> None:
        self.read(m, "read_key", "codes")
        self.write(m, "write_key", "registers")
        self.set(m, codes=m.take("dim_in", int))
        self.width(m)
        self.weights(proj__="from_codes.")

    def register_step(self, m: Module) -> None:
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

    def packer(self, m: Module) -> None:
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
        switches = Options(
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

    def timestep(self, m: Module) -> None:
        self.read(m, "timesteps_read_key", "t")
        self.write(m, "time_embedding_write_key", "the time embedding")
        self.set(m, max_timestep=m.take("max_timestep", float, 1.0))
        m.only("frequency_embedding_size", default=256)
        self.width(m)
        self.weights(mlp__="time.mlp.")

    def transformer(self, m: Module) -> None:
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

    def unpacker(self, m: Module) -> None:
        self.read(m, "packed_seq_read_key", "the transformed sequence")
        keys = m.take("inner_seq_write_keys", tuple[str, ...])
        if len(keys) != 2:
            raise ConfigError(f"{m.where}: unpacks {list(keys)}; expected patches and registers")
        self.holds |= {keys[0]: "transformed patches", keys[1]: "transformed registers"}
        m.ignore("inner_packed_shapes_read_key", "outer_packed_shapes_read_key")

    def linear_head(self, m: Module) -> None:
        self.read(m, "read_key", "transformed registers")
        self.write(m, "write_key", "codes")
        self.set(m, codes=m.take("dim_out", int))
        m.only("use_mup_readout", default=False)
        m.only("adaLN_emb_read_key", default=None)
        self.width(m)
        self.weights(proj__="to_codes.")

    def patches_head(self, m: Module) -> None:
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

    def training_head(self, m: Module) -> None:
        """Feeds a training loss; its tensors are dropped."""
        self.dropped.add(self.key)
        m.left.clear()


_HANDLERS: dict[str, Callable[[Side, Module], None]] = {
    "PerSampleOp": Side.per_sample_op,
    "PatchEmbedder": Side.patch_embedder,
    "PositionalEmbeddingAdder": Side.positions,
    "RegistersTemporal2D": Side.registers,
    "LinearLayer": Side.linear_layer,
    "MaskedNestedDropout": Side.register_step,
    "MaskedPrefixDropout": Side.register_step,
    "LearnedNullCond": Side.register_step,
    "BlockWiseSequenceInterleavePacker": Side.packer,
    "TimestepEmbedder": Side.timestep,
    "FlexTransformer": Side.transformer,
    "SequenceInterleavedUnpacker": Side.unpacker,
    "LinearHead": Side.linear_head,
    "ToPatchesLinearHead": Side.patches_head,
    "TransformerHead": Side.training_head,
}
