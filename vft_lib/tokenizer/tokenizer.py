"""Start here: pixels -> tokens -> pixels, chunk by chunk.

    encode: vae.encode -> encoder -> FSQ ids
    decode: FSQ codes -> keep the first k -> flow sampler -> vae.decode (draft: preview)

Layout everywhere: video `[B,3,T,H,W]` float in [-1,1], latents `[B,C,t,h,w]`, ids `[B,t,k]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoder.preview import preview_decoder
from ..autoencoder.vae import VideoAutoencoder
from ..config.tokenizer import TokenizerConfig, check_fps
from ..errors import VftError
from ..image_features import ImageEncoder, ImageFeatures, check_encoder, features_of
from ..tokens import Tokens
from ..transformer import attention
from ..transformer.graphs import Compiled, Graphs
from . import flow
from .checks import check_budget, check_budgets, check_pins, check_tokens, check_video, given_frames
from .decoder import Decoder
from .encoder import Encoder
from .fsq import FSQ
from .parts import Chunk, Estimate, Progress, counted, finite, in_parts, rows_of, windows
from .sampling import Sampling
from .velocity import Modulations, Passes, chunk_velocity


class Tokenizer(nn.Module):
    """Video autoencoder, register encoder, FSQ and flow decoder of one checkpoint.

    Build it with :func:`vft_lib.load_tokenizer`. `fingerprint` names the weights: tokens carry it,
    and decoding tokens of another is refused. `decoder_mark`: the same, but a student's its own.
    """

    def __init__(self, config: TokenizerConfig, fingerprint: str = "", ops: Any = nn) -> None:
        super().__init__()
        self.config, self.fingerprint, self.decoder_mark = config, fingerprint, fingerprint
        self.vae = VideoAutoencoder(config.vae, ops)
        self.encoder = Encoder(config, ops)
        self.fsq = FSQ(config.fsq_levels)
        self.decoder = Decoder(config, ops)
        self.preview = preview_decoder(config.preview, config.vae.latent_channels, ops)
        self.frames_at_once: int | None = None
        """Latent frames that the autoencoder works on at a time; None: a whole chunk. The same
        result, in less memory: see :meth:`limit_memory`."""
        self.compiled: Compiled | None = None
        self.graphs = Graphs()
        """Steps of the flow decoder as CUDA graphs; `graphs.use` is their switch."""
        self.image_encoder: ImageEncoder | None = None
        """What SemanTok's tokenizers encode with: see :meth:`use_image_encoder`."""
        self.modulations, self.passes = Modulations(), Passes()
        """Of the schedule that was sampled last, and of all so far."""
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
        compiled anew: it pays for many chunks. The results are the same but for rounding. Where it
        cannot be compiled it runs as written, and `compiled.problem` says why."""
        decoder = self.decoder

        def step(*inputs: Any) -> Tensor:  # a compiled module would become a part of this one
            return decoder(*inputs)

        self.compiled = Compiled(step, backend)

    def use_attention(self, backend: str = "auto") -> str:
        """Compute attention with one of `attention.BACKENDS`, or what is best here ("auto", as at
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

    def use_image_encoder(self, encoder: ImageEncoder) -> None:
        """The image network whose features this tokenizer encodes from, where its config says that
        it reads any. VftError if it does not, or was trained with another network."""
        self.image_encoder = check_encoder(self.config.encoder, self.config.name, encoder)

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
        check_video(self.config, video)
        c = self.config
        fps = c.fps if fps is None else float(fps)
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
        for i, window in enumerate(windows(frames, c.chunk_frames, c.overlap), 1):
            # A last chunk that is short is filled by repeating its last frame.
            padding = [window[-1]] * (c.chunk_frames - len(window))
            video = torch.stack(window + padding, dim=2)
            del window, padding  # else two chunks of frames are held while the next one fills
            encode = finite(
                self, self.dtype, f"encoded chunk {i}",
                lambda a, b, tight, video=video: self._read(video[a:b], tight),  # type: ignore[misc]
            )  # fmt: skip
            ids = self.fsq.ids(in_parts(encode, len(video), self._at_once(len(video))))
            del video, encode
            # Later chunks begin with the frame that ended the chunk before: its ids are known.
            yield ids[:, 0 if first else c.overlap :, :budget].cpu()
            first = False
        if first:
            raise VftError("got no frames; a clip has at least one")

    def _read(self, video: Tensor, low_memory: bool) -> Tensor:
        """One chunk -> what its registers say, `[B,t,K,6]`, before quantization."""
        return self.encoder(*self.seen(video, low_memory))

    def seen(self, video: Tensor, low_memory: bool) -> tuple[Tensor, ImageFeatures | None]:
        """What the encoder reads of one chunk."""
        features = self._features_of(video, low_memory)
        latents = self._latents_of(video, low_memory)
        if features is not None:  # SemanTok's protocol: its training latents were stored so
            latents = latents.half().to(latents)
        return latents, features

    def _features_of(self, video: Tensor, low_memory: bool) -> ImageFeatures | None:
        """Of a chunk, where the encoder reads any; VftError if there is no network to make them."""
        if not (c := self.config).encoder.reads_images:
            return None
        network = check_encoder(c.encoder, c.name, self.image_encoder)
        return features_of(c.encoder, network, video, 1 if low_memory else c.chunk_frames)

    def _latents_of(self, video: Tensor, low_memory: bool) -> Tensor:
        at_once = 1 if low_memory else self.frames_at_once
        return self.vae.encode(video.to(self.device, self.dtype), at_once)

    # ------------------------------------------------------------------ tokens -> pixels

    def decode(
        self, tokens: Tokens, sampling: Sampling | None = None, *,
        first_frame: Tensor | None = None, budgets: Sequence[int] | None = None,
        clamp: bool = True, progress: Progress | None = None, **fields: Any,
    ) -> Tensor:  # fmt: skip
        """Tokens -> video `[B,3,T,H,W]` float32 in [-1,1] on the CPU, T = `tokens.frames`.

        How it samples may be given field by field, as in `decode(tokens, steps=25, seed=0)`: see
        :class:`Sampling`. `first_frame` `[B,3,H,W]` in [-1,1] (or `[B,3,T,H,W]`, T = 1 + 4n) pins
        the beginning. `budgets` gives each clip of the batch its own budget, at most that of the
        tokens. `clamp=False` returns values as the model gives them, a little beyond [-1,1].
        `progress(done, total)` counts sampling steps over all chunks; raise in it to cancel.
        Raises VftError if the tokens are another tokenizer's, or no numbers come out.
        """
        chunks = self.decode_chunks(
            tokens, Sampling.of(sampling, fields), first_frame=first_frame, budgets=budgets,
            clamp=clamp, progress=progress,
        )  # fmt: skip
        return torch.cat(list(chunks), dim=2)

    @torch.inference_mode()
    def decode_chunks(
        self, tokens: Tokens, sampling: Sampling | None = None, *,
        first_frame: Tensor | None = None, budgets: Sequence[int] | None = None,
        clamp: bool = True, low_memory: bool = False, progress: Progress | None = None,
        estimate: Estimate | None = None, resume: tuple[int, Tensor] | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The streaming form of :meth:`decode`: yields `[B,3,T_i,H,W]`, one chunk at a time.

        `low_memory` runs the two passes of guidance one after the other, and the autoencoder on one
        latent frame at a time. `estimate(latents)` gets what each sampling step points at,
        `[b,C,t,h,w]` of the clips that are being decoded (on a CPU one after another, else all at
        once): :meth:`draft_picture` of its first latent frame is a preview. `resume` (i, last)
        begins with chunk i, `last` `[B,3,H,W]` being the frame before it as `clamp=False` gives it:
        what then comes is what comes without."""
        c, batch, left = self.config, len(tokens), tokens.frames
        self.check_tokens(tokens)
        sampling = (sampling or Sampling()).settled(c.sampling)
        draw = sampling.noise(batch)
        differ = budgets is not None or tokens.budgets is not None
        keep = rows_of(c, check_budgets(budgets, tokens)) if differ else None
        given = None if first_frame is None else given_frames(c, first_frame, batch)
        begin, last = resume or (0, None)
        if begin and last is not None:
            given = last[:, :, None] if c.overlap else None
        rows = rows_of(c, tokens.ids)
        check_pins(c, self.image_encoder, given is not None, len(rows))
        for i, ids in enumerate(rows):
            overlap = c.overlap if i else 0
            noise = draw(c.latent_shape)
            if i >= begin:
                chunk = Chunk(ids, noise, given, None if keep is None else keep[i])
                count = counted(progress, i, len(rows), batch)
                decode = finite(
                    self, self.dtype, f"decoded chunk {i + 1} of {len(rows)}",
                    partial(self._decode_part, chunk, sampling, count, estimate),
                )  # fmt: skip
                video = in_parts(decode, batch, self._at_once(batch), low_memory)
                if i + 1 == len(rows):
                    self.graphs.clear()
                given = video[:, :, -1:] if c.overlap else None  # unclamped
                fresh = video[:, :, overlap:][:, :, :left].float()
                yield (fresh.clamp(-1, 1) if clamp else fresh).cpu()
            left -= c.chunk_frames - overlap

    def _decode_part(
        self, chunk: Chunk, sampling: Sampling, count: Callable[..., Progress | None],
        estimate: Estimate | None, a: int, b: int, low_memory: bool,
    ) -> Tensor:  # fmt: skip
        """Clips a to b of a chunk -> video `[b-a,3,T,H,W]`, not clamped, on the model's device."""
        part, pinned = chunk[a:b], None
        ids = part.ids
        try:
            if part.given is not None:
                # Laid out anew: a view, or memory that begins elsewhere, may be computed with in
                # another order, and a chunk would not be the same to the bit after a resume.
                given = part.given.clone(memory_format=torch.contiguous_format)
                pinned = self._latents_of(given, low_memory)
                # With prefix masking the registers of given frames are not looked at.
                if "prefix_masking" not in self.config.decoder.steps:
                    features = self._features_of(given, low_memory)
                    own = self.fsq.ids(self.encoder(pinned, features))[..., : ids.shape[2]].cpu()
                    ids = torch.cat([own, ids[:, own.shape[1] :]], dim=1)
            latents = self.sample_latents(
                ids, part.noise, sampling, pinned=pinned, keep=part.keep, progress=count(a, b),
                estimate=estimate, low_memory=low_memory,
            )  # fmt: skip
            latents, at_once = latents.to(self.dtype), 1 if low_memory else self.frames_at_once
            if sampling.quality != "draft" or self.preview is None:
                return self.vae.decode(latents, at_once)
            self.passes.previewed += b - a
            return self.preview(latents, at_once)
        except BaseException:
            self.graphs.clear()
            raise

    def draft_picture(self, latents: Tensor) -> Tensor:
        """Latents `[B,C,t,h,w]` -> RGB `[B,3,4t-3,8h,8w]`, not clamped, by the preview decoder;
        where there is none, by the autoencoder."""
        decode = self.vae.decode if self.preview is None else self.preview
        return decode(latents.to(self.dtype))

    def sample_latents(
        self, ids: Tensor, noise: Tensor, sampling: Sampling, *, pinned: Tensor | None = None,
        keep: Tensor | None = None, progress: Progress | None = None,
        estimate: Estimate | None = None, low_memory: bool = False,
    ) -> Tensor:  # fmt: skip
        """Run the flow sampler for one chunk: ids `[B,t,k]`, noise `[B,C,t,h,w]` -> latents.

        `pinned` `[B,C,p,h,w]`: given latents of the first frames. `keep`: a budget for each clip
        `[B]`, or for each of its latent frames `[B,t]` (default: k for all). Without guidance there
        is no unconditional pass; otherwise both run as one batch, unless `low_memory` or the
        unconditional one is much the shorter of the two.
        """
        sampling = sampling.settled(self.config.sampling)
        velocity = chunk_velocity(self, ids, noise.shape, sampling, pinned, keep, low_memory)
        return flow.sample(
            velocity, noise.to(self.device), sampling.schedule(), sampling.guide(), pinned,
            progress, estimate, sampling.reuser(),
        )  # fmt: skip

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

    def check_budget(self, budget: int) -> int:
        """`budget`, or VftError if it is not 1 .. K."""
        return check_budget(self.config, budget)

    def check_tokens(self, tokens: Tokens) -> None:
        """VftError unless these are tokens of this tokenizer, of the shape that it makes."""
        check_tokens(self.config, self.fingerprint, self.latent_frames(tokens.frames), tokens)
