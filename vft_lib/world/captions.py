"""Words for the procedural world: many ways to say what a scene shows.

Plain English in, plain English out: scene names ("ball", "move_left") become nouns, verbs and
phrases picked by a generator. `world.py` says what the names look like.
"""

from __future__ import annotations

import numpy as np

COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "purple": ("purple", "purple", "violet"),
    "cyan": ("cyan", "cyan", "turquoise"),
}
"""Other words for a colour; the rest go by their own name alone."""

NOUNS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "circle", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "ring", "hoop"),
    "cross": ("cross", "cross", "plus sign"),
    "heart": ("heart",),
    "diamond": ("diamond", "diamond", "rhombus"),
}
VERBS: dict[str, tuple[str, ...]] = {
    "still": (
        "stays still", "rests in place", "stands motionless", "does not move", "stands still",
        "is not moving", "sits still",
    ),
    "move_left": (
        "moves left", "moves to the left", "slides left", "travels to the left", "goes left",
        "flies from right to left", "drifts to the left",
    ),
    "move_right": (
        "moves right", "moves to the right", "slides right", "travels to the right", "goes right",
        "flies from left to right", "drifts to the right",
    ),
    "move_up": (
        "moves up", "rises", "floats upwards", "moves to the top", "goes up", "flies upwards",
        "moves upward",
    ),
    "move_down": (
        "moves down", "falls", "sinks downwards", "moves to the bottom", "goes down", "drops",
        "moves downward",
    ),
    "move_diagonal": (
        "moves diagonally", "slides diagonally", "travels diagonally", "flies diagonally",
    ),
    "bounce_horizontal": (
        "bounces from side to side", "bounces horizontally", "bounces left and right",
        "bounces to the left and to the right", "goes back and forth",
        "bounces to the right and back",
        "bounces sideways",
    ),
    "bounce_vertical": (
        "bounces up and down", "bounces vertically", "hops up and down", "bounces on the floor",
        "hops", "jumps up and down",
    ),
    "circle_clockwise": (
        "circles clockwise", "moves in a clockwise circle", "orbits clockwise",
        "moves clockwise around the middle",
    ),
    "circle_counterclockwise": (
        "circles counterclockwise", "moves in a counterclockwise circle", "orbits counterclockwise",
        "circles anticlockwise", "moves counterclockwise around the middle",
    ),
    "spin": ("spins", "spins in place", "rotates", "turns around its center", "twirls"),
    "grow": ("grows", "gets bigger", "grows larger", "becomes bigger", "expands"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller", "dwindles"),
    "pulse": (
        "pulses", "pulsates", "grows and shrinks again and again", "throbs",
        "gets bigger and smaller",
    ),
    "zigzag": (
        "zigzags", "moves in a zigzag", "weaves up and down as it crosses", "goes zigzag",
    ),
    "shake": ("shakes", "trembles", "jitters in place", "vibrates", "wobbles"),
}  # fmt: skip
CAMERA_WORDS: dict[str, tuple[str, ...]] = {
    "static": ("the camera holds still", "the camera does not move"),
    "pan_left": ("the camera pans left", "the camera pans to the left"),
    "pan_right": ("the camera pans right", "the camera pans to the right"),
    "zoom_in": ("the camera zooms in", "the camera moves closer"),
    "zoom_out": ("the camera zooms out", "the camera pulls back"),
}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "plain": (
        "on a plain {a} background", "on {a}", "against a {a} background", "with a {a} background",
    ),
    "gradient": (
        "on a {a} and {b} gradient", "on a gradient from {a} to {b}",
        "on a background that fades from {a} to {b}",
    ),
    "clouds": ("against {a} and {b} clouds", "in front of soft {b} clouds", "in a cloudy {a} sky"),
    "spotlight": ("in front of a {a} glow on {b}", "on {b} with a soft {a} light"),
    "horizon": (
        "with {b} ground below a {a} sky", "over a {b} floor", "above {b} ground under a {a} sky",
    ),
    "checkerboard": ("in front of a checkerboard", "on a {a} and {b} checkerboard"),
    "stripes": ("in front of {a} and {b} stripes", "on a striped {a} background"),
}  # fmt: skip
_NEAR = ("next to", "near", "together with", "beside")
_OPENINGS = ("a video in which", "a clip where", "here")
_SHOWN = ("a video of", "a clip of", "there is", "we see")
_NEXT = ("then", "and then", "after that")
_LAST = (*_NEXT, "and finally", "finally")
FRAME_WORDS: tuple[str, ...] = (
    "a", "an", "and", "as", "while", "big", "small", "something", "down to the right",
    "up to the right", *_NEAR, *_OPENINGS, *_SHOWN, *_LAST,
)  # fmt: skip
"""The words between the others, and those for sizes and headings."""
_IRREGULAR = {
    "gets": "getting", "sits": "sitting", "spins": "spinning",
    "hops": "hopping", "drops": "dropping", "throbs": "throbbing", "zigzags": "zigzagging",
    "flies": "flying",
}  # fmt: skip


