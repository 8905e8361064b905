"""Graph passes, one a file, and the order in which they run."""
from __future__ import annotations

from ..pipeline import Pass
from ..sites import Sites
from .cse import cse
from .dce import dce
from .decompose import decompose
from .fold_affine import fold_affine
from .fold_constants import fold_constants
from .frames import convolve_frames
from .fuse_siblings import fuse_siblings
from .recognize import recognize
from .simplify import simplify
from .simplify_layout import simplify_layout


def default_passes(sites: Sites | None = None) -> tuple[Pass, ...]:
    """From an imported graph to one that is ready for layouts, `split_preparation` and fusion.

    Patterns are recognised once the arithmetic is clean and while composite operators are whole; siblings are fused
    after biases have moved into convolutions; decomposition leaves new things to clean up. `sites`: who chooses where the better way
    is not certain (default: the heuristic).
    """
    clean = (Pass("simplify", simplify), Pass("simplify_layout", simplify_layout), Pass("cse", cse), Pass("dce", dce))
    return (
        Pass("dce", dce), Pass("fold_constants", fold_constants), *clean,
        Pass("recognize", recognize), Pass("dce", dce),
        Pass("fold_affine", fold_affine), Pass("dce", dce),
        Pass("convolve_frames", convolve_frames), Pass("dce", dce),
        Pass("decompose", decompose), *clean,
        Pass("fuse_siblings", lambda g: fuse_siblings(g, sites)), *clean,
    )
