"""Preprocessing and labels as configurations say them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seatrial.core.pipeline import Letterbox, Resize
from seatrial.core.task import LabelMap
from seatrial.errors import BadInput
from seatrial.models.labels import fit_labels, labels_of_names, labels_of_text
from seatrial.models.preprocessing import Overrides, assumed, of_json, of_timm, of_transformers, overridden


def test_timm_preprocessing_is_what_timm_does() -> None:
    """The oracle is the transform that timm builds from the same configuration."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    from PIL import Image

    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    pixels = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.numpy())
    for share, mode in ((0.875, "center"), (0.9, "squash"), (1.0, "center")):
        said = of_timm({**config, "crop_pct": share, "crop_mode": mode})
        transform = timm.data.create_transform(**config, crop_pct=share, crop_mode=mode, is_training=False)
        wanted = transform(picture)
        resize = said.pipeline.resize
        assert resize is not None
        assert resize.skip_up_to is None
        if resize.exact_px:
            height, width = resize.exact_px
        else:
            short = resize.short_side_px or 0
            height, width = short, int(short * 120 / 90)
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        top, left = round((height - 64) / 2), round((width - 64) / 2)
        cut = torch.tensor(list(resized.crop((left, top, left + 64, top + 64)).get_flattened_data()))
        values = (cut.reshape(64, 64, 3).permute(2, 0, 1) / 255 - torch.tensor(said.mean).view(3, 1, 1)) / torch.tensor(
            said.std
        ).view(3, 1, 1)
        torch.testing.assert_close(values, torch.as_tensor(wanted), rtol=0, atol=1e-5)


def test_image_processors_are_read_as_transformers_means_them() -> None:
    base = {"do_resize": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    said = of_transformers(
        {**base, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    )
    assert said.pipeline.crop_px == (224, 224)
    assert said.pipeline.resize == Resize(short_side_px=256, interpolation="bicubic")
    said = of_transformers({**base, "size": {"shortest_edge": 224}, "crop_pct": 0.875})
    assert (said.pipeline.crop_px, said.pipeline.resize) == (
        (224, 224),
        Resize(short_side_px=256, interpolation="bicubic"),
    )
    said = of_transformers({**base, "size": {"shortest_edge": 384}, "crop_pct": 0.875})
    assert said.pipeline.resize == Resize(exact_px=(384, 384), interpolation="bicubic")
    said = of_transformers(
        {**base, "size": 32, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}
    )
    assert said.mean == pytest.approx([0.5] * 3)
    assert said.std == pytest.approx([0.2] * 3)
    said = of_transformers({**base, "size": 32, "do_normalize": False})
    assert said.normalization is None
    with pytest.raises(BadInput):
        of_transformers({**base, "size": None})


def test_the_user_has_the_last_word() -> None:
    base = of_json({"resize": 256, "crop": 224, "mean": [0.5] * 3, "std": [0.5] * 3}, (224, 224), "a.json")
    said = overridden(base, Overrides(resize=0, mean=(0.1, 0.2, 0.3)))
    assert said.pipeline.resize is None
    assert said.mean == (0.1, 0.2, 0.3)
    assert said.std == base.std
    said = overridden(base, Overrides(input_size_px=(112, 112), interpolation="lanczos"))
    assert said.pipeline.resize == Resize(short_side_px=128, interpolation="lanczos", skip_up_to=1.15)
    assert not overridden(assumed((32, 32)), Overrides(resize=40, crop_px=(32, 32))).pipeline.assumed
    bad: list[Overrides] = [Overrides(std=(0.0, 1, 1)), Overrides(mean=(1, 2)), Overrides(interpolation="best")]
    bad += [Overrides(crop_px=(0, 3)), Overrides(resize=-1), Overrides(crop_px=(32, 32), input_size_px=(64, 64))]
    for user in bad:
        with pytest.raises(BadInput):
            overridden(base, user)
    unknown = {"interpolation": "x"}, {"odd_margin": "up"}
    for config in ({"crop": "x"}, {"resize": [1, 2, 3]}, {"std": [0, 1, 1]}, {"mean": "grey"}, *unknown):
        with pytest.raises(BadInput):
            of_json(config, (32, 32), "a.json")


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        (None, None),
        (False, None),
        (True, Letterbox()),
        (0, Letterbox(0)),
        ({"value": 128, "centered": True}, Letterbox(128, centered=True)),
    ],
)
def test_a_letterbox_takes_the_place_of_resize_and_crop(stated: object, wanted: Letterbox | None) -> None:
    found = of_json({"resize": 64, "letterbox": stated, "mean": 0, "std": 1}, (64, 64), "a.json")
    assert found.pipeline.letterbox == wanted
    assert (found.pipeline.resize == Resize()) == (wanted is not None)
    for broken in (300, "grey", {"value": 3, "fill": 2}):
        with pytest.raises(BadInput, match=r"letterbox .* in a.json; wanted a grey level"):
            of_json({"letterbox": broken}, (64, 64), "a.json")


def test_labels_are_read_from_text(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert labels_of_text("names.txt (2 lines)", 2, tmp_path) == LabelMap(
        ("ant", "bee"), rule="class names of names.txt"
    )
    assert labels_of_text("../names.txt", 2, tmp_path / "x") is None
    assert labels_of_text("no names at all", 2, tmp_path) is None
    with pytest.raises(BadInput, match="2 class names for 5 outputs"):
        labels_of_text("names.txt", 5, tmp_path)


@given(st.integers(2, 30), st.integers(0, 35))
def test_a_background_class_shifts_by_one_and_only_then(n_outputs: int, n_classes: int) -> None:
    names = tuple(f"class {i}" for i in range(n_outputs - 1))
    shifted = labels_of_names(("Background", *names), n_outputs, "given")
    assert shifted.names == names
    assert shifted.background == 1
    plain = LabelMap(("background", *names), rule="given")
    if n_classes > n_outputs:
        for labels in (shifted, plain, LabelMap()):
            with pytest.raises(BadInput):
                fit_labels(labels, n_outputs, n_classes)
    elif n_classes == n_outputs:
        assert fit_labels(shifted, n_outputs, n_classes).background == 0
        assert fit_labels(shifted, n_outputs, n_classes).names[1:] == names
    else:
        assert fit_labels(plain, n_outputs, n_classes).names == names
        assert fit_labels(plain, n_outputs, n_classes).background == 1
        assert fit_labels(shifted, n_outputs, n_classes) == shifted
        assert fit_labels(LabelMap(), n_outputs, n_classes).background == 0
