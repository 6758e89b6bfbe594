"""Models of Hugging Face: exported once, reused from the cache, and one sentence for each failure."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxq.errors import JaxqError
from jaxq.huggingface import export as hf
from tests.support.encoders import encoder

LONG = "Calibration reads text; the model sees it as tokens, and every activation leaves its moments. "


@pytest.fixture
def folder(tmp_path) -> Path:
    """The files of save_pretrained, with weights that nothing reads."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "tokenizer.json").write_text("{}")
    return model


@pytest.fixture
def exporter(monkeypatch):
    """Replaces torch: writes a small encoder, counts its calls, and fails on request."""
    state = {"calls": 0, "fails": False}

    def run(source: Path, target: Path, model_id: str, dtype: str) -> None:
        state["calls"] += 1
        encoder(target / "model.onnx")
        if state["fails"]:
            raise JaxqError("cut off")

    monkeypatch.setattr(hf, "_run_exporter", run)
    monkeypatch.setattr(hf, "_versions", lambda: dict.fromkeys(hf._PACKAGES, "1.0"))
    return state


def test_an_export_is_made_once_and_found_by_content(folder, exporter, tmp_path):
    cache = tmp_path / "cache"
    first = hf.export_model(str(folder), "float32", cache)
    assert first.seconds is not None
    assert {p.name for p in first.path.parent.iterdir()} == {"model.onnx", "config.json", "tokenizer.json"}
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    again = hf.export_model(str(moved), "float32", cache)
    assert (again.path, again.seconds, exporter["calls"]) == (first.path, None, 1)
    assert "exported before by torch 1.0" in again.sentence
    assert hf.export_model(str(folder), "float16", cache).path != first.path
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert hf.export_model(str(folder), "float32", cache).path != first.path
    assert exporter["calls"] == 3


def test_other_versions_export_again(folder, exporter, tmp_path, monkeypatch):
    hf.export_model(str(folder), "float32", tmp_path / "c")
    monkeypatch.setattr(hf, "_versions", lambda: dict.fromkeys(hf._PACKAGES, "2.0"))
    hf.export_model(str(folder), "float32", tmp_path / "c")
    assert exporter["calls"] == 2


def test_an_export_that_is_cut_off_is_not_used(folder, exporter, tmp_path):
    exporter["fails"] = True
    with pytest.raises(JaxqError, match="cut off"):
        hf.export_model(str(folder), "float32", tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []
    exporter["fails"] = False
    export = hf.export_model(str(folder), "float32", tmp_path / "c")
    export.path.unlink()  # a cache that someone tidied up
    assert hf.export_model(str(folder), "float32", tmp_path / "c").path.is_file()
    assert exporter["calls"] == 3


def test_exports_within_a_repository_are_neither_read_nor_copied(folder, exporter, tmp_path):
    first = hf.export_model(str(folder), "float32", tmp_path / "c")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "model.onnx").write_bytes(b"another")
    assert hf.export_model(str(folder), "float32", tmp_path / "c").path == first.path
    (folder / "1_Pooling" / "config.json").write_text("{}")
    second = hf.export_model(str(folder), "float32", tmp_path / "c").path.parent
    assert (second / "1_Pooling" / "config.json").is_file()
    assert not (second / "onnx").exists()


