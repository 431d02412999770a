# SPDX-License-Identifier: Apache-2.0
"""Speech from eSpeak NG, with the time of every word.

eSpeak NG is GPL-3 and optional: it is loaded by ctypes from the package espeakng-loader (extra "voice"). The
library carries state from one utterance into the next (the phase of its flutter, of its noise), so the same
words would never sound the same twice. A fresh copy of the library is loaded for every utterance; that takes
0.4 ms and makes speech a pure function of its arguments.
"""

from __future__ import annotations

import _ctypes
import ctypes
import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soxr

from earnest.errors import MissingExtra

_SYNCHRONOUS, _UTF8, _END_PAUSE, _DONT_EXIT = 2, 1, 0x1000, 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_BUFFER_MS = 1000  # of speech per callback
_EVENT_LIST_END, _EVENT_WORD = 0, 1


@dataclass(frozen=True)
class Voice:
    """What steering a voice needs: its F0 in Hz at eSpeak's pitch 3, 50 and 97, and its syllables a second at
    175 words a minute. What a turn is labelled is measured from its waveform, never taken from here."""

    f0: tuple[float, float, float]
    pace: float = 4.15

    def pitch_setting(self, f0_hz: float) -> int:
        """eSpeak's pitch (3..97) at which the voice speaks near ``f0_hz``."""
        return round(float(np.interp(np.log(f0_hz), np.log(self.f0), (3, 50, 97))))


# Variants of eSpeak's English voices. Left out: those that whisper, are robots, or alternate strong and weak
# cycles (their pitch is heard, and measured, an octave lower).
VOICES: dict[str, dict[str, Voice]] = {
    "train": {
        "Annie": Voice((173, 225, 327)),
        "aunty": Voice((83, 174, 347)),
        "belinda": Voice((134, 225, 400), 4.4),
        "f2": Voice((127, 188, 311)),
        "grandma": Voice((141, 192, 293)),
        "steph": Voice((107, 182, 326), 4.4),
        "Nguyen": Voice((105, 144, 222)),
        "Marco": Voice((85, 127, 210), 3.5),
        "Denis": Voice((77, 96, 162)),
        "Reed": Voice((80, 113, 183)),
        "adam": Voice((80, 99, 164)),
        "gustave": Voice((87, 102, 167)),
        "m1": Voice((73, 90, 149)),
        "m2": Voice((72, 98, 171), 4.05),
        "m3": Voice((84, 101, 166)),
        "m4": Voice((78, 90, 147), 3.95),
        "norbert": Voice((78, 99, 166), 4.3),
        "travis": Voice((85, 98, 159)),
        "marcelo": Voice((88, 94, 144)),
        "croak": Voice((78, 98, 170)),
        "Andrea": Voice((152, 243, 419), 5.1),
        "steph2": Voice((108, 183, 328), 4.4),
        "Diogo": Voice((72, 104, 171)),
        "Henrique": Voice((81, 108, 164)),
        "Hugo": Voice((81, 108, 164)),
        "Storm": Voice((68, 83, 130)),
        "antonio": Voice((76, 110, 177), 5.05),
        "benjamin": Voice((72, 101, 166)),
        "edward": Voice((71, 101, 166)),
        "grandpa": Voice((73, 102, 167)),
        "klatt5": Voice((71, 101, 166)),
        "klatt6": Voice((72, 101, 166)),
        "m8": Voice((69, 85, 136)),
        "michel": Voice((72, 104, 171)),
        "mike2": Voice((72, 89, 142)),
        "pedro": Voice((71, 102, 169), 5.0),
    },
    "practice": {
        "f5": Voice((129, 200, 338)),
        "klatt4": Voice((80, 99, 164)),
        "m7": Voice((86, 102, 163)),
        "edward2": Voice((72, 101, 166)),
        "rob": Voice((87, 104, 140)),
        "anika": Voice((175, 266, 442), 5.1),
        "Gene2": Voice((80, 113, 196), 4.35),
    },
    "validation": {
        "linda": Voice((134, 225, 400), 4.3),
        "steph3": Voice((107, 182, 326), 4.5),
        "pablo": Voice((82, 109, 176), 4.25),
        "max": Voice((81, 99, 164)),
        "Michael": Voice((89, 103, 163)),
    },
    "heldout": {
        "Alicia": Voice((161, 242, 400), 3.62),
        "f4": Voice((112, 174, 296), 3.95),
        "shelby": Voice((129, 170, 254)),
        "ed": Voice((85, 121, 196), 4.4),
        "Jacky": Voice((86, 109, 178), 4.35),
        "klatt3": Voice((80, 99, 164)),
        "m6": Voice((78, 98, 165)),
        "miguel": Voice((79, 107, 172), 4.25),
    },
}
ACCENTS = ("gmw/en", "gmw/en-029")  # names that eSpeak finds without scanning all its voices


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Speech:
    """Samples as synthesised and the start of each word: (position in the text, its length, second)."""

    pcm: np.ndarray  # float32 [samples], full scale 1
    sample_rate: int
    starts: tuple[tuple[int, int, float], ...]


