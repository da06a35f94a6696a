"""Natural robustness: mean accuracy under corruptions, and errors relative to AlexNet's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seatrial.errors import BadInput

ALEXNET_ERROR: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's mean top-1 error over the five severities (published with the code of AugMix, Hendrycks et al. 2020)."""
ALEXNET_CLEAN_ERROR = 1 - 0.56522
"""As torchvision states for its AlexNet weights (IMAGENET1K_V1)."""
SEVERITIES = (1, 2, 3, 4, 5)


def natural_robustness(accuracy: Mapping[tuple[str, int], float]) -> float:
    """Return NR, a fraction: the mean top-1 accuracy over the 15 corruptions at 5 severities.

    `accuracy` maps (corruption, severity) to a fraction. Raises BadInput where one of the 75 is missing. Source:
    RobustMQ (Xiao et al. 2023), "natural robustness".
    """
    return float(_rows(accuracy).mean())


def mean_corruption_error(accuracy: Mapping[tuple[str, int], float]) -> float:
    """Return mCE in percent: the error summed over severities, relative to AlexNet's, averaged over the corruptions.

    Raises BadInput where one of the 75 accuracies is missing. Source: Hendrycks and Dietterich 2019, section 4.2.
    """
    return float(100 * ((1 - _rows(accuracy)).mean(1) / _alexnet()).mean())


def relative_mean_corruption_error(accuracy: Mapping[tuple[str, int], float], clean: float) -> float:
    """Return relative mCE in percent: as mCE, with the clean error (of AlexNet too) subtracted everywhere.

    Raises BadInput where one of the 75 accuracies is missing. Source: Hendrycks and Dietterich 2019, section 4.2.
    """
    worse = clean - _rows(accuracy).mean(1)
    return float(100 * (worse / (_alexnet() - ALEXNET_CLEAN_ERROR)).mean())


def _alexnet() -> np.ndarray:
    return np.array(list(ALEXNET_ERROR.values()))


def _rows(accuracy: Mapping[tuple[str, int], float]) -> np.ndarray:
    missing = [(name, s) for name in ALEXNET_ERROR for s in SEVERITIES if (name, s) not in accuracy]
    if missing:
        raise BadInput(
            f"no accuracy under {missing[0][0]} at severity {missing[0][1]} ({len(missing)} of 75 missing)",
            "the 15 corruptions at 5 severities",
            "run the profile robustmq, or all corruptions",
        )
    return np.array([[accuracy[name, s] for s in SEVERITIES] for name in ALEXNET_ERROR])
