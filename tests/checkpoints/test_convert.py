"""Published files become ours: every tensor once, nothing executed, everything odd refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from published import SMALL_VAE, VAE_ID, config_of, renamed, tensors_of, vae_tensors, write_folder
from safetensors.torch import save_file
from torch import Tensor

from vft_lib.checkpoints import convert
from vft_lib.cli.vft import main
from vft_lib.files.tensor_files import Source
from vft_lib.models.loading import load_tokenizer
from vft_lib.tokenizer.tokenizer import Tokenizer

CASE = "time-causal"


@pytest.fixture(autouse=True)
def _small_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(convert.VAES, VAE_ID, SMALL_VAE)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return tensors_of(CASE)


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    return write_folder(tmp_path / "made-up", config_of(CASE), tensors)


# ---------------------------------------------------------------------- what is read


def test_a_folder_becomes_one_file(
    folder: Path, tmp_path: Path, tensors: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(folder), str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    tok = load_tokenizer(out, device="cpu")
    assert tok.fingerprint == facts["fingerprint"]
    assert tok.config.name == "made-up"
    assert (tok.config.size, tok.config.registers, tok.config.overlap) == (32, 16, 1)
    source = "video_tokenizer.decoder.module_dict.dec_transformer.blocks.2.mlp.fc3.weight"
    weights = tok.state_dict()
    assert torch.equal(weights["decoder.trunk.blocks.2.mlp.fc3.weight"], tensors[source])
    stored = sum(v.numel() for k, v in tok.state_dict().items())
    dropped = sum(v.numel() for k, v in tensors.items() if ".dec_repa_head." in k)
    assert dropped > 0
    assert stored == sum(v.numel() for v in tensors.values()) - dropped
    tokens = tok.encode(torch.rand(1, 3, 20, 32, 32) * 2 - 1)
    assert tok.decode(tokens.truncate(3), steps=1).shape == (1, 3, 20, 32, 32)


def test_the_folder_loads_as_it_is_and_tokens_pass_between_the_two(
    folder: Path, tmp_path: Path
) -> None:
    """Whatever dtype it is stored in, it is the same tokenizer."""
    marks = {load_tokenizer(folder, device="cpu").fingerprint}
    for dtype in ("bf16", "fp16", "fp32"):
        out = tmp_path / f"{dtype}.safetensors"
        assert main(["convert", str(folder), str(out), "--dtype", dtype]) == 0
        tok = load_tokenizer(out, device="cpu")
        assert tok.encoder.registers.dtype == torch.float32, "dtype of use, not of storage"
        marks.add(tok.fingerprint)
        stored = set(Source.open(out).dtypes.values())
        assert stored == {dtype.upper().replace("FP", "F")}
    assert len(marks) == 1


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False)  # the order of modules is their order of work


def test_one_file_with_its_config_in_the_header(
    tmp_path: Path, tensors: dict[str, Tensor], folder: Path
) -> None:
    config = config_of(CASE)
    expected = load_tokenizer(folder, device="cpu").fingerprint
    for i, write in enumerate((json.dumps, repr, as_yaml)):
        header = {k: write(v) for k, v in config.items()}
        save_file(tensors, tmp_path / f"{i}.safetensors", header)
        assert load_tokenizer(tmp_path / f"{i}.safetensors", device="cpu").fingerprint == expected


def test_names_prefix_and_nesting_do_not_matter(folder: Path, tmp_path: Path) -> None:
    expected = load_tokenizer(folder, device="cpu").fingerprint
    config = config_of(CASE)
    other = write_folder(tmp_path / "a", {"config": config}, tensors_of(CASE, prefix=""))
    assert load_tokenizer(other, device="cpu").fingerprint == expected
    other = write_folder(tmp_path / "b", *renamed(config, tensors_of(CASE, prefix="any.thing.")))
    assert load_tokenizer(other, device="cpu").fingerprint == expected
    other = write_folder(tmp_path / "c", {"videoflextok": config}, tensors_of(CASE))
    tok = load_tokenizer(other, device="cpu")
    assert tok.fingerprint == expected
    assert tok.config.sampling.guidance == 25.0


def test_modules_that_do_not_depend_on_each_other_may_change_places(
    folder: Path, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    config = config_of(CASE)
    modules = config["video_flex_tok"]["decoder"]["module_dict"]
    first = ["dec_time_embedder", "dec_noise_channels_to_last", "dec_noise_patch_emb"]
    order = first + [k for k in modules if k not in first]
    config["video_flex_tok"]["decoder"]["module_dict"] = {k: modules[k] for k in order}
    other = write_folder(tmp_path / "other", config, tensors)
    expected = load_tokenizer(folder, device="cpu")
    assert load_tokenizer(other, device="cpu").fingerprint == expected.fingerprint


def test_the_order_of_position_and_dropout_is_read(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    config = config_of(CASE)
    modules = config["video_flex_tok"]["decoder"]["module_dict"]
    order = ["dec_from_latents", "dec_nested_dropout", "dec_registers_posemb_module"]
    order += [k for k in modules if k not in order]
    config["video_flex_tok"]["decoder"]["module_dict"] = {k: modules[k] for k in order}
    tok = load_tokenizer(write_folder(tmp_path / "other", config, tensors), device="cpu")
    assert tok.decoder.steps == ("nested_dropout", "posemb", "prefix_masking", "null_condition")


def test_the_autoencoder_of_another_repository(
    folder: Path, tmp_path: Path, tensors: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    hub = {"repo": "someone/other", "revision": "abc"}
    without = {k: v for k, v in tensors.items() if not k.startswith("video_tokenizer.vae.")}
    config = {"videoflextok": config_of(CASE), "hub_vae": hub}
    other = write_folder(tmp_path / "other", config, without)
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(other), str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "someone/other" in error
    assert "abc" in error
    assert "--vae" in error
    assert main(["convert", str(other), str(out), "--vae", str(folder)]) == 0
    expected = load_tokenizer(folder, device="cpu").fingerprint
    assert load_tokenizer(out, device="cpu").fingerprint == expected
    bare = {k.removeprefix("vae.vidtok."): v for k, v in vae_tensors().items()}
    save_file(bare, tmp_path / "bare.safetensors")
    assert main(["convert", str(other), str(out), "--vae", str(tmp_path / "bare.safetensors")]) == 0
    assert load_tokenizer(out, device="cpu").fingerprint == expected


# ---------------------------------------------------------------------- what is refused

Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


def modules(config: dict[str, Any], side: str) -> dict[str, Any]:
    return config["video_flex_tok"][side]["module_dict"]


def option(side: str, name: str, key: str, value: Any) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        modules(config, side)[name][key] = value

    return change


def drop_module(side: str, name: str) -> Change:
    return lambda config, tensors: modules(config, side).pop(name)


def again(side: str, name: str) -> Change:
    """The same module a second time, before the packer."""

    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        both = list(modules(config, side).items())
        at = [k for k, _ in both].index(name)
        both.insert(at, ("twin", copy.deepcopy(modules(config, side)[name])))
        config["video_flex_tok"][side]["module_dict"] = dict(both)

    return change


def top(key: str, value: Any) -> Change:
    return lambda config, tensors: config.update({key: value})


def net(key: str, entry: str, value: Any) -> Change:
    return lambda config, tensors: config["video_flex_tok"][key].update({entry: value})


def tensor(key: str, value: Tensor | None) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors.pop(f"video_tokenizer.{key}", None)
        if value is not None:
            tensors[f"video_tokenizer.{key}"] = value

    return change


ONE = torch.ones(1)
FC1 = "encoder.module_dict.enc_transformer.blocks.1.mlp.fc1.weight"
REFUSED: dict[str, tuple[Change, str]] = {
    "unknown target": (option("encoder", "enc_transformer", "_target_", "a.b.Mamba"), "a.b.Mamba"),
    "os.system": (option("encoder", "enc_transformer", "_target_", "os.system"), "os.system"),
    "os.system at the top": (top("video_flex_tok", {"_target_": "os.system"}), "os.system"),
    "os.system as an op": (
        option("decoder", "dec_channels_to_first", "per_sample_op", {"_target_": "os.system"}),
        "system",
    ),
    "target is a number": (option("encoder", "enc_transformer", "_target_", 3), "expected str"),
    "mask mode": (option("decoder", "dec_seq_packer", "mask_mode", "diagonal"), "'diagonal'"),
    "mask switch": (
        option("decoder", "dec_seq_packer", "cross_timestep_attention_config", {"a2b": "full"}),
        "unknown option 'a2b'",
    ),
    "position type": (
        option("encoder", "enc_posemb_module", "posemb_type", "rope"), "'rope'"
    ),
    "unknown option": (option("encoder", "enc_transformer", "window", 3), "'window'"),
    "unknown top option": (top("fps_mode", "x"), "'fps_mode'"),
    "unknown vae": (net("vae", "tokenizer_id", "wan"), "'wan'"),
    "single null token": (
        option("decoder", "dec_latent_dropout", "replace_with_single_token", True),
        "replace_with_single_token",
    ),
    "no embedding per kind": (
        option("decoder", "dec_seq_packer", "per_subseq_embs", False), "per_subseq_embs"
    ),
    "three kinds": (option("decoder", "dec_transformer", "adaLN_expansion", 3), "adaLN_expansion"),
    "readout": (option("encoder", "enc_to_latents", "use_mup_readout", True), "use_mup_readout"),
    "read of nothing": (option("encoder", "enc_transformer", "input_seq_read_key", "x"), "'x'"),
    "end elsewhere": (net("pipeline", "reconst_write_key", "x"), "velocity"),
    "no registers": (drop_module("encoder", "enc_register_module"), "enc_registers"),
    "no unpacker": (drop_module("decoder", "dec_unpacker"), "dec_patches"),
    "no dropout": (drop_module("decoder", "dec_nested_dropout"), "nested_dropout"),
    "two positions": (again("decoder", "dec_registers_posemb_module"), "second"),
    "two transformers": (again("encoder", "enc_transformer"), "enc_packed_seq"),
    "width": (option("encoder", "enc_to_latents", "dim", 65), "65"),
    "levels": (net("regularizer", "levels", [8, 8]), "codes"),
    "huge levels": (net("regularizer", "levels", [1000] * 6), "65,536"),
    "negative depth": (option("encoder", "enc_transformer", "depth", -1), "depth"),
    "endless depth": (option("encoder", "enc_transformer", "depth", 1 << 19), "depth"),
    "depth is text": (option("encoder", "enc_transformer", "depth", "2"), "depth"),
    "grid": (top("vae_video_sizes", [5, 4, 6]), "vae_video_sizes"),
    "chunk": (top("chunk_size", 13), "vae_video_sizes"),
    "overlap": (top("overlap_size_frames", 2), "overlap"),
    "modules are a list": (net("encoder", "module_dict", []), "module_dict"),
    "no net": (top("video_flex_tok", None), "video_flex_tok"),
    "missing tensor": (tensor(FC1, None), "trunk.blocks.1.mlp.fc1"),
    "extra tensor": (tensor("encoder.module_dict.enc_transformer.x", ONE), "enc_transformer.x"),
    "tensor of no module": (tensor("encoder.module_dict.other.proj.weight", ONE), "other"),
    "extra registers": (
        tensor("encoder.module_dict.enc_register_module.extra_registers", torch.ones(1, 2, 3)),
        "extra_registers",
    ),
    "extra tensor in the autoencoder": (tensor("vae.vidtok.encoder.mid.x", ONE), "mid.x"),
    "loss of the autoencoder": (tensor("vae.vidtok.loss.logvar", ONE), "loss.logvar"),
    "wrong shape": (tensor(FC1, torch.ones(3, 4)), "blocks.1.mlp.fc1.weight"),
    "wrong shape in the autoencoder": (
        tensor("vae.vidtok.encoder.conv_in.conv.weight", torch.ones(3, 3)), "conv_in"
    ),
    "integers": (tensor(FC1, torch.ones(170, 64, dtype=torch.int32)), "I32"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_clear_line_and_exit_2(
    tmp_path: Path, tensors: dict[str, Tensor], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, reason = REFUSED[name]
    config, changed = config_of(CASE), dict(tensors)
    change(config, changed)
    folder = write_folder(tmp_path / "made-up", config, changed)
    refused(folder, reason, capsys)


def refused(path: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = path.parent / "out.safetensors"
    assert main(["convert", str(path), str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert len(error) < 600
    assert reason in error, error
    assert not out.exists()
    assert [p for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_damaged_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused(folder, "not a readable safetensors file", capsys)
    weights.write_bytes((2 << 30).to_bytes(8, "little") + whole[8:])
    refused(folder, "not a readable safetensors file", capsys)
    weights.write_bytes(b"")
    refused(folder, "not a readable safetensors file", capsys)
    weights.write_bytes(whole)
    for text in ("", "{", "[]", "3", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        config.write_text(text)
        refused(folder, "", capsys)
    config.unlink()
    refused(folder, "config.json is missing", capsys)
    weights.unlink()
    refused(folder, "holds no .safetensors file", capsys)
    refused(folder / "none", "does not exist", capsys)


@pytest.mark.parametrize(
    "text", ["__import__('os').abort()", "!!python/object/apply:os.abort []", "{" * 5000, "&a [*a]"]
)
def test_a_header_is_data(
    tmp_path: Path, tensors: dict[str, Tensor], capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(
        tensors, path, {"video_flex_tok": text, "chunk_size": "17", "vae_video_sizes": "[5,4,4]"}
    )
    refused(path, "", capsys)


def test_two_files_with_one_tensor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "more.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    refused(folder, "in two of its files", capsys)


@pytest.mark.slow
def test_a_large_file_is_never_held_twice(tmp_path: Path) -> None:
    """150 MB of weights are converted in well under that much memory, cast included."""
    config, dim = config_of("options2"), 1024
    for side in ("encoder", "decoder"):
        for module in modules(config, side).values():
            if "dim" in module:
                module["dim"] = dim
            if "depth" in module:
                module |= {"depth": 3, "head_dim": 64}
    with torch.device("meta"):
        made = Tokenizer(convert.architecture(config, {}, "wide")[0])
    size = sum(v.numel() for k, v in made.state_dict().items() if not k.startswith("vae."))
    assert size > 50e6
    script = textwrap.dedent(
        """
        import json, sys, threading, time
        from pathlib import Path
        import torch
        from published import SMALL_VAE, VAE_ID
        from vft_lib.checkpoints import convert
        from vft_lib.models import loading

        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(s.split()[1]) * 1024 for s in lines if s.startswith("RssAnon"))

        convert.VAES[VAE_ID] = SMALL_VAE
        torch.ones(8, 8) @ torch.ones(8, 8)
        before, peak, done = anonymous(), [0], threading.Event()

        def watch():
            while not done.is_set():
                peak[0] = max(peak[0], anonymous())
                time.sleep(0.002)

        thread = threading.Thread(target=watch)
        thread.start()
        loading.convert(sys.argv[1], sys.argv[2], dtype=torch.float16)
        done.set()
        thread.join()
        print(peak[0] - before)
        """
    )
    state = published_zeros(config, dim)
    folder = write_folder(tmp_path / "wide", config, state)
    stored = (folder / "model.safetensors").stat().st_size
    assert stored > 200e6
    del state
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "out.safetensors")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
        env={"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parents[1]}"},
    )  # fmt: skip
    assert int(result.stdout) < 0.4 * stored


def published_zeros(config: dict[str, Any], dim: int) -> dict[str, Tensor]:
    """Tensors of the right shapes under the published names, without making up numbers."""
    small = tensors_of("options2")
    plan_config, rename = convert.architecture(config, {}, "wide")
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in Tokenizer(plan_config).state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for key, value in small.items():
        ours = rename(key.removeprefix("video_tokenizer."))
        assert ours is not None
        tensors[key] = value if ours.startswith("vae.") else torch.zeros(wanted[ours])
    for key in [k for k in tensors if ".blocks.1." in k]:  # one block more in the encoder
        if "enc_transformer" in key:
            tensors[key.replace(".blocks.1.", ".blocks.2.")] = tensors[key].clone()
    return tensors
