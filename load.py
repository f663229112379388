"""Checkpoints and vocabularies: loading, every reason to refuse one, saving.

What is refused would be silently wrong: weights that are missing, layers that the ragged cache does not hold,
logits that are not what the head makes, another vocabulary than the student's.
"""

import hashlib
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.utils import logging

import envs
import lora
from harness.cli import UserError
from harness.folder import write_json
from harness.plan import SMALL, blank
from model import STATEFUL, RaggedCache, Vocabulary, extend, feed_one, head, hidden_states, logits

logging.set_verbosity_error()
logging.disable_progress_bar()

ROOT = os.path.dirname(os.path.abspath(__file__))
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}  # nats, see `distance`
PRECISIONS = ("auto", "fp32", "bf16")
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # what torch calls a processor's instructions for it
KINDS = {"full_attention", "sliding_attention", *STATEFUL, "dummy"}  # of layers; a dummy one keeps nothing
UNBOUNDED = (0.0, math.inf)  # a state-space layer's time step
BY_LENGTH = ("dynamic", "longrope")  # rotary frequencies that change with the length of the batch
# Shipped in assets/WORLD/, made by tiny/make.py.
TINY = {
    "tiny-teacher": "teacher", "tiny-student": "student", "tiny-narrow": "teacher-narrow",
    "full-teacher": "full-teacher", "full-student": "full-student", "full-narrow": "full-teacher-narrow"}
