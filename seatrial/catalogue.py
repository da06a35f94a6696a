"""The one page that names every concrete method: name -> "module:Class"."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from seatrial.errors import unknown_name


@dataclass(frozen=True)
class Entry:
    """One method: `needs` says what it takes from a model (`gradients`, `logits`, `graph`) or which extra to install.

    `choices` are what stands behind the name in `--noise full`: severities of corruptions, options of system noises,
    `NORM:EPSILON` of attacks; `quick` those of `--noise quick`.
    """

    family: str
    name: str
    path: str
    paper: str
    needs: str = ""
    choices: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()


_SEVERITIES = ("1", "2", "3", "4", "5")
_LINF = ("linf:0.5/255", "linf:2/255", "linf:8/255")
_L2 = ("l2:0.5@224", "l2:2@224", "l2:8@224")
_L1 = ("l1:100@224", "l1:400@224", "l1:1600@224")
_SYSNOISE = "SysNoise, Wang et al. 2023"
_RESIZES = (
    *(f"pillow-{name}" for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")),
    *(f"opencv-{name}" for name in ("nearest", "bilinear", "area", "bicubic", "lanczos")),
    *(f"torch-{name}" for name in ("nearest", "bilinear", "bilinear-antialias", "bicubic", "bicubic-antialias")),
)


def _attack(
    name: str, method: str, paper: str, needs: str, choices: tuple[str, ...] = _LINF, quick: tuple[str, ...] = ()
) -> Entry:
    return Entry("attack", name, f"seatrial.noise.{method}", paper, needs, choices, quick)


def _corruption(name: str, quick: tuple[str, ...] = ()) -> Entry:
    method = "".join(part.capitalize() for part in name.split("_"))
    paper = "Hendrycks and Dietterich 2019"
    return Entry("corruption", name, f"seatrial.noise.{name}:{method}", paper, "", _SEVERITIES, quick)


def _system(name: str, method: str, needs: str, choices: tuple[str, ...], quick: tuple[str, ...] = ()) -> Entry:
    return Entry("system", name, f"seatrial.noise.{method}", _SYSNOISE, needs, choices, quick)


ENTRIES: tuple[Entry, ...] = (
    _attack("fgsm", "fgsm:FGSM", "Goodfellow et al. 2015", "gradients", quick=("linf:2/255",)),
    _attack("pgd", "pgd:PGD", "Madry et al. 2018", "gradients", (*_LINF, *_L2, *_L1), ("linf:2/255",)),
    _attack("mim", "mim:MIM", "Dong et al. 2018", "gradients"),
    _attack("apgd_ce", "apgd_ce:ApgdCe", "Croce and Hein 2020", "gradients"),
    _attack("apgd_t", "apgd_t:ApgdT", "Croce and Hein 2020", "gradients"),
    _attack("fab_t", "fab_t:FabT", "Croce and Hein 2020", "gradients"),
    # Parts of AutoAttack's other versions, to be asked for by name.
    _attack("apgd_dlr", "apgd_dlr:ApgdDlr", "Croce and Hein 2020", "gradients", ()),
    _attack("fab", "fab:Fab", "Croce and Hein 2020", "gradients", ()),
    _attack("autoattack", "autoattack:AutoAttack", "Croce and Hein 2020", "gradients"),
    _attack("square", "square:Square", "Andriushchenko et al. 2020", "logits"),
    _attack("hopskipjump", "hopskipjump:HopSkipJump", "Chen et al. 2020", "labels", (*_LINF, *_L2)),
    # The 15 of the benchmark, then the four of its validation set.
    _corruption("gaussian_noise", quick=("3",)),
    _corruption("shot_noise"),
    _corruption("impulse_noise"),
    _corruption("defocus_blur"),
    _corruption("glass_blur"),
    _corruption("motion_blur", quick=("3",)),
    _corruption("zoom_blur"),
    _corruption("snow"),
    _corruption("frost"),
    _corruption("fog"),
    _corruption("brightness", quick=("3",)),
    _corruption("contrast"),
    _corruption("elastic_transform"),
    _corruption("pixelate"),
    _corruption("jpeg_compression", quick=("3",)),
    _corruption("speckle_noise"),
    _corruption("gaussian_blur"),
    _corruption("spatter"),
    _corruption("saturate"),
    _system(
        "resize",
        "resize_noise:ResizeNoise",
        "encoded pictures that are resized",
        _RESIZES,
        ("opencv-bilinear", "opencv-area", "pillow-bicubic"),
    ),
    _system(
        "decoder",
        "decoder_noise:DecoderNoise",
        "encoded pictures",
        ("pillow", "opencv", "pyav", "turbo-fast-dct", "turbo-plain-chroma", "camera-yuv"),
        ("pillow", "opencv", "pyav"),
    ),
    _system(
        "color",
        "color_noise:ColorNoise",
        "encoded pictures",
        ("yuv444-exact", "yuv444-integer", "nv12-exact", "nv12-integer"),
    ),
    Entry("system", "exif", "seatrial.noise.exif_noise:ExifNoise", "EXIF 2.32", "encoded pictures", ("ignored",)),
    Entry(
        "system",
        "letterbox",
        "seatrial.noise.letterbox_noise:LetterboxNoise",
        "YOLOv5, YOLOX",
        "encoded pictures that are letterboxed",
        ("0", "114", "128", "centered", "corner", "stretched"),
    ),
    _system(
        "precision",
        "precision_noise:PrecisionNoise",
        "a graph, or a runtime with that arithmetic",
        ("fp16", "bf16", "int8"),
        ("fp16", "bf16"),
    ),
    _system("ceil_mode", "ceil_mode_noise:CeilModeNoise", "a graph with pools", ("ceil", "floor")),
    _system("upsample", "upsample_noise:UpsampleNoise", "a graph that upsamples", ("nearest", "bilinear")),
    Entry(
        "system",
        "align_corners",
        "seatrial.noise.align_corners_noise:AlignCornersNoise",
        "torch.nn.functional.interpolate",
        "a graph that upsamples",
        ("flipped",),
    ),
    _system("box_offset", "box_offset_noise:BoxOffsetNoise", "a task that decodes boxes", ("decode", "everywhere")),
    Entry("quantizer", "nearest", "seatrial.quant.nearest:Nearest", "Jacob et al. 2018; Nagel et al. 2019", "graph"),
    Entry("quantizer", "os-plus", "seatrial.quant.os_plus:OSPlus", "Wei et al. 2023", "graph"),
    Entry("quantizer", "smooth-quant", "seatrial.quant.smooth_quant:SmoothQuant", "Xiao et al. 2023", "graph"),
    Entry(
        "quantizer",
        "outlier-suppression",
        "seatrial.quant.outlier_suppression:OutlierSuppression",
        "Wei et al. 2022",
        "graph",
    ),
    Entry("quantizer", "ptq4vit", "seatrial.quant.ptq4vit:PTQ4ViT", "Yuan et al. 2022", "graph, logits"),
    Entry("quantizer", "repq-vit", "seatrial.quant.repq_vit:RepQViT", "Li et al. 2023", "graph"),
    Entry("quantizer", "apq-vit", "seatrial.quant.apq_vit:APQViT", "Ding et al. 2022", "graph"),
    Entry("quantizer", "gptq", "seatrial.quant.gptq:GPTQ", "Frantar et al. 2022", "graph"),
    Entry("quantizer", "awq", "seatrial.quant.awq:AWQ", "Lin et al. 2023", "graph"),
    Entry("search", "ohq", "seatrial.quant.ohq:OHQ", "Huang et al. 2023", "graph, a chip to measure"),
    Entry("qat", "dorefa", "seatrial.quant.dorefa:DoReFa", "Zhou et al. 2016", "graph"),
    Entry("qat", "pact", "seatrial.quant.pact:PACT", "Choi et al. 2018", "graph"),
    Entry("qat", "lsq", "seatrial.quant.lsq:LSQ", "Esser et al. 2020", "graph"),
    Entry("mitigation", "mix", "seatrial.train.mix_training:MixTraining", _SYSNOISE, "encoded pictures"),
    Entry("mitigation", "augmix", "seatrial.train.augmix:AugMix", "Hendrycks et al. 2020", "graph"),
    Entry("mitigation", "adversarial", "seatrial.train.adversarial:Adversarial", "Madry et al. 2018", "graph"),
    Entry("mitigation", "tent", "seatrial.train.tent:Tent", "Wang et al. 2021", "a graph with norms"),
    Entry("ranges", "minmax", "seatrial.numerics.ranges:MinMax", "Jacob et al. 2018"),
    Entry("ranges", "percentile", "seatrial.numerics.ranges:Percentile", "Wu et al. 2020"),
    Entry("ranges", "mse", "seatrial.numerics.ranges:MeanSquaredError", "Choukroun et al. 2019"),
    Entry("ranges", "moving-average", "seatrial.numerics.ranges:MovingAverage", "Jacob et al. 2018"),
    Entry("ranges", "token-wise", "seatrial.numerics.token_wise:TokenWise", "Wei et al. 2022"),
    Entry("target", "torch", "seatrial.deploy.torch_target:Torch", "PyTorch", "installed"),
    Entry("target", "onnxruntime", "seatrial.deploy.onnxruntime:OnnxRuntime", "ONNX Runtime", "installed"),
    Entry("target", "openvino", "seatrial.deploy.openvino:OpenVino", "OpenVINO", "extra openvino"),
    Entry("target", "litert", "seatrial.deploy.litert:LiteRt", "LiteRT", "extra litert"),
    Entry("target", "systolic", "seatrial.deploy.systolic:Systolic", "Samajdar et al. 2020", "installed"),
)

NOISE_FAMILIES = ("attack", "corruption", "system")


def entries(family: str) -> dict[str, Entry]:
    """Return the methods of one family by name."""
    return {entry.name: entry for entry in ENTRIES if entry.family == family}


def find(family: str, name: str) -> Entry:
    """Return one method; raises BadInput for an unknown name, with the nearest match."""
    known = entries(family)
    if name not in known:
        raise unknown_name(family, name, known)
    return known[name]


def load(entry: Entry) -> Any:
    """Import and return the class of a method."""
    module, _, name = entry.path.partition(":")
    return getattr(import_module(module), name)


def make(family: str, name: str, **options: Any) -> Any:
    """Return a method built with its options; raises BadInput for an unknown name."""
    return load(find(family, name))(**options)
