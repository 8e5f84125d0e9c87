"""The video autoencoder: shapes, causality in time, and the fold of its latents' scale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from vft_lib.autoencoder.convolutions import TimeUp
from vft_lib.autoencoder.vae import VideoAutoencoder
from vft_lib.config.tokenizer import VAEConfig
from vft_lib.errors import VftError
from vft_lib.train.vae import fold_latent_basis, fold_latent_scale, pixel_metric


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    return VideoAutoencoder(VAEConfig(8, (1, 1, 2, 2), 1, 1, 4)).requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_shapes(vae: VideoAutoencoder, frames: int) -> None:
    latents = vae.encode(normal(0, 2, 3, frames, 16, 24))
    assert latents.shape == (2, 4, 1 + (frames - 1) // 4, 2, 3)
    assert vae.decode(latents).shape == (2, 3, frames, 16, 24)


def test_earlier_latents_do_not_see_later_frames(vae: VideoAutoencoder) -> None:
    video = normal(0, 1, 3, 17, 16, 16)
    latents = vae.encode(video)
    for first in (1, 5, 9, 13):  # latent i is made of frames up to 4i
        changed = video.clone()
        changed[:, :, first:] = normal(1, *changed[:, :, first:].shape)
        other = vae.encode(changed)
        kept = 1 + (first - 1) // 4
        assert torch.allclose(other[:, :, :kept], latents[:, :, :kept], atol=1e-6)
        assert not torch.allclose(other[:, :, kept], latents[:, :, kept], atol=1e-3)


def test_earlier_frames_do_not_see_later_latents(vae: VideoAutoencoder) -> None:
    latents = normal(0, 1, 4, 5, 2, 2)
    video = vae.decode(latents)
    for first in (1, 2, 3, 4):
        changed = latents.clone()
        changed[:, :, first:] += 1
        other, kept = vae.decode(changed), 4 * first - 3
        assert torch.allclose(other[:, :, :kept], video[:, :, :kept], atol=1e-6)
        assert not torch.allclose(other[:, :, kept], video[:, :, kept], atol=1e-4)


def test_a_prefix_encodes_to_a_prefix(vae: VideoAutoencoder) -> None:
    video = normal(0, 1, 3, 17, 16, 16)
    assert torch.allclose(vae.encode(video[:, :, :9]), vae.encode(video)[:, :, :3], atol=1e-6)


def test_the_clip_is_padded_with_its_first_frame_not_with_zeros(vae: VideoAutoencoder) -> None:
    video = normal(0, 1, 3, 1, 16, 16)
    padded = video.expand(-1, -1, 4, -1, -1).permute(0, 2, 3, 4, 1)
    expected = vae.encoder(padded.contiguous()).permute(0, 4, 1, 2, 3)[:, :4]
    assert torch.allclose(vae.encode(video), expected, atol=1e-6)


def test_clips_of_a_batch_do_not_mix(vae: VideoAutoencoder) -> None:
    video = normal(0, 3, 3, 5, 16, 16)
    latents = vae.encode(video)
    assert torch.allclose(vae.encode(video[1:2]), latents[1:2], atol=1e-6)
    assert torch.allclose(vae.decode(latents[1:2]), vae.decode(latents)[1:2], atol=1e-5)


def test_encoding_is_the_posterior_mean(vae: VideoAutoencoder) -> None:
    video = normal(0, 1, 3, 5, 16, 16)
    mean, logvar = vae.moments(video)
    assert mean.shape == logvar.shape == (1, 4, 2, 2, 2)
    assert torch.equal(vae.encode(video), mean)
    assert torch.equal(vae.encode(video), vae.encode(video))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 4, 16, 16),
        (1, 3, 16, 16, 16),
        (1, 3, 5, 20, 16),
        (1, 3, 5, 16, 12),
        (1, 1, 5, 16, 16),
    ],
)
def test_other_shapes_are_refused_by_name(vae: VideoAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(VftError, match=r"\[B,3,T,H,W\].*1 \+ 4n.*multiples of 8") as e:
        vae.encode(torch.zeros(shape))
    assert str(shape) in str(e.value)


def test_folding_the_scale_changes_the_latents_only() -> None:
    torch.manual_seed(1)
    vae = VideoAutoencoder(VAEConfig(8, (1, 1, 2, 2), 1, 1, 4)).requires_grad_(False)
    with torch.no_grad():  # channels of very different size
        vae.encoder.conv_out.conv.weight[:4] *= torch.tensor([0.1, 1, 5, 20]).view(4, 1, 1, 1, 1)
    clips = normal(0, 4, 3, 9, 32, 32)
    mean, logvar = vae.moments(clips)
    before = vae.decode(mean)
    scale = fold_latent_scale(vae, clips)
    assert scale.max() / scale.min() > 10
    new_mean, new_logvar = vae.moments(clips)
    std = new_mean.transpose(0, 1).flatten(1).std(1)
    assert torch.allclose(std, torch.ones(4), atol=1e-3)
    assert torch.allclose(vae.decode(new_mean), before, atol=1e-4)
    # The posterior's width shrinks with the latents.
    shape = (1, 4, 1, 1, 1)
    assert torch.allclose(new_logvar, logvar - 2 * scale.log().view(shape), atol=1e-3)
    one_sigma = mean + (0.5 * logvar).exp()
    new_one_sigma = new_mean + (0.5 * new_logvar).exp()
    assert torch.allclose(new_one_sigma, one_sigma / scale.view(shape), rtol=1e-3, atol=1e-3)


def test_folding_a_basis_undoes_a_mixture_of_channels() -> None:
    """The same autoencoder with its latents' channels mixed gets its own latents back, exactly."""
    torch.manual_seed(2)
    model = VideoAutoencoder(VAEConfig(8, (1, 1, 2, 2), 1, 1, 4)).requires_grad_(False)
    mixed = copy.deepcopy(model)
    mix = torch.randn(4, 4) + 2 * torch.eye(4)
    last, first = mixed.encoder.conv_out.conv, mixed.decoder.conv_in.conv
    last.weight[:4] = torch.einsum("ij,j...->i...", mix, model.encoder.conv_out.conv.weight[:4])
    last.bias[:4] = mix @ last.bias[:4]
    first.weight.copy_(torch.einsum("oj...,ji->oi...", first.weight, torch.linalg.inv(mix)))
    clips = normal(0, 6, 3, 9, 32, 32)
    wanted, got = model.encode(clips), mixed.encode(clips)
    assert (got - wanted).abs().max() > 0.5 * wanted.std()
    assert torch.allclose(mixed.decode(got), model.decode(wanted), atol=1e-4)
    like = fold_latent_basis(mixed, model, clips)
    assert torch.allclose(like, torch.ones_like(like), atol=1e-4)
    assert torch.allclose(mixed.encode(clips), wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
    assert torch.allclose(mixed.decode(wanted), model.decode(wanted), atol=1e-3)


def test_folding_a_basis_makes_other_latents_alike() -> None:
    """Another autoencoder: its pictures stay, its latents get the model's second moments and are
    at least as correlated with the model's as before."""
    torch.manual_seed(3)
    config = VAEConfig(8, (1, 1, 2, 2), 1, 1, 4)
    model, other = (VideoAutoencoder(config).requires_grad_(False) for _ in range(2))
    clips = normal(1, 6, 3, 9, 32, 32)

    def flat(latents: Tensor) -> Tensor:
        return latents.transpose(0, 1).flatten(1).double()

    def alike(a: Tensor, b: Tensor) -> Tensor:
        """The sum of correlations, channel by channel, after each is made white."""
        roots = []
        for z in (a, b):
            values, vectors = torch.linalg.eigh(z @ z.T)
            roots.append(vectors @ torch.diag(values**-0.5) @ vectors.T @ z)
        return (roots[0] * roots[1]).sum()

    x, before = flat(model.encode(clips)), flat(other.encode(clips))
    pictures = other.decode(other.encode(clips))
    like = fold_latent_basis(other, model, clips)
    after = flat(other.encode(clips))
    assert torch.allclose(after @ after.T, x @ x.T, rtol=1e-3, atol=1e-3 * float((x @ x.T).max()))
    assert alike(x, after) > alike(x, before) + 0.1
    assert torch.allclose(alike(x, after), like.sum(), rtol=1e-3)
    assert 1 + 1e-6 > like.max() >= like.min() >= 0
    assert torch.allclose(other.decode(other.encode(clips)), pictures, atol=1e-3)


def test_the_pixel_metric_is_what_the_decoder_does_to_an_error() -> None:
    """Against the whole Jacobian of one small picture; many signs, since each is one sample."""
    torch.manual_seed(4)
    vae = VideoAutoencoder(VAEConfig(8, (1, 1, 2, 2), 1, 1, 4)).requires_grad_(False)
    latents = normal(2, 1, 4, 1, 2, 2)
    jacobian = torch.autograd.functional.jacobian(vae.decode, latents)
    assert isinstance(jacobian, Tensor)
    j = jacobian.flatten(0, 4).flatten(1).unflatten(1, (4, -1))  # (pixels, channels, places)
    wanted = torch.einsum("ncp,ndp->cd", j, j)
    got = pixel_metric(vae, latents.expand(400, -1, -1, -1, -1))
    assert got.trace() == pytest.approx(4, rel=1e-5)
    assert torch.allclose(got, 4 * wanted / wanted.trace(), atol=0.1)
    assert torch.linalg.eigvalsh(got).min() > 0
    assert latents.grad is None


def test_the_pixel_metric_turns_with_the_latents() -> None:
    """An error costs what it does to the pixels, in whatever basis the latents are."""
    torch.manual_seed(5)
    vae = VideoAutoencoder(VAEConfig(8, (1, 1, 2, 2), 1, 1, 4)).requires_grad_(False)
    latents = normal(3, 4, 4, 2, 4, 4)
    before = pixel_metric(vae, latents)
    wide = torch.tensor([0.1, 1, 3, 10]).view(1, 4, 1, 1, 1)
    vae.decoder.conv_in.conv.weight /= wide
    wanted = before / wide.flatten()[:, None] / wide.flatten()
    assert torch.allclose(
        pixel_metric(vae, latents * wide), 4 * wanted / wanted.trace(), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 9])
