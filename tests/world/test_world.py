"""The procedural world: deterministic, overridable, and showing what its captions say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vft_lib.world import captions, world
from vft_lib.world.world import COLORS, MOTIONS, SHAPES, Clip, make_clip


def calm_seed() -> int:
    """The first seed whose scene has a static camera and nothing but the main object."""
    for seed in range(200):
        clip = make_clip(seed, frames=1, size=16)
        if clip.n_objects == 1 and clip.camera == "static":
            return seed
    raise AssertionError("no calm scene among 200 seeds")


@pytest.fixture(scope="module")
def many() -> list[Clip]:
    return [make_clip(seed, frames=9, size=32) for seed in range(400)]


def test_same_seed_same_clip_and_other_seed_other_clip() -> None:
    first, again, other = make_clip(5), make_clip(5), make_clip(6)
    assert first.video.dtype == np.uint8 and first.video.shape == (17, 64, 64, 3)
    assert np.array_equal(first.video, again.video) and first.caption == again.caption
    assert not np.array_equal(first.video, other.video)


def test_more_frames_continue_the_same_motion() -> None:
    for motion in MOTIONS:
        short, long = make_clip(3, motion=motion), make_clip(3, motion=motion, frames=33)
        difference = short.video.astype(int) - long.video[:17]
        assert np.abs(difference).max() <= 1, motion


@pytest.mark.parametrize("size", [16, 48, 65])
def test_any_size(size: int) -> None:
    assert make_clip(1, size=size, frames=2).video.shape == (2, size, size, 3)


def test_overrides_change_only_what_they_name() -> None:
    for seed in range(30):
        drawn = make_clip(seed, size=32)
        same = make_clip(seed, size=32, color=drawn.color, shape=drawn.shape, motion=drawn.motion)
        assert np.array_equal(drawn.video, same.video) and drawn.caption == same.caption
        other = next(name for name in COLORS if name != drawn.color)
        painted = make_clip(seed, size=32, color=other)
        for field in ("shape", "texture", "motion", "background", "camera", "n_objects"):
            assert getattr(painted, field) == getattr(drawn, field)
        words = captions.COLOR_WORDS.get(other, (other,))
        assert painted.color == other and any(f" {w} " in painted.caption for w in words)


def test_override_leaves_the_background_pixels_alone() -> None:
    seed = calm_seed()
    red = make_clip(seed, color="red", motion="still").video.astype(int)
    blue = make_clip(seed, color="blue", motion="still").video.astype(int)
    untouched = (red == blue).all(axis=(0, 3))
    assert 0.4 < untouched.mean() < 0.98


def test_every_name_turns_up(many: list[Clip]) -> None:
    assert {c.color for c in many} == set(COLORS)
    assert {c.shape for c in many} == set(SHAPES)
    assert {c.motion for c in many} == set(MOTIONS)
    assert {c.texture for c in many} == set(world.TEXTURES)
    assert {c.background for c in many} == set(world.BACKGROUNDS)
    assert {c.camera for c in many} == set(world.CAMERAS)
    assert {c.n_objects for c in many} == {1, 2, 3}
    assert 0.55 < np.mean([c.camera == "static" for c in many]) < 0.75


def test_captions_name_colour_shape_and_motion(many: list[Clip]) -> None:
    for clip in many:
        hues = captions.COLOR_WORDS.get(clip.color, (clip.color,))
        nouns, verbs = captions.NOUNS[clip.shape], captions.VERBS[clip.motion]
        verbs += tuple(captions.participle(v) for v in verbs)
        assert any(f" {h} {n} " in clip.caption for h in hues for n in nouns), clip.caption
        assert any(f" {v} " in f"{clip.caption} " for v in verbs), clip.caption
    assert len({clip.caption for clip in many}) > 390


def test_every_name_of_the_world_has_words() -> None:
    assert tuple(captions.NOUNS) == SHAPES
    assert tuple(captions.VERBS) == MOTIONS
    assert tuple(captions.BACKGROUND_WORDS) == world.BACKGROUNDS
    assert tuple(captions.CAMERA_WORDS) == world.CAMERAS
    assert set(captions.COLOR_WORDS) <= set(COLORS)


def test_a_scene_is_worded_in_many_ways() -> None:
    scene = world.draw_scene(3)
    rng = np.random.default_rng(0)
    assert len({scene.caption(rng) for _ in range(50)}) > 40
    assert scene.caption() == make_clip(3).caption


def test_main_colour_shows_in_the_middle_frame() -> None:
    for clip in (make_clip(seed) for seed in range(150)):
        rgb = np.array(COLORS[clip.color])
        pixels = clip.video[8] / 255
        # Textures darken the colour; they do not change its direction in RGB.
        light = pixels @ rgb / (rgb @ rgb)
        off = np.abs(pixels - light[..., None] * rgb).max(axis=-1)
        share = ((off < 0.03) & (light > 0.45)).mean()
        assert share > 0.015, (clip.caption, share)


def test_background_colours_are_far_from_object_colours() -> None:
    for rgb in COLORS.values():
        for other in world.BACKGROUND_COLORS.values():
            assert np.linalg.norm(np.subtract(rgb, other)) > 0.25


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_only_still_objects_stand_still(motion: str, shape: str) -> None:
    video = make_clip(calm_seed(), motion=motion, shape=shape).video.astype(int)
    moved = (np.abs(video - video[:1]).max(axis=-1) > 20).any(axis=0).mean()
    assert moved == 0 if motion == "still" else moved > 0.01


def test_acts_follow_one_another() -> None:
    """In the middle of its part each motion is what it is alone; between two nothing jumps."""
    seed, motions = calm_seed(), ("move_left", "spin", "grow")
    story = make_clip(seed, frames=81, motion=motions[0], then=motions[1:], shape="star").video
    for i, motion in enumerate(motions):
        alone = make_clip(seed, motion=motion, shape="star").video.astype(int)
        assert np.abs(story[27 * i + 8 : 27 * i + 19] - alone[3:14]).max() <= 1, motion
    steps = np.abs(np.diff(story.astype(int), axis=0)).mean((1, 2, 3))
    assert steps[[26, 53]].max() < 4 * steps.mean()


def test_stories_have_one_to_three_acts_and_say_them_in_order() -> None:
    stories = [world.draw_story(seed) for seed in range(300)]
    counts = np.bincount([len(s.main.then) for s in stories], minlength=3) / 300
    assert np.abs(counts - world.ACTS).max() < 0.1
    for seed, story in enumerate(stories):
        acts = (story.main.motion, *story.main.then)
        assert all(a != b for a, b in itertools.pairwise(acts))
        assert acts[0] == world.draw_scene(seed).main.motion
        caption, at = story.caption(), 0
        for motion in acts:
            verbs = [f(v) for v in captions.VERBS[motion] for f in (str, captions.participle)]
            found = [caption.index(v, at) for v in verbs if v in caption[at:]]
            assert found, (motion, caption)
            at = min(found) + 1


def test_errors_name_the_problem() -> None:
    with pytest.raises(ValueError, match=r"unknown color 'mauve'.*red"):
        make_clip(0, color="mauve")
    with pytest.raises(ValueError, match=r"unknown shape 'blob'.*ball"):
        make_clip(0, shape="blob")
    with pytest.raises(ValueError, match=r"unknown motion ''.*still"):
        make_clip(0, motion="")
    with pytest.raises(ValueError, match="frames is 0"):
        make_clip(0, frames=0)
    with pytest.raises(ValueError, match="size is 15"):
        make_clip(0, size=15)
    with pytest.raises(ValueError, match="seed is -1"):
        make_clip(-1)
