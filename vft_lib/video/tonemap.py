"""High dynamic range as the standard one: PQ and HLG (ITU-R BT.2100) to 8-bit BT.709."""

from __future__ import annotations

from functools import cache

import numpy as np

WHITE = 203.0  # cd/m²: a white page in HDR (ITU-R BT.2408), what standard range shows as 1.0
PEAK = 1000.0  # cd/m²: what becomes the brightest white; most clips are made for such screens
TRANSFERS = {16: "PQ", 18: "HLG"}  # by the number of ITU-T H.273
_ROWS = 64  # at a time: the numbers of a band stay in the processor's cache
_STEPS = 1 << 12  # of tables over the square root of light

_BT2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)  # luminance of R, G, B
_TO_BT709 = {  # by primaries of H.273, linear light; ITU-R BT.2087 and SMPTE RP 177
    1: np.eye(3, dtype=np.float32),
    9: np.array(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
        np.float32,
    ),
    12: np.array(
        [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]], np.float32
    ),
}


def to_sdr(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint16 RGB `[H, W, 3]` over its full range, with a transfer of `TRANSFERS`, as uint8.

    Up to about 90 cd/m² light stays as it is, in parts of `WHITE`; what is brighter is compressed
    with the curve of ITU-R BT.2390, so that `PEAK` becomes 255. The hue stays. Colours that BT.709
    does not have are clipped. `primaries` as in H.273; unknown ones are taken for BT.2020.
    """
    matrix = _TO_BT709.get(primaries, _TO_BT709[9]).T
    light, gain, encoded = _light(transfer), _gain(), _encoded()
    out = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), _ROWS):
        linear = light[pixels[top : top + _ROWS]]  # in parts of PEAK
        if transfer == 18:  # the system's gamma of a screen of 1000 cd/m²
            linear *= np.power(linear @ _BT2020, 0.2)[..., None]
        brightest = np.sqrt(linear.max(-1)).clip(0, 1)
        linear *= gain[(brightest * (_STEPS - 1) + 0.5).astype(np.uint16)][..., None]
        shown = np.sqrt((linear @ matrix).clip(0, 1))
        out[top : top + _ROWS] = encoded[(shown * (_STEPS - 1) + 0.5).astype(np.uint16)]
    return out


@cache
def _light(transfer: int) -> np.ndarray:
    """The light of each of 65536 codes, in parts of `PEAK`: shown (PQ) or of the scene (HLG)."""
    code = np.linspace(0, 1, 1 << 16)
    if transfer == 16:
        return (_pq_light(code) / PEAK).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return scene.astype(np.float32)


@cache
def _gain() -> np.ndarray:
    """By what light is multiplied (parts of `PEAK` to parts of `WHITE`), by the square root of the
    brightest of R, G, B."""
    light = np.linspace(0, 1, _STEPS) ** 2 * PEAK
    top = _pq_code(np.array(PEAK))
    signal, white = _pq_code(light) / top, _pq_code(np.array(WHITE)) / top
    knee = 1.5 * white - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    curve += (-2 * t**3 + 3 * t**2) * white
    mapped = _pq_light(np.where(signal < knee, signal, curve) * top) / WHITE
    gain = np.full(_STEPS, PEAK / WHITE)
    gain[1:] = mapped[1:] / (light[1:] / PEAK)
    return gain.astype(np.float32)


@cache
def _encoded() -> np.ndarray:
    """uint8 by the square root of light: a screen of gamma 2.4 (ITU-R BT.1886)."""
    return np.round(np.linspace(0, 1, _STEPS) ** (2 / 2.4) * 255).astype(np.uint8)


_M1, _M2, _C1, _C2, _C3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875


def _pq_light(code: np.ndarray) -> np.ndarray:
    """cd/m² of a PQ signal, 0 to 1 (SMPTE ST 2084)."""
    power = code ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _pq_code(light: np.ndarray) -> np.ndarray:
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
