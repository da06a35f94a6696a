"""Networks of transformers from local folders; code beside them is never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from seatrial.core.pipeline import Resize
from seatrial.errors import BadInput
from seatrial.models.artefact import ArtefactModel
from seatrial.models.opened import Model, open_model


def opened(name: Any, **options: Any) -> Model:
    model = open_model(name, **options)
    assert isinstance(model, Model)
    return model


def artefact(name: Any, **options: Any) -> ArtefactModel:
    model = open_model(name, **options)
    assert isinstance(model, ArtefactModel)
    return model


def test_a_vision_transformer_in_a_local_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label={0: "ant", 1: "bee", 2: "cat"},
    )
    torch.manual_seed(0)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    model = opened(f"hf:{tmp_path}")
    assert model.picture_pipeline.assumed
    settings = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**settings, "image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_resize": True})
    )
    model = opened(f"hf:{tmp_path}")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.graph.module(x), network((x - 0.5) / 0.25).logits, rtol=1e-4, atol=1e-5)
    assert model.labels.names == ("ant", "bee", "cat")
    assert model.picture_pipeline.resize == Resize(exact_px=(32, 32), interpolation="bicubic")
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("classifier")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"classifier\.bias"):
        open_model(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    assert opened(f"hf:{tmp_path}").digest == model.digest


def test_code_in_a_repository_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForImageClassification": "evil.Evil"}
    content = {"model_type": "evil_one", "architectures": ["EvilForImageClassification"], "auto_map": auto}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="auto_map"):
        open_model(f"hf:{tmp_path}")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_text_models_in_a_local_folder(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    torch.manual_seed(0)
    if kind == "bert":
        network = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    else:
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    network.save_pretrained(tmp_path)
    model = opened(f"hf:{tmp_path}")
    assert model.kind == "text"
    assert [spec.name for spec in model.graph.inputs] == ["input_ids", "attention_mask"]
    ids = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    wanted = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model.graph.module(ids, torch.ones_like(ids)), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="text model"):
        _ = model.picture_pipeline