def test_runs_within_a_models_folder_change_nothing(folder, exporter, tmp_path, monkeypatch):
    """The command line writes to outputs/ and multirun/ where it is started."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    monkeypatch.chdir(folder)
    first = hf.export_model(".", "float32", tmp_path / "c").path
    for name in ("outputs/2025-01-01/12-00-00", "multirun/a/0", ".hydra"):
        (folder / name).mkdir(parents=True)
        for file in ("report.json", "tokenizer.json", "notes.txt", "model.safetensors"):
            (folder / name / file).write_text("{}")
    again = hf.export_model(".", "float32", tmp_path / "c")
    assert (again.path, exporter["calls"]) == (first, 1)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))
    copy = hf.export_model(".", "float32", tmp_path / "c").path.parent
    assert {p.name for p in copy.iterdir()} == {p.name for p in first.parent.iterdir()}
    assert (copy / "additional_chat_templates" / "tool.jinja").is_file()


def test_a_missing_extra_is_one_sentence(folder, tmp_path, monkeypatch):
    def absent(name):
        raise hf.PackageNotFoundError(name)

    monkeypatch.setattr(hf, "version", absent)
    for model_id in (str(folder), "owner/name"):
        with pytest.raises(JaxqError, match=r'needs torch, which is not installed.*pip install -e "\.\[cpu,hf\]"'):
            hf.export_model(model_id, "float32", tmp_path / "c")


def test_a_repository_that_cannot_be_reached_is_one_sentence(exporter, tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(JaxqError, match="repository cannot be downloaded"):
        hf.export_model("owner/name", "float32", tmp_path / "c")


def test_folders_that_hold_no_model(folder, exporter, tmp_path):
    cases = {
        "has no weights": (folder / "model.safetensors").unlink,
        "without model_type": lambda: (folder / "config.json").write_text("{}"),
        "cannot be read": lambda: (folder / "config.json").write_text("{"),
        "has no config.json": (folder / "config.json").unlink,
    }
    for words, spoil in cases.items():
        spoil()
        with pytest.raises(JaxqError, match=words):
            hf.export_model(str(folder), "float32", tmp_path / "c")
    assert exporter["calls"] == 0


def test_an_exporter_that_fails_is_quoted(folder, tmp_path):
    """The real child process: the weights are no weights, or torch is missing."""
    with pytest.raises(JaxqError, match=r"cannot be exported: \S+"):
        hf._run_exporter(folder, tmp_path, "model", "float32")


def _wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


KILLED = """
import sys
from pathlib import Path
from jaxq.huggingface import export
export._export_to(Path(sys.argv[1]) / "hf-1", Path(sys.argv[2]), "model", "float32")
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="folders of killed processes stay there")
def test_a_killed_export_ends_its_child_and_its_folder_is_removed(folder, exporter, tmp_path):
    """The real child process, with a transformers module that never ends and writes a sign of life now and then."""
    signs, cache = tmp_path / "signs", tmp_path / "c"
    (tmp_path / "lib" / "transformers").mkdir(parents=True)
    (tmp_path / "lib" / "transformers" / "__init__.py").write_text(
        f"import time\nwhile True:\n    open({str(signs)!r}, 'a').write('.')\n    time.sleep(0.05)\n"
    )
    paths = [str(tmp_path / "lib"), str(Path(hf.__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(cache), str(folder)], env=environment)
    try:
        _wait_until(signs.exists)
        (running,) = cache.iterdir()
        hf.export_model(str(folder), "float32", cache)
        assert running.is_dir()  # the folder of a run that is alive
    finally:
        parent.kill()
        parent.wait()

    def still() -> bool:
        before = signs.stat().st_size
        time.sleep(0.5)
        return signs.stat().st_size == before

    _wait_until(still, 20)
    hf.export_model(str(folder), "float16", cache)
    assert not running.exists()
    assert {p.name[:3] for p in cache.iterdir()} == {"hf-"}


# --- real exports


def _tokenizer(texts, special, template):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=384, special_tokens=special, initial_alphabet=alphabet)
    )
    ids = [(s, tokenizer.token_to_id(s)) for s in special if s in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def _save(folder: Path, name: str) -> None:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers as t  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 384, "max_position_embeddings": 128}
    wide = {"hidden_size": 64, "intermediate_size": 96, **sizes}
    if name == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(num_key_value_heads=2, initializer_range=0.2, **wide))
        special, template = ["<s>", "</s>"], "<s> $A"
        names = {"bos_token": "<s>", "eos_token": "</s>"}
    elif name == "gpt2":
        model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, vocab_size=384))
        special, template, names = ["<s>"], "$A", {"bos_token": "<s>", "eos_token": "<s>"}
    else:
        model = t.BertModel(t.BertConfig(initializer_range=0.2, **wide))
        special, template = ["[CLS]", "[SEP]", "[PAD]"], "[CLS] $A [SEP]"
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    model.save_pretrained(folder)
    tokenizer = _tokenizer([LONG], special, template)
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_folder_becomes_a_4_bit_model(jaxq, tmp_path, name):
    """Exported, quantized, judged; the export gives transformers' own numbers."""
    import onnxruntime
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    _save(tmp_path / name, name)
    (tmp_path / "calib.txt").write_text(LONG * 150)
    (tmp_path / "eval.txt").write_text("Held-out text is other text, and it is judged in float32 first. " * 60)
    texts = (f"calib.text={tmp_path}/calib.txt", f"eval.text={tmp_path}/eval.txt", "calib.length=32", "eval.length=32")
    arguments = ("model=hf", f"model.id={tmp_path / name}", *texts, "method=awq_lite", "block_size=32")
    done = jaxq(*arguments, "calib.samples=8", "eval.samples=4")
    assert done.code == 0, done.err
    report = done.report
    exporter = {"llama": "onnxruntime-genai", "gpt2": "torch", "bert": "torch"}[name]
    assert f"by {exporter}" in report["notes"][0]
    assert len(report["layers"]) == {"llama": 10, "gpt2": 8, "bert": 13}[name]
    assert all(layer["dtype"] == "int4" and not layer["name"].startswith("val_") for layer in report["layers"])
    accuracy = report["accuracy"]
    if name == "bert":
        assert 0.9 < accuracy["outputs"][0]["runtimes"]["level 1"]["cosine"] < 1
    else:
        assert accuracy["runtimes"]["level 1"]["kl"] > 0
    again = jaxq(*arguments, "calib.samples=8", "eval.samples=4")
    assert again.code == 0, again.err
    assert "exported before" in again.report["notes"][0]

    if name == "llama":
        return  # its cache is fed by jaxq.runtime.inputs; perplexity above ran it
    model_class = {"gpt2": transformers.GPT2LMHeadModel, "bert": transformers.BertModel}[name]
    torch_model = model_class.from_pretrained(tmp_path / name).eval()
    ids = np.random.default_rng(0).integers(0, 384, (3, 17))
    mask = np.ones_like(ids)
    mask[1, 12:] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    with torch.no_grad():
        tensors = {k: torch.tensor(v) for k, v in feeds.items() if k != "token_type_ids" or name == "bert"}
        expected = torch_model(**tensors)[0].numpy()
    path = hf.export_model(str(tmp_path / name), "float32", Path(os.environ["JAXQ_CACHE"])).path
    runner = onnxruntime.InferenceSession(path)
    names = {i.name for i in runner.get_inputs()}
    got = np.asarray(runner.run(None, {k: v for k, v in feeds.items() if k in names})[0])
    real = mask.astype(bool)
    np.testing.assert_allclose(got[real], expected[real], atol=2e-4, rtol=1e-3)
