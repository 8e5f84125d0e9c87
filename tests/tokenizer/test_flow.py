"""The sampler and its guidance, against formulas written out in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vft_lib.config.sampling import Method
from vft_lib.errors import VftError
from vft_lib.tokenizer.flow import Guidance, Reuse, Schedule, sample


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_straight_flow_is_recovered_in_any_number_of_steps(steps: int) -> None:
    clean, noise = normal(0, 2, 3, 2, 4, 4), normal(1, 2, 3, 2, 4, 4)
    times = []

    def velocity(x: Tensor, t: float) -> tuple[Tensor, None]:
        times.append(t)
        on_the_line = (1 - t) * clean + t * noise
        assert torch.allclose(x, on_the_line, atol=1e-5)
        return noise - clean, None

    got = sample(velocity, noise, Schedule(steps), Guidance())
    assert torch.allclose(got, clean, atol=1e-5)
    assert times == [pytest.approx(i / steps) for i in range(steps, 0, -1)]


def test_state_stays_float32_and_the_noise_is_not_touched() -> None:
    noise = normal(0, 1, 2, 1, 2, 2).half()
    before = noise.clone()
    seen = []

    def velocity(x: Tensor, t: float) -> tuple[Tensor, None]:
        seen.append(x.dtype)
        return x.bfloat16(), None

    assert sample(velocity, noise, Schedule(3), Guidance()).dtype == torch.float32
    assert seen == [torch.float32] * 3
    assert torch.equal(noise, before)


def test_plain_guidance() -> None:
    cond, uncond = normal(0, 2, 3, 2, 2, 2), normal(1, 2, 3, 2, 2, 2)
    expected = uncond.double() + 4.0 * (cond.double() - uncond.double())
    assert torch.allclose(Guidance(4.0, apg=False)(cond, uncond).double(), expected, atol=1e-5)


def apg_by_hand(
    g: float, eta: float, momentum: float, radius: float, pairs: list[tuple[Tensor, Tensor]]
) -> list[np.ndarray]:
    """Spec §7, one clip and channel at a time, in float64."""
    running = None
    out = []
    for cond, uncond in pairs:
        c, u = cond.double().numpy(), uncond.double().numpy()
        d = c - u
        if running is not None:
            d = d + momentum * running
        running = d
        result = np.empty_like(c)
        for clip in range(c.shape[0]):
            for channel in range(c.shape[1]):
                dd, cc = d[clip, channel].ravel(), c[clip, channel].ravel()
                length = math.sqrt((dd**2).sum())
                if radius > 0:
                    dd = dd * min(1.0, radius / length)
                unit = cc / math.sqrt((cc**2).sum())
                parallel = (dd @ unit) * unit
                guided = cc + (g - 1) * (dd - parallel + eta * parallel)
                result[clip, channel] = guided.reshape(c.shape[2:])
        out.append(result)
    return out


@pytest.mark.parametrize("radius", [0.6, 3.0, 0.0, -1.0])
@pytest.mark.parametrize("momentum", [0.0, -0.5, 0.7])
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.3])
def test_projected_guidance(eta: float, momentum: float, radius: float) -> None:
    pairs = [(normal(i, 2, 3, 2, 3, 3), normal(i + 50, 2, 3, 2, 3, 3)) for i in range(3)]
    guidance = Guidance(25.0, eta=eta, momentum=momentum, norm_threshold=radius)
    for (cond, uncond), expected in zip(pairs, apg_by_hand(25.0, eta, momentum, radius, pairs)):
        got = guidance(cond, uncond)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_momentum_runs_on_before_clipping() -> None:
    cond, uncond = normal(0, 1, 1, 1, 3, 3), normal(1, 1, 1, 1, 3, 3)
    guidance = Guidance(2.0, momentum=0.5, norm_threshold=0.1)
    guidance(cond, uncond)
    guidance(cond, uncond)
    assert guidance.running is not None
    assert torch.allclose(guidance.running, 1.5 * (cond - uncond))


def test_projected_guidance_treats_clips_alone() -> None:
    cond, uncond = normal(0, 3, 2, 2, 2, 2), normal(1, 3, 2, 2, 2, 2)
    together, alone = Guidance(9.0, momentum=0.5), Guidance(9.0, momentum=0.5)
    for _ in range(2):
        batch, one = together(cond, uncond), alone(cond[1:2], uncond[1:2])
    assert torch.allclose(batch[1:2], one, atol=1e-6)


def test_no_difference_gives_no_nan() -> None:
    x = normal(0, 1, 2, 1, 2, 2)
    assert torch.equal(Guidance(25.0)(x, x), x)
    zero = torch.zeros_like(x)
    assert torch.isfinite(Guidance(25.0)(zero, x)).all()


def test_guidance_is_used_only_with_an_unconditional_pass() -> None:
    noise, cond = normal(0, 1, 1, 1, 2, 2), normal(1, 1, 1, 1, 2, 2)
    plain = sample(lambda x, t: (cond, None), noise, Schedule(1), Guidance(5.0, apg=False))
    assert torch.allclose(plain, noise - cond)
    guided = sample(lambda x, t: (cond, 0 * cond), noise, Schedule(1), Guidance(5.0, apg=False))
    assert torch.allclose(guided, noise - 5 * cond)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_pinned_frames_come_out_untouched(frames: int) -> None:
    noise, pinned = normal(0, 1, 2, 3, 2, 2), normal(1, 1, 2, frames, 2, 2)

    def velocity(x: Tensor, t: float) -> tuple[Tensor, None]:
        assert torch.equal(x[:, :, :frames], pinned)  # before every step
        return x + 1, None

    got = sample(velocity, noise, Schedule(4), Guidance(), pinned)
    assert torch.equal(got[:, :, :frames], pinned)  # and after the last
    free = sample(lambda x, t: (x + 1, None), noise, Schedule(4), Guidance())
    assert torch.equal(got[:, :, frames:], free[:, :, frames:])


def test_progress_counts_every_step() -> None:
    calls: list[tuple[int, int]] = []
    noise = torch.zeros(1, 1, 1, 1, 1)
    sample(
        lambda x, t: (x, None), noise, Schedule(3), Guidance(),
        progress=lambda *a: calls.append(a),
    )  # fmt: skip
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_raising_in_progress_cancels() -> None:
    class CancelledError(Exception):
        pass

    steps_done = []

    def progress(done: int, total: int) -> None:
        steps_done.append(done)
        if done == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        noise = torch.zeros(1, 1, 1, 1, 1)
        sample(lambda x, t: (x, None), noise, Schedule(9), Guidance(), progress=progress)
    assert steps_done == [1, 2]


# ---------------------------------------------------------------------- schedules


def bent(x: Tensor, t: float) -> tuple[Tensor, None]:
    """dx/dt of a curve whose ends are known: x(t) = x(1)·exp(sin 2 - sin 2t) at t."""
    return -2 * math.cos(2 * t) * x, None


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)]
)  # fmt: skip
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_error_falls_with_the_order_of_the_method(
    method: Method, order: int, shift: float
) -> None:
    exact = math.exp(math.sin(2))
    noise = torch.ones(1, 1, 1, 1, 1)
    errors = [
        abs(float(sample(bent, noise, Schedule(n, method, shift), Guidance())) - exact)
        for n in (16, 32, 64)
    ]
    for a, b in itertools.pairwise(errors):
        assert math.log2(a / b) == pytest.approx(order, abs=0.35)


def test_schedules_run_from_noise_to_clean_and_shift_towards_noise() -> None:
    even, shifted = Schedule(4).times(), Schedule(4, shift=3.0).times()
    assert even == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert shifted == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])  # 3t / (1 + 2t)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
def test_a_schedule_knows_what_will_be_asked(method: Method) -> None:
    schedule, asked = Schedule(3, method, 2.0), []

    def velocity(x: Tensor, t: float) -> tuple[Tensor, None]:
        asked.append(t)
        return x, None

    sample(velocity, torch.ones(1, 1, 1, 1, 1), schedule, Guidance())
    assert asked == schedule.asked()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 5, "method": "rk4"}, "choose euler, heun, midpoint"),
        ({"steps": 5, "shift": 0.0}, "shift is 0"),
        ({"steps": 5, "shift": math.nan}, "shift is nan"),
    ],
)
def test_a_schedule_that_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(VftError, match=message):
        Schedule(**options)


# ---------------------------------------------------------------------- passes left out


def bend(x: Tensor, t: float) -> Tensor:
    """A velocity that changes with the time: fast at first, then hardly."""
    return torch.tanh(x) * (1 + 4 * t**4)


def reused(x: Tensor, threshold: float, steps: int = 20, **more: Any) -> tuple[Tensor, list[float]]:
    """Latents and the times of the passes that ran."""
    ran: list[float] = []

    def velocity(x: Tensor, t: float) -> tuple[Tensor, None]:
        ran.append(t)
        return bend(x, t), None

    reuse = Reuse(threshold, {0, 1, steps - 1}) if threshold else None
    return sample(velocity, x, Schedule(steps), Guidance(), reuse=reuse, **more), ran


def test_passes_are_left_out_where_little_changes() -> None:
    x = normal(0, 1, 3, 2, 4, 4)
    full, every = reused(x, 0)
    assert len(every) == 20
    counts, errors = [], []
    for threshold in (1e-9, 0.05, 0.2, 5.0):
        got, ran = reused(x, threshold)
        counts.append(len(ran))
        errors.append(float((got - full).abs().mean()))
        assert ran[:2] == every[:2]
        assert ran[-1] == every[-1]
    assert counts[0] == 20
    assert errors[0] == 0
    assert counts[0] > counts[1] > counts[2] > counts[3] == 3
    assert errors[0] < errors[1] < errors[2] < errors[3]
    _, ran = reused(x, 0.2)
    early = sum(t > 0.5 for t in ran)
    assert early > len(ran) - early, "passes are spent where the velocity changes"


def test_a_clip_reuses_what_it_would_alone() -> None:
    """The second clip hardly changes, the first one does: passes run for the first alone."""
    both = torch.cat([normal(0, 1, 3, 2, 4, 4), 1e3 + normal(1, 1, 3, 2, 4, 4)])
    together, ran = reused(both, 0.2)
    assert len(ran) < 20
    alone = [reused(x, 0.2) for x in both.split(1)]
    assert len(alone[0][1]) != len(alone[1][1])
    for i, (got, _) in enumerate(alone):
        assert torch.equal(together[i : i + 1], got)


def test_given_frames_do_not_count() -> None:
    x = normal(0, 1, 3, 2, 4, 4)
    pinned = 50 * normal(1, 1, 3, 1, 4, 4)
    free = x[:, :, 1:]
    _, ran = reused(x, 0.2, pinned=pinned)
    assert ran == reused(free, 0.2)[1]


def test_a_plain_run_is_what_it_was() -> None:
    """Without an interval or reuse every number is the same, to the bit."""
    x = normal(0, 2, 3, 2, 4, 4)
    by_hand = x.clone()
    for i in range(20, 0, -1):
        by_hand = by_hand - bend(by_hand, i / 20) * (i / 20 - (i - 1) / 20)
    assert torch.equal(reused(x, 0)[0], by_hand)