WEIGHTS = (  # how a folder may hold them, in the order in which transformers looks
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PIECE = 1 << 22  # numbers of a weight that are hashed at once
NOISE = ("drop", "jitter")  # in the names of what `without_noise` sets to 0
SILENT = (  # of a configuration: what changes no logit
    "transformers_version", "architectures", "_name_or_path", "dtype", "initializer_range", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id")
ADAPTER = "adapter"  # in a checkpoint's folder: the factors that are merged into it
DEFAULTS = "defaults.json"  # beside a checkpoint: {knob: value}, how it wants to be played and trained


# ---- loading and saving

def resolve(name, env):
    """The folder behind the name of an embedded tiny checkpoint; any other name as it is.

    Raises UserError where none is shipped for this environment.
    """
    if name not in TINY:
        return name
    envs.game_type(env)  # raises for a world that there is not
    folder = os.path.join(ROOT, "assets", env, TINY[name])
    if not os.path.isdir(folder):
        raise UserError(
            f"no {name} is shipped for {env}: name a checkpoint with --student and --teacher, or --model")
    return folder


def defaults(name):
    """{knob: value} that a checkpoint's folder brings for tcod.py and eval.py; {} for all others.

    Raises UserError for a file that holds no such thing.
    """
    path = os.path.join(holder(name, DEFAULTS), DEFAULTS)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            own = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(own, dict):
        raise UserError(f"{path} holds no table of knobs and their values")
    return own


def holder(name, file):
    """Whose `file` is a checkpoint's: its own, or that of an adapter's base where its folder has none."""
    base = "" if os.path.isfile(os.path.join(name, file)) else lora.base(name)
    return holder(base, file) if base else name


def has_bf16():
    """Whether this process's device computes in bf16 itself: GPUs from Ampere on, some processors."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name) for name in BF16)


def precision(asked, name=""):
    """"fp32" or "bf16", as asked; for "auto" bf16 on a device that has it, but on a processor only for a
    model, by its Hugging Face name or folder, that gains by it: tiny ones stay exact."""
    if asked != "auto":
        return asked
    gains = has_bf16() and (torch.cuda.is_available() or parameters(name) >= SMALL)
    return "bf16" if gains else "fp32"


def parameters(name):
    """How many a model has, by its configuration alone; 0 where that leads to none, of which who loads it
    will speak."""
    try:
        config = AutoConfig.from_pretrained(holder(name, "config.json"))
        return blank(config.get_text_config()).num_parameters()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError):
        return 0


def play_dtype(asked="auto"):
    """What a model that is only read is held in, and what the forward and backward of training run in.
    asked: see `precision`."""
    return torch.bfloat16 if precision(asked) == "bf16" else torch.float32


def load_tokenizer(name):
    """The tokenizer of a Hugging Face name or folder; raises UserError without one, or its chat template."""
    check_name(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(holder(name, "tokenizer_config.json"))
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(name, error) from error
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {name!r} has no chat template; use an instruction-tuned checkpoint")
    return tokenizer


def check_name(name):
    """Raises UserError for a path that leads nowhere, and for a run's folder, naming the model inside it."""
    if os.path.exists(os.path.join(name, "args.json")):
        student = os.path.join(name, "student")
        what = f"its model is {student}" if os.path.isdir(student) else "it has no model before its last step"
        raise UserError(f"{name!r} is a run's folder: {what}")
    written_as_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if written_as_path and not os.path.isdir(name):
        raise UserError(f"there is no folder {name!r} to load a model from")


def longest(config):
    """How many positions a model of this configuration has; infinity where it names no number."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def positions(name):
    """`longest` of a Hugging Face name or folder; infinity where it has no configuration, of which who loads
    it will speak."""
    try:
        return longest(AutoConfig.from_pretrained(holder(name, "config.json")))
    except (OSError, ValueError, KeyError):
        return math.inf


def style(tokenizer):
    """The prompt that it wants (prompts.SHIPPED): the tiny tokenizers say "bare", all others get "react"."""
    return "bare" if tokenizer.init_kwargs.get("prompt_style") == "bare" else "react"


def is_small(model):
    """Whether a model is a tiny one: it wants one thread, needs no recomputation, plays many games at
    once."""
    return model.num_parameters() < SMALL


def configuration(name):
    """The configuration of a Hugging Face name or folder, of which no more is needed than config.json."""
    check_name(name)
    try:
        return AutoConfig.from_pretrained(holder(name, "config.json"))
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(name, error) from error


def load_model(name, device="cpu", dtype=torch.float32):
    """The model of a Hugging Face name or folder; weights in `dtype`, attention by torch's
    scaled_dot_product_attention, or written out where transformers does not let it have that.

    Raises UserError where there is no such checkpoint, or an architecture that is not supported.
    """
    if base := lora.base(name):
        model = load_model(base, device, dtype)
        present = [file for file in lora.WEIGHTS if os.path.isfile(os.path.join(name, file))]
        lora.merge(model, name, read_weights(name, (present or lora.WEIGHTS)[0]))
        model.name_or_path = name
        return model
    check_one_set(name)
    try:
        model, found = from_pretrained(name, dtype)
        model = text_part(model)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise cannot_load(name, error) from error
    check_weights(name, found)
    check_supported(name, model, dtype)
    if is_small(model) and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # at this size more threads cost more than they save
    without_noise(model)
    model = model.to(device).eval()
    check_logits(name, model)
    return model


def from_pretrained(name, dtype):
    """(model, loading info). Attention is torch's; written out ("eager") in the architectures that cap its
    scores or have sinks, where transformers does not let torch's have them."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(AutoConfig.from_pretrained(name)), None)
    auto = AutoModelForCausalLM if kind else AutoModelForImageTextToText
    eager = kind and kind._supports_attention_backend and not kind._supports_sdpa
    return auto.from_pretrained(
        name, dtype=dtype, attn_implementation="eager" if eager else "sdpa", output_loading_info=True,
        ignore_mismatched_sizes=True)  # they are told by name


def text_part(model):
    """The language model inside of one that also sees or hears, with its head; any other one as it is.

    Nothing else of it would be run, nor get a gradient.
    """
    inner = getattr(model.base_model, "language_model", None)
    if inner is None:
        return model
    config, out = inner.config, model.get_output_embeddings()
    # The whole's configuration said whether they are one, the text's own may say otherwise.
    config.tie_word_embeddings = out.weight is inner.get_input_embeddings().weight
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation)
    setattr(text, text.base_model_prefix, inner)
    text.set_output_embeddings(out)
    text.generation_config, text.name_or_path = model.generation_config, model.name_or_path
    return text


def check_one_set(name):
    """Raises UserError where a folder holds weights in two formats, or whole and in parts, that differ: which
    of them a library reads is its choice, and another's may be another."""
    present = [file for file in WEIGHTS if os.path.isfile(os.path.join(name, file))]
    if len(present) < 2:
        return
    first = read_weights(name, present[0])
    for file in present[1:]:
        second = read_weights(name, file)
        both = first.keys() & second.keys()  # a tied head may be in one of them
        other = sorted(key for key in both if not torch.equal(first[key].float(), second[key].float()))
        if other or not both:
            raise UserError(
                f"{name!r} holds two sets of weights that differ, {present[0]} and {file}, as in "
                f"{(other or sorted(second))[0]}: leave the one that is meant, and move the other away")


def read_weights(folder, file):
    """{name: tensor} of a file of weights, or of all that an index names; raises UserError where that cannot
    be read."""
    found, files = {}, [file]
    try:
        if file.endswith(".index.json"):
            with open(os.path.join(folder, file), encoding="utf-8") as index:
                files = sorted(set(json.load(index)["weight_map"].values()))
        for part in files:
            path = os.path.join(folder, part)
            if part.endswith(".safetensors"):
                found.update(load_file(path))
            else:
                found.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise cannot_load(os.path.join(folder, file), error) from error
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def cannot_load(name, error):
    """The UserError for a checkpoint that transformers does not load."""
    reason = str(error).strip().split("\n")[0]
    return UserError(f"cannot load a causal language model from {name!r} ({reason})")


def check_weights(name, found):
    """Raises UserError where the file's weights are not those of the model: transformers draws what is
    missing at random.

    found: the loading info of `from_pretrained`.
    """
    for what, keys in (("lacks", "missing_keys"), ("has besides its own", "unexpected_keys"),
                       ("has in other shapes", "mismatched_keys")):
        names = sorted(str(key) for key in found[keys])
        if names:
            raise UserError(
                f"{name!r} is not a whole checkpoint of its model: it {what} {len(names)} weights, as "
                f"{names[0]} (a compiled or wrapped model wants its weights' names back)")


def distance(own, ours):
    """Mean over tokens of Σ_v p |log p − log q|, p the model's own distribution: logits (N, V) each -> nats.

    Weighted by p, since bf16 rounds a logit of 32 to eighths: the largest difference over a vocabulary says
    more of that than of the model.
    """
    logp, logq = own.float().log_softmax(-1), ours.float().log_softmax(-1)  # (N, V)
    apart = logp.exp() * (logp - logq).abs()
    return torch.where(logp == -torch.inf, 0.0, apart).sum(-1).mean().item()


def forgotten(model, ids):
    """The kinds of states that do not matter to what comes next, where a row is read in two parts: "conv",
    "recurrent"; of a model that leaves no states to the cache "all"."""
    def behind(without):
        cache = RaggedCache(model, [0])
        extend(model, cache, [ids[:5]])
        for (kind, *_), state in cache.kept.items():
            state.mul_(kind != without)
        return extend(model, cache, [ids[5:]]), {kind for kind, *_ in cache.kept}

    both, kinds = behind(without=None)
    return [kind for kind in sorted(kinds) if torch.equal(both, behind(kind)[0])] if kinds else ["all"]


@torch.no_grad()
def check_logits(name, model):
    """Raises UserError unless both of our paths, whole rows and the ragged cache, give the model's own
    logits, and training mode the same.

    What stands behind the head (a scale, a cap) or inside a layer shows here, on two rows of different
    lengths, fed to the cache in four parts, in one of which the second stands still; windows are narrow
    meanwhile.
    """
    config, kind = model.config, model.config.model_type
    ids = torch.arange(34, device=model.device).view(2, 17)  # (B, T)
    ids %= config.vocab_size
    window = getattr(config, "sliding_window", None)
    if window:
        config.sliding_window = 6  # these rows show it
    try:
        own = model(input_ids=ids).logits.flatten(0, 1)  # (B · T, V)
        whole = logits(hidden_states(model, ids).flatten(0, 1), head(model))  # (B · T, V)
        first, second = ids.tolist()
        cache = RaggedCache(model, [first, second])
        both, alone = torch.tensor([[True, True], [True, False]], device=model.device)
        extend(model, cache, [first[:5], second[:8]])
        cache.advance()
        feed_one(model, cache, ids[[0, 1], [5, 8]], both)
        cache.advance()
        feed_one(model, cache, ids[[0, 1], [6, 0]], alone)
        cache.length = [7, 9]  # what they have; `advance` says what they have at most
        cached = logits(extend(model, cache, [first[7:], second[9:10]]), cache.head)  # (B, V)
        lost = forgotten(model, first) if cache.stateful else []
        hidden = hidden_states(model.train(), ids).flatten(0, 1)  # (B · T, D)
        learning = logits(hidden, head(model))  # (B · T, V)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{name!r} ({kind}) does not play over the ragged cache ({reason})") from error
    finally:
        if window:
            config.sliding_window = window
    model.eval()
    most = TOLERANCE[model.dtype]
    apart = distance(own, whole)
    if not apart <= most:
        raise UserError(
            f"{name!r} ({kind}) has logits that are not its head's products: ours are {apart:.2g} nats off "
            "its own, so that other distributions would be played and trained")
    if lost:
        raise UserError(
            f"{name!r} ({kind}) cannot be read in parts, turn by turn: its layers do not go on from the "
            f"states ({', '.join(lost)}) that they have left to the cache")
    apart = distance(own[[16, 17 + 9]], cached)
    if not apart <= most:
        raise UserError(
            f"{name!r} ({kind}) says other things over a row in parts than over the whole, {apart:.2g} nats "
            "off: its layers do not heed the cache's masks or states")
    noise = distance(whole, learning)
    if not noise <= most:
        raise UserError(
            f"{name!r} ({kind}) is noisy in training mode, by {noise:.2g} nats, in a way that this version "
            "does not know how to turn off: set its dropout or jitter to 0 in its config.json")


def check_supported(name, model, dtype):
    """Raises UserError for what the cache or the head would silently get wrong and a forward of a few tokens
    does not show."""
    config = model.config
    named = hasattr(config, "num_hidden_layers")
    kinds = get_layer_types_and_kwargs(config)[0] if named else ["unknown ones"]
    other = sorted(set(kinds) - KINDS)
    if other:
        raise UserError(f"{name!r} has layers that the ragged cache does not hold: {', '.join(other)}")
    for module in model.modules():
        limit = tuple(getattr(module, "time_step_limit", None) or UNBOUNDED)
        if limit != UNBOUNDED:
            raise UserError(
                f"{name!r} bounds the time step of its layers to {limit} over whole rows, and not token by "
                "token (an error of this version of transformers): it would play on other logits than it "
                "learns from")
        if any(kind in str(getattr(module, "rope_type", "")) for kind in BY_LENGTH):
            raise UserError(
                f"{name!r} has rotary frequencies that depend on the longest row of a batch (rope_type "
                f"{module.rope_type}): a row would be judged otherwise beside other rows")
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{name!r} is quantised, which is not supported: name the checkpoint that it was made from")
    attention = config._attn_implementation
    # Some architectures keep a few weights of a bf16 model in fp32, which does no harm.
    other = {p.dtype for p in model.parameters()} - {dtype, torch.float32}
    if attention != ("sdpa" if model._supports_sdpa else "eager") or other:
        raise UserError(
            f"{name!r} does not load as it is asked to: its attention is {attention}, or "
            f"some of its weights are {', '.join(map(str, other))} instead of {dtype}")


def without_noise(model):
    """Set every dropout and jitter to 0: distributions are compared, and noise in them would be noise in the
    loss.

    They are modules, or numbers that a layer keeps under some name (attention_dropout, attn_pdrop,
    router_jitter_noise, layerdrop).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and any(noise in name for noise in NOISE):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


# ---- what a model is

def identity(who, model, chat=None):
    """{"teacher's weights": ...}: every part of a model that changes what it says, in few letters, and of the
    chat that it is asked in (chat.template.Chat), where that is its own; who: "teacher"."""
    parts = {"weights": weights(model), "configuration": configured(model.config)}
    if chat:
        parts.update(chat.identity())
    return {f"{who}'s {part}": value for part, value in parts.items()}


def weights(model):
    """12 hex digits that stand for every value of a model's weights, the same in bf16 and fp32."""
    def hashed(piece):
        values = piece.cpu().float()
        short = values.bfloat16()  # half as long, where nothing is lost by it
        if torch.equal(short.float(), values):
            values = short.view(torch.int16)
        return hashlib.sha256(values.numpy()).digest()

    whole, pieces = hashlib.sha256(), []
    for name, weight in model.state_dict().items():
        whole.update(f"{name} {tuple(weight.shape)}".encode())
        pieces += weight.flatten().split(PIECE)
    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run
        for digest in pool.map(hashed, pieces):
            whole.update(digest)
    return whole.hexdigest()[:12]


def configured(config):
    """12 hex digits that stand for a configuration as far as it changes logits. What is as the library has it
    by default is left out: a later version has more of it."""
    said = {name: value for name, value in config.to_diff_dict().items()
            if name not in SILENT and not any(noise in name for noise in NOISE)}
    return envs.digest(json.dumps(said, sort_keys=True, default=str).encode())


def sample(model):
    """12 hex digits that stand for some values of each of a model's weights, as bf16: all that older runs
    noted of a model."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(weight.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:12]


def end_tokens(model):
    """The ids that end a response by the checkpoint's generation_config, which may name more than the
    tokenizer does."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def vocabulary(tokenizer, *models):
    """The ids that stand for a token of the tokenizer and have a row in every model's head.

    Heads are padded beyond the tokenizer, each to its own size; tokenizers skip ids, or have tokens that were
    added and never trained. Raises UserError where text can become an id that a model has no row for.
    """
    known = set(tokenizer.get_vocab().values())
    size = min([len(head(model).weight) for model in models], default=max(known) + 1)
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = sorted(i for i in known - control if i >= size)
    if beyond:
        raise UserError(
            f"{tokenizer.name_or_path!r} has {len(beyond)} tokens for text that the model's head lacks, as "
            f"{tokenizer.convert_ids_to_tokens(beyond[0])!r}: the tokenizer is another model's")
    size = min(size, max(known) + 1)
    return Vocabulary(size, sorted(set(range(size)) - known))


def same_vocabulary(student, teacher):
    """Raises UserError unless the two tokenizers give every token the same id: distributions over ids are
    compared."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    other = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
    raise UserError(
        f"teacher and student need the same vocabulary, but {teacher.name_or_path!r} has {len(theirs)} "
        f"tokens and {student.name_or_path!r} {len(ours)}, and {len(other)} have other ids, as {other[0]!r}")


def rewrite(path, change):
    """Change the dictionary in a JSON file. change: dictionary -> {name: its new entry, None for none}."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    changed = change(content)
    kept = {name: value for name, value in content.items() if name not in changed}
    write_json(path, kept | {name: value for name, value in changed.items() if value is not None})


def older_rotary(config):
    """What a reader of before transformers 5 looks for in config.json: without it, it takes a rotary base of
    10,000 in silence. gpt_neox had names of its own."""
    rope, neox = dict(config.get("rope_parameters") or {}), config["model_type"] == "gpt_neox"
    theta, part = rope.pop("rope_theta", None), rope.pop("partial_rotary_factor", None)
    return {
        "rotary_emb_base" if neox else "rope_theta": theta,
        "rotary_pct" if neox else "partial_rotary_factor": part,
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None}


def older_tokenizer(config):
    """What it looks for in tokenizer_config.json: a class and a list that have other names now."""
    changed = {}
    if config.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = config["extra_special_tokens"]
        changed["extra_special_tokens"] = None
    return changed


def save(model, tokenizer, folder, own=None):
    """Write an ordinary Hugging Face checkpoint (safetensors), beside and then moved into place, that
    transformers 4 and 5 read alike; raises UserError where there is no room or no way to. own: its
    `defaults`, if it has any."""
    folder = os.path.realpath(folder)  # a link leads there as before
    beside, old = f"{folder}.tmp-{os.getpid()}", f"{folder}.old-{os.getpid()}"
    try:
        model.save_pretrained(beside, state_dict=lora.merged(model))
        lora.write(model, os.path.join(beside, ADAPTER))
        tokenizer.save_pretrained(beside)
        rewrite(os.path.join(beside, "config.json"), older_rotary)
        rewrite(os.path.join(beside, "tokenizer_config.json"), older_tokenizer)
        if own:
            write_json(os.path.join(beside, DEFAULTS), own)
        if os.path.exists(folder):
            os.rename(folder, old)
        os.rename(beside, folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be written ({error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