def article(words: str) -> str:
    """ "an orange ball", "a red ball"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def participle(action: str) -> str:
    """ "moves to the left" -> "moving to the left"."""
    if action in ("does not move", "is not moving"):
        return "not moving"
    if action.startswith("grows and shrinks"):
        return action.replace("grows and shrinks", "growing and shrinking")
    verb, _, rest = action.partition(" ")
    stem = verb[:-2] if verb.endswith(("shes", "xes", "oes")) else verb[:-1]
    stem = stem[:-1] if stem.endswith("e") else stem
    return f"{_IRREGULAR.get(verb, stem + 'ing')} {rest}".strip()


def describe(
    rng: np.random.Generator,
    *,
    color: str,
    shape: str,
    motion: str,
    texture: str = "plain",
    background: str = "plain",
    background_colors: tuple[str, str] = ("gray", "silver"),
    camera: str = "static",
    heading: str = "",
    size_word: str = "",
    others: tuple[tuple[str, str], ...] = (),
    then: tuple[tuple[str, str], ...] = (),
) -> str:
    """An English caption, with wording and optional details picked by `rng`.

    Colour, shape and motions of the main object are always named. `heading` is an adverb that
    may follow the motion ("to the left"), `size_word` an adjective ("big"), `others` are
    the (color, shape) of the smaller objects, `then` the (motion, heading) of what the main one
    does later. The number of draws depends on `then` alone, so the same `rng` state words two
    scenes alike. Raises ValueError for a shape, motion, background or camera that there are no
    words for.
    """
    for what, name, words in (
        ("shape", shape, NOUNS),
        ("motion", motion, VERBS),
        *(("motion", later, VERBS) for later, _ in then),
        ("background", background, BACKGROUND_WORDS),
        ("camera", camera, CAMERA_WORDS),
    ):
        if name not in words:
            raise ValueError(f"unknown {what} {name!r}; it must be one of: {', '.join(words)}")
    roll = rng.random(14)

    def pick(options: tuple[str, ...], which: int) -> str:
        return options[int(roll[which] * len(options))]

    adjectives = [size_word] if size_word and roll[0] < 0.5 else []
    if texture != "plain" and roll[1] < 0.7:
        adjectives.append(texture)
    hue = pick(COLOR_WORDS.get(color, (color,)), 13)
    subject = article(" ".join([*adjectives, hue, pick(NOUNS[shape], 2)]))
    action = pick(VERBS[motion], 3)
    if heading and roll[4] < 0.6:
        action += f" {heading}"
    acts, links = [action], [""]
    for i, (later, where) in enumerate(then, 1):
        which = rng.random(3)
        verbs, joins = VERBS[later], _LAST if i == len(then) else _NEXT
        acts.append(verbs[int(which[0] * len(verbs))])
        links.append(f", {joins[int(which[1] * len(joins))]} ")
        if where and which[2] < 0.6:
            acts[-1] += f" {where}"
    action = "".join(map("".join, zip(links, acts)))
    acting = "".join(map("".join, zip(links, map(participle, acts))))
    place = ""
    if roll[5] < 0.6:
        first, second = background_colors
        place = pick(BACKGROUND_WORDS[background], 6).format(a=first, b=second)
    company = ""
    if others and roll[7] < 0.75:
        things = " and ".join(article(f"small {c} {s}") for c, s in others)
        company = f"{pick(_NEAR, 8)} {things}"
    view = ""
    if roll[9] < (0.8 if camera != "static" else 0.08):
        link = "as" if roll[11] < 0.4 and camera != "static" else "while"
        view = f"{link} {pick(CAMERA_WORDS[camera], 10)}"
    form, chosen = roll[12], int(roll[11] * 12)
    doing = f"{subject} {acting}"
    if form < 0.5:
        parts = [f"{subject} {action}", place, company, view]
    elif form < 0.65:
        parts = [doing, place, company, view]
    elif form < 0.75:
        parts = [f"{_SHOWN[chosen % len(_SHOWN)]} {doing}", place, company, view]
    elif form < 0.85:
        parts = [f"{_OPENINGS[chosen % len(_OPENINGS)]} {subject} {action}", place, company, view]
    elif form < 0.93 and place:
        parts = [f"{place}, {subject} {action}", company, view]
    else:
        parts = [f"{subject} {company}".strip(), f"{action} {place}".strip(), view]
    return " ".join(part for part in parts if part)


def brief(rng: np.random.Generator, *, color: str, shape: str, motion: str) -> str:
    """A caption of a few words that may leave out any one of the three: "red ball", "a ball
    bouncing up and down", "something blue that spins"."""
    roll = rng.random(5)
    hues, verbs = COLOR_WORDS.get(color, (color,)), VERBS[motion]
    hue, noun = hues[int(roll[0] * len(hues))], NOUNS[shape][int(roll[1] * len(NOUNS[shape]))]
    action = verbs[int(roll[2] * len(verbs))]
    if roll[3] < 0.25:
        return f"{hue} {noun}" if roll[4] < 0.5 else article(f"{hue} {noun}")
    if roll[3] < 0.4:
        return f"{article(noun)} {participle(action) if roll[4] < 0.5 else action}"
    if roll[3] < 0.5:
        return f"something {hue} {participle(action)}"
    if roll[3] < 0.75:
        return f"{hue} {noun} {participle(action)}"
    return f"{article(f'{hue} {noun}')} {action if roll[4] < 0.6 else participle(action)}"
