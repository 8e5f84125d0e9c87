"""Start here: pixels -> tokens -> pixels.

    encode: vae.encode -> encoder -> FSQ ids, chunk by chunk
    decode: FSQ codes -> keep the first k -> flow sampler -> vae.decode, chunk by chunk

Layout everywhere: video `[B,3,T,H,W]` float in [-1,1], latents `[B,C,t,h,w]`, ids `[B,t,k]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import TokenizerConfig, check_fps
from ..errors import VftError
from ..tokens import Tokens
from ..transformer import attention
from ..transformer.graphs import Graphs, Outputs
from . import flow
from .decoder import Decoder, Modulation
from .encoder import Encoder
from .fsq import FSQ
from .memory import in_parts

Progress = Callable[[int, int], None]
Estimate = Callable[[Tensor], None]

ONE_BATCH = 0.1  # guidance runs as one batch if that takes at most this share of tokens more
WIDEST = 2.0  # a value of a clip: what is beyond is no overshoot of [-1,1], but another range
AT_ONCE = 64  # timesteps whose modulation is held


class Tokenizer(nn.Module):
    """Video autoencoder, register encoder, FSQ and flow decoder of one checkpoint.

    Build it with :func:`vft_lib.load_tokenizer`. `fingerprint` names the weights: tokens carry it,
    and decoding tokens of another fingerprint is refused.
    """

    def __init__(self, config: TokenizerConfig, fingerprint: str = "", ops: Any = nn) -> None:
        super().__init__()
        self.config, self.fingerprint = config, fingerprint
        self.vae = VideoAutoencoder(config.vae, ops)
        self.encoder = Encoder(config, ops)
        self.fsq = FSQ(config.fsq_levels)
        self.decoder = Decoder(config, ops)
        self.frames_at_once: int | None = None
        """Latent frames that the autoencoder works on at a time; None: a whole chunk. The same
        result, in less memory: see :meth:`limit_memory`."""
        self.compiled: Callable[..., Tensor] | None = None
        self.graphs = Graphs()
        """Steps of the flow decoder as CUDA graphs; `graphs.use` is their switch."""
        self._device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes: set it where weights may lie elsewhere until they are used."""
        return self._device or self.encoder.registers.device

    @device.setter
    def device(self, device: torch.device | None) -> None:
        self._device = device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.registers.dtype

    def limit_memory(self, size: int | None) -> int:
        """Let the autoencoder, which takes more memory beside its weights than the other parts,
        take about `size` bytes a clip (None: what a whole chunk takes), but one latent frame's at
        least. Returns how many latent frames it works on at a time; the results are the same."""
        t = self.config.latent_shape[1]
        each = self.chunk_memory() // t
        fit = t if size is None else max(1, size // each)
        self.frames_at_once = fit if fit < t else None
        return self.frames_at_once or t

    def chunk_memory(self) -> int:
        """Bytes that the autoencoder takes for a chunk of one clip beside its weights: twelve
        activations at the full picture size, its widest place (of the published one at 128 px, on
        a CPU, 7 were measured for encoding and 10.5 for decoding)."""
        c = self.config
        pixels = 4 * c.latent_shape[1] * c.size**2
        return 12 * pixels * c.vae.width * self.dtype.itemsize

    def compile_decoder(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the step of the flow decoder from now on (torch.compile). Shapes never change
        from step to step, but with the number of clips and the budget, for each of which it is
        compiled anew: it pays for many chunks. The results are the same but for rounding."""
        decoder = self.decoder

        def step(*inputs: Any) -> Tensor:  # a compiled module would become a part of this one
            return decoder(*inputs)

        self.compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)

    def use_attention(self, backend: str = "auto") -> str:
        """Compute attention with "sdpa", "xformers", "flex", or what is best here ("auto", as at
        first). Returns the name of what that is; VftError says why one cannot run here. The
        results are the same but for rounding."""
        trunks = (self.encoder.trunk, self.decoder.trunk)
        chosen = [
            attention.choose(backend, trunk.mask, self.device, trunk.head_dim, self.dtype)
            for trunk in trunks
        ]
        for trunk in trunks:
            trunk.backend = backend
        return chosen[1]

    # ------------------------------------------------------------------ pixels -> tokens

    def encode(
        self, video: Tensor, *, budget: int | None = None, fps: float | None = None,
        progress: Progress | None = None,
    ) -> Tokens:  # fmt: skip
        """Clips `[B,3,T,H,W]` (or one, `[3,T,H,W]`) float in [-1,1], any T >= 1, at the model's
        picture size -> Tokens with ids `[B,t,k]`.

        `budget` k defaults to all registers; `fps` is only noted down. A length that does not fill
        its last chunk is padded with the last frame; `decode` cuts the padding off again.
        `progress(done, total)` counts chunks. Raises VftError for a wrong shape or size.
        """
        video = video[None] if video.ndim == 4 else video
        self._check_video(video)
        c = self.config
        fps = c.fps if fps is None else fps
        check_fps(fps)
        total = self.chunk_count(video.shape[2])
        ids = []
        for chunk in self.encode_chunks(video.unbind(2), budget=budget):
            ids.append(chunk)
            if progress is not None:
                progress(len(ids), total)
        return Tokens(
            ids=torch.cat(ids, dim=1), tokenizer=c.name, fingerprint=self.fingerprint,
            frames=video.shape[2], fps=fps, size=(c.size, c.size),
            source_size=(video.shape[3], video.shape[4]),
        )  # fmt: skip

    @torch.inference_mode()
    def encode_chunks(
        self, frames: Iterable[Tensor], *, budget: int | None = None
    ) -> Iterator[Tensor]:
        """The streaming form of :meth:`encode`: frames `[B,3,H,W]` one by one in, the ids
        `[B,t_i,k]` of one chunk after another out. Holds one chunk of frames at a time."""
        c = self.config
        budget = self.check_budget(c.registers if budget is None else budget)
        first = True
        for window in _chunks(frames, c.chunk_frames, c.overlap):
            # A last chunk that is short is filled by repeating its last frame.
            padding = [window[-1]] * (c.chunk_frames - len(window))
            video = torch.stack(window + padding, dim=2)
            del window, padding  # else two chunks of frames are held while the next one fills
            ids = in_parts(
                lambda a, b, tight, video=video: self.ids_of(video[a:b], tight),  # type: ignore[misc]
                len(video), self._at_once(len(video)),
            )  # fmt: skip
            del video
            # Later chunks begin with the frame that ended the chunk before: its ids are known.
            yield ids[:, 0 if first else c.overlap :, :budget].cpu()
            first = False
        if first:
            raise VftError("got no frames; a clip has at least one")

    def ids_of(self, video: Tensor, low_memory: bool = False) -> Tensor:
        """One chunk `[B,3,T,H,W]` (T = 1 + 4n) -> ids `[B,t,K]`. `low_memory`: the autoencoder
        works on one latent frame at a time."""
        return self.fsq.ids(self.encoder(self._latents_of(video, low_memory)))

    def _latents_of(self, video: Tensor, low_memory: bool) -> Tensor:
        at_once = 1 if low_memory else self.frames_at_once
        return self.vae.encode(video.to(self.device, self.dtype), at_once)

    # ------------------------------------------------------------------ tokens -> pixels

    def decode(
        self, tokens: Tokens, *, steps: int | None = None, guidance: float | None = None,
        apg: bool | None = None, seed: int | Sequence[int] = 0,
        generator: torch.Generator | None = None, first_frame: Tensor | None = None,
        budgets: Sequence[int] | None = None, clamp: bool = True,
        method: flow.Method = "euler", shift: float = 1.0, progress: Progress | None = None,
    ) -> Tensor:  # fmt: skip
        """Tokens -> video `[B,3,T,H,W]` float32 in [-1,1] on the CPU, T = `tokens.frames`.

        `steps`, `guidance` (1: none) and `apg` (projected guidance) default to what the checkpoint
        was measured best at. Every clip draws its noise from its own `seed`, so that a batch gives
        each clip what it would get alone; `generator` instead draws in the published order.
        `first_frame` `[B,3,H,W]` in [-1,1] (or `[B,3,T,H,W]`, T = 1 + 4n) pins the beginning.
        `budgets` gives each clip of the batch its own budget, at most that of the tokens.
        `clamp=False` returns values as the model gives them, a little beyond [-1,1]. `method` and
        `shift` as in `flow.Schedule`.
        `progress(done, total)` counts sampling steps over all chunks; raise in it to cancel.
        Raises VftError if the tokens are another tokenizer's.
        """
        chunks = self.decode_chunks(
            tokens, steps=steps, guidance=guidance, apg=apg, seed=seed, generator=generator,
            first_frame=first_frame, budgets=budgets, clamp=clamp, method=method, shift=shift,
            progress=progress,
        )  # fmt: skip
        return torch.cat(list(chunks), dim=2)

    @torch.inference_mode()
    def decode_chunks(
        self, tokens: Tokens, *, steps: int | None = None, guidance: float | None = None,
        apg: bool | None = None, seed: int | Sequence[int] = 0,
        generator: torch.Generator | None = None, first_frame: Tensor | None = None,
        budgets: Sequence[int] | None = None, clamp: bool = True,
        method: flow.Method = "euler", shift: float = 1.0, low_memory: bool = False,
        progress: Progress | None = None, estimate: Estimate | None = None,
        resume: tuple[int, Tensor] | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The streaming form of :meth:`decode`: yields `[B,3,T_i,H,W]`, one chunk at a time.

        `low_memory` runs the two passes of guidance one after the other, and the autoencoder on one
        latent frame at a time. `estimate(latents)` gets what each sampling step points at,
        `[b,C,t,h,w]` of the clips that are being decoded (on a CPU one after another, else all at
        once): `vae.decode` of its first latent frame is a preview. `resume` (i, last) begins with
        chunk i, `last` `[B,3,H,W]` being the frame before it as `clamp=False` gives it: what then
        comes is what comes without."""
        c = self.config
        self.check_tokens(tokens)
        schedule = flow.Schedule(c.sampling.steps if steps is None else steps, method, shift)
        steps = schedule.steps
        scale = c.sampling.guidance if guidance is None else guidance
        use_apg = c.sampling.apg if apg is None else apg
        ids, left, batch = tokens.ids, tokens.frames, len(tokens)
        draw = self.noise_source(batch, seed, generator)
        keep = None if budgets is None else self._check_budgets(budgets, tokens)
        new = c.token_frames - c.overlap  # rows of ids that each later chunk brings
        chunk_count = 1 + -(-(ids.shape[1] - c.token_frames) // new)
        given = first_frame
        if given is not None:
            given = given[:, :, None] if given.ndim == 4 else given
            self._check_video(given)
            if (given.shape[2] - 1) % 4 or given.shape[2] > c.chunk_frames:
                raise VftError(
                    f"got {given.shape[2]} given frames; expected 1 + 4n, at most {c.chunk_frames}"
                )
            if len(given) not in (1, batch):
                raise VftError(
                    f"got first frames for {len(given)} clips, tokens of {batch}; give one, or one "
                    "each"
                )
            if (1 + given.shape[2] // 4) % c.encoder.patch_size[0]:
                raise VftError(
                    f"got {given.shape[2]} given frames, but each token of this tokenizer spans "
                    f"{c.encoder.patch_size[0]} latent frames (of 4 frames each)"
                )
            given = given.expand(batch, -1, -1, -1, -1)
        begin = 0
        if resume is not None:
            begin, last = resume
            if begin:
                given = last[:, :, None] if c.overlap else None
        for i in range(chunk_count):
            noise = draw(c.latent_shape)
            if i < begin:
                left -= c.chunk_frames - (c.overlap if i else 0)
                continue
            if i == 0:
                chunk_ids = ids[:, : c.token_frames]
            else:
                start = c.token_frames + (i - 1) * new
                chunk_ids = ids[:, start : start + new]
                if c.overlap:  # the repeated frame's ids are made anew from the frame itself
                    chunk_ids = torch.cat([chunk_ids[:, :1], chunk_ids], dim=1)

            def clips(
                a: int, b: int, tight: bool, i: int = i, chunk_ids: Tensor = chunk_ids,
                noise: Tensor = noise, given: Tensor | None = given,
            ) -> Tensor:  # fmt: skip
                def report(done: int, total: int) -> None:
                    assert progress is not None
                    progress(i * steps + (a * total + (b - a) * done) // batch, chunk_count * steps)

                try:
                    return self._decode_chunk(
                        chunk_ids[a:b], noise[a:b], schedule, flow.Guidance(scale, use_apg),
                        None if given is None else given[a:b], None if keep is None else keep[a:b],
                        progress and report, estimate, tight,
                    )  # fmt: skip
                except BaseException:
                    self.graphs.clear()
                    raise

            video = in_parts(clips, batch, self._at_once(batch), low_memory)
            given = video[:, :, -1:] if c.overlap else None  # unclamped
            fresh = video[:, :, c.overlap if i else 0 :][:, :, :left]
            left -= fresh.shape[2]
            fresh = fresh.float()
            if i + 1 == chunk_count:
                self.graphs.clear()
            yield (fresh.clamp(-1, 1) if clamp else fresh).cpu()

    def _decode_chunk(
        self, ids: Tensor, noise: Tensor, schedule: flow.Schedule, guidance: flow.Guidance,
        given: Tensor | None, keep: Tensor | None, progress: Progress | None,
        estimate: Estimate | None, low_memory: bool,
    ) -> Tensor:  # fmt: skip
        """ids `[B,t,k]` -> video `[B,3,4t-3,H,W]`, not clamped, on the model's device."""
        pinned = None
        if given is not None:
            # Always laid out anew: a view, or memory that begins elsewhere, may be computed with in
            # another order, and a chunk would not be the same to the bit after a resume.
            given = given.clone(memory_format=torch.contiguous_format)
            pinned = self._latents_of(given, low_memory)
            # With prefix masking the registers of given frames are not looked at.
            if "prefix_masking" not in self.config.decoder.steps:
                own = self.fsq.ids(self.encoder(pinned))[:, :, : ids.shape[2]].cpu()
                ids = torch.cat([own, ids[:, own.shape[1] :]], dim=1)
        latents = self.sample_latents(
            ids, noise, schedule, guidance, pinned, keep, progress, estimate, low_memory
        )
        return self.vae.decode(latents.to(self.dtype), 1 if low_memory else self.frames_at_once)

    def sample_latents(
        self, ids: Tensor, noise: Tensor, schedule: flow.Schedule, guidance: flow.Guidance,
        pinned: Tensor | None = None, keep: Tensor | None = None,
        progress: Progress | None = None, estimate: Estimate | None = None,
        low_memory: bool = False,
    ) -> Tensor:  # fmt: skip
        """Run the flow sampler for one chunk: ids `[B,t,k]`, noise `[B,C,t,h,w]` -> latents.

        `keep` `[B]`: a budget for each clip (default: k for all). With `guidance.scale` 1 there is
        no unconditional pass; otherwise both run as one batch, unless `low_memory` or the
        unconditional one is much the shorter of the two.
        """
        b, t, k = ids.shape
        decoder, guided = self.decoder, guidance.scale != 1
        codes = self.fsq.codes(ids.to(self.device))
        codes = nn.functional.pad(codes, (0, 0, 0, self.config.registers - k))  # beyond k: masked
        keep = torch.full((b,), k) if keep is None else keep.cpu()
        most = int(keep.max())
        span = self.config.encoder.patch_size[0]  # latent frames per row of ids
        prefix = torch.full((b,), 0 if pinned is None else pinned.shape[2] // span)
        keep, prefix = keep.to(self.device), prefix.to(self.device)
        no = torch.zeros_like(keep, dtype=torch.bool)
        full = decoder.prepare(codes, keep, prefix, no)
        registers, weight = decoder.merge(full, most)
        patches = math.prod(noise.shape[2:]) // (t * math.prod(decoder.patch_size[1:]) * span)
        if guided:
            null = decoder.prepare(codes, keep, prefix, ~no)
            short, short_weight = decoder.merge(null, 0)
            more = registers.shape[2] - short.shape[2]
            together = not low_memory and more <= ONE_BATCH * (patches + short.shape[2])
            if together:  # merged alike: beyond the largest budget the null's slots are equal too
                registers = torch.cat([registers, null[:, :, : registers.shape[2]]])
        else:
            short, short_weight, together = registers, 1, False
        # The same for all clips, so computed once; in parts, as it takes memory.
        times = schedule.asked()
        asked = torch.tensor(times, device=self.device)
        index = {time: i for i, time in enumerate(times)}
        modulation: dict[int, Modulation] = {}

        def modulate(time: float) -> Modulation:
            part, i = divmod(index[time], AT_ONCE)
            if part not in modulation:
                modulation.clear()
                some = asked[part * AT_ONCE :][:AT_ONCE]
                modulation[part] = decoder.modulate(some, registers.dtype)
            return modulation[part].at(i)

        step = decoder if self.compiled is None else self.compiled

        def passes(x: Tensor, first: Tensor, second: Tensor, *modulation: Tensor) -> Outputs:
            m = Modulation.of(modulation, decoder.head_modulation is not None)
            if not guided:
                return (step(x, m, first, weight),)
            if not together:
                return step(x, m, first, weight), step(x, m, second, short_weight)
            return step(torch.cat([x, x]), m, first, weight).chunk(2)

        rows = (patches + registers.shape[2]) * len(registers) * t
        graphs = None if low_memory else self.graphs.begin(decoder, self.device, rows)
        run = Graphs.plain if graphs is None else graphs.run
        key = id(self.compiled), guided, together, weight, short_weight, decoder.trunk.backend

        def velocity(x: Tensor, time: float) -> tuple[Tensor, Tensor | None]:
            found = run(key, passes, x, registers, short, *modulate(time).tensors())
            return found if guided else (found[0], None)  # type: ignore[return-value]

        return flow.sample(
            velocity, noise.to(self.device), schedule, guidance, pinned, progress, estimate
        )

    # ------------------------------------------------------------------ shapes and checks

    def _at_once(self, batch: int) -> int:
        """Clips of a batch that are worked on together. On a CPU that is no faster than one after
        another, which gives each the very bytes that it gets alone."""
        return 1 if self.device.type == "cpu" else batch

    def chunk_count(self, frames: int) -> int:
        """Chunks that a clip of this many frames is cut into."""
        return 1 + max(0, -(-(frames - self.config.chunk_frames) // self.config.stride))

    def latent_frames(self, frames: int) -> int:
        """Rows of ids that a clip of this many frames becomes, padding included."""
        c = self.config
        return c.token_frames + (self.chunk_count(frames) - 1) * (c.token_frames - c.overlap)

    def noise_source(
        self, batch: int, seed: int | Sequence[int], generator: torch.Generator | None
    ) -> Callable[[tuple[int, ...]], Tensor]:
        """Draws `[B, *shape]` normal noise in float32 on the CPU, clip by clip; the generators run
        on from chunk to chunk."""
        seeds = [seed] * batch if isinstance(seed, int) else list(seed)
        if len(seeds) != batch:
            raise VftError(f"got {len(seeds)} seeds for {batch} clips; give one, or one each")
        for s in seeds:
            if not -(1 << 63) <= s < 1 << 64:
                raise VftError(f"seed {s} is out of range; choose 0 to {(1 << 64) - 1}")
        generators = [generator or torch.Generator().manual_seed(s) for s in seeds]
        return lambda shape: torch.cat([torch.randn((1, *shape), generator=g) for g in generators])

    def check_budget(self, budget: int) -> int:
        """`budget`, or VftError if it is not 1 .. K."""
        if not 1 <= budget <= self.config.registers:
            raise VftError(
                f"budget {budget} is out of range: tokenizer {self.config.name!r} has "
                f"{self.config.registers} tokens per latent frame; choose 1 to "
                f"{self.config.registers}"
            )
        return budget

    def _check_budgets(self, budgets: Sequence[int], tokens: Tokens) -> Tensor:
        if len(budgets) != len(tokens) or not all(1 <= k <= tokens.budget for k in budgets):
            raise VftError(
                f"got budgets {list(budgets)} for {len(tokens)} clips of {tokens.budget} tokens "
                f"per latent frame; give one each, 1 to {tokens.budget}"
            )
        return torch.tensor(budgets)

    def _check_video(self, video: Tensor) -> None:
        side = self.config.size
        if video.ndim != 5 or video.shape[1] != 3 or 0 in video.shape:
            raise VftError(
                f"got a video of shape {list(video.shape)}; expected [B,3,T,H,W] in [-1,1]"
            )
        if video.shape[3:] != (side, side):
            raise VftError(
                f"got {video.shape[4]}x{video.shape[3]} px; tokenizer {self.config.name!r} takes "
                f"{side}x{side}. read_video(..., size={side}) fits a clip to it"
            )
        if not video.is_floating_point():
            raise VftError(f"got dtype {video.dtype}; expected floating point in [-1,1]")
        for i, frame in enumerate(video.unbind(2)):
            low, high = (float(v) for v in frame.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise VftError(f"frame {i} holds NaN or infinity; expected values in [-1,1]")
            if low < -WIDEST or high > WIDEST:
                raise VftError(
                    f"frame {i} has values from {low:.4g} to {high:.4g}; expected [-1,1]: "
                    "pixels / 127.5 - 1"
                )

    def check_tokens(self, tokens: Tokens) -> None:
        """VftError unless these are tokens of this tokenizer, of the shape that it makes."""
        c = self.config
        if tokens.fingerprint != self.fingerprint:
            raise VftError(
                f"these tokens were made by tokenizer {tokens.tokenizer!r} "
                f"({tokens.fingerprint}), this one is {c.name!r} ({self.fingerprint}): load the "
                "tokenizer they were made with"
            )
        self.check_budget(tokens.budget)
        if tokens.ids.shape[1] != self.latent_frames(tokens.frames):
            raise VftError(
                f"{tokens.frames} frames need {self.latent_frames(tokens.frames)} latent frames, "
                f"these tokens have {tokens.ids.shape[1]}"
            )
        if int(tokens.ids.max()) >= c.vocab or int(tokens.ids.min()) < 0:
            raise VftError(f"ids go up to {int(tokens.ids.max())}; expected less than {c.vocab}")


def _chunks(frames: Iterable[Tensor], size: int, overlap: int) -> Iterator[list[Tensor]]:
    """Windows of `size` frames, each beginning with the last `overlap` of the one before; the last
    may be shorter."""
    window: list[Tensor] = []
    fresh = 0
    for frame in frames:
        if len(window) == size:
            yield window
            window, fresh = window[size - overlap :], 0
        window.append(frame)
        fresh += 1
    if fresh:
        yield window


def part_of(progress: Progress | None, i: int, count: int) -> Progress | None:
    """Progress of part i of `count` equal ones as that of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(i * total + done, count * total)