@lru_cache(maxsize=1)
def _paths() -> tuple[str, bytes]:
    try:
        import espeakng_loader
    except ImportError:
        raise MissingExtra("synthetic voices", "espeakng-loader", "voice") from None
    return espeakng_loader.get_library_path(), str(espeakng_loader.get_data_path()).encode()


def check_available() -> None:
    """Raises MissingExtra where eSpeak NG is not installed."""
    _paths()


def speak(
    text: str, voice: str, *, rate: int = 175, pitch: int = 50, pitch_range: int = 50, seed: int = 1
) -> Speech:
    """``text`` spoken by ``voice`` ("gmw/en+f2"); rate in words a minute, pitch and its range 0..99."""
    library_path, data_path = _paths()
    chunks: list[np.ndarray] = []
    starts: list[tuple[int, int, float]] = []

    def receive(samples, count, events) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _EVENT_LIST_END:
            event = events[i]
            if event.type == _EVENT_WORD:
                starts.append((event.text_position - 1, event.length, event.audio_position / 1000))
            i += 1
        return 0

    callback = _Callback(receive)
    data = text.encode()
    with _lock:
        library = ctypes.CDLL(library_path)
        try:
            sample_rate = library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, data_path, _DONT_EXIT)
            if sample_rate <= 0:
                raise RuntimeError(f"eSpeak NG does not start with its data in {data_path.decode()}")
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"eSpeak NG has no voice {voice!r}")
            for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
                library.espeak_SetParameter(parameter, int(value), 0)
            library.espeak_ng_SetRandSeed(int(seed))
            ctypes.CDLL(None).srand(int(seed) & 0x7FFFFFFF)  # the noise of its Klatt voices is libc's rand()
            library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8 | _END_PAUSE, None, None)
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)
    pcm = np.concatenate(chunks).astype(np.float32) / 32768 if chunks else np.zeros(0, np.float32)
    return Speech(pcm, sample_rate, tuple(starts))


@lru_cache(maxsize=4096)
def _word_seconds(word: str) -> float:
    """How long a word takes alone, at 175 words a minute."""
    from earnest.playground.sound import activity

    speech = speak(word, f"{ACCENTS[0]}+m3")
    return activity(soxr.resample(speech.pcm, speech.sample_rate, 16000, quality="MQ")).seconds


def words_per_minute(sentence: str, seconds: float, pace: float) -> float:
    """The rate to ask for, so that a voice of this pace speaks for about ``seconds`` (pauses left out).

    Within 7% (one standard deviation), from a fit to 700 of the playground's sentences at 90 to 340 words a
    minute.
    """
    words = sentence.replace(",", "").split()
    alone = sum(_word_seconds(word) for word in words)
    at_one = 178 * alone - 18.1 * len(words) + 35.0 * sentence.count(",") + 25.1
    return at_one / seconds * 4.15 / pace