def test_in_pieces_it_is_the_same(vae: VideoAutoencoder, at_once: int) -> None:
    """Seams along time are exact: every layer that looks back remembers what it has seen."""
    video = normal(0, 2, 3, 17, 16, 24)
    whole, pieces = vae.moments(video), vae.moments(video, at_once)
    for a, b in zip(whole, pieces):
        assert torch.allclose(a, b, atol=1e-5)
    latents = normal(1, 2, 4, 5, 2, 3)
    assert torch.allclose(vae.decode(latents, at_once), vae.decode(latents), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [None, 1])
def test_blocks_that_work_on_parts_give_the_same(
    vae: VideoAutoencoder, monkeypatch: pytest.MonkeyPatch, at_once: int | None
) -> None:
    video = torch.rand(2, 3, 9, 32, 40) * 2 - 1
    latents = vae.encode(video)
    expected = vae.decode(latents)
    monkeypatch.setattr("vft_lib.autoencoder.vae.PART", 1)  # one frame, four rows
    assert torch.allclose(vae.encode(video, at_once), latents, atol=1e-5)
    assert torch.allclose(vae.decode(latents, at_once), expected, atol=1e-5)


def test_in_pieces_it_takes_less_memory() -> None:
    """What is alive at once, in a large enough picture, counted by the profiler."""
    vae = VideoAutoencoder(VAEConfig(16, (1, 1, 2, 2), 1, 1, 4)).requires_grad_(False)
    latents = normal(0, 2, 4, 5, 12, 12)
    peaks = []
    for at_once in (None, 1):
        with torch.profiler.profile(profile_memory=True) as profile, torch.inference_mode():
            vae.decode(latents, at_once)
        alive = peak = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                peak = max(peak, alive)
        peaks.append(peak)
    assert peaks[1] < 0.5 * peaks[0]


def test_gradients_in_bfloat16_are_numbers() -> None:
    """oneDNN's gradient of a 3-D kernel of this shape is NaN on processors with AMX."""
    torch.manual_seed(0)
    up, x = TimeUp(96), torch.randn(3, 3, 32, 32, 96)
    up(x).square().mean().backward()
    wanted = [p.grad for p in up.parameters()]
    up.zero_grad(set_to_none=True)
    up = up.bfloat16()
    up(x.bfloat16()).float().square().mean().backward()
    for p, exact in zip(up.parameters(), wanted):
        assert p.grad is not None and exact is not None
        error = (p.grad.float() - exact).norm() / exact.norm()
        assert error < 0.03, error
