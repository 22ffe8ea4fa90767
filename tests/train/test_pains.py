"""What users of other tools suffer in training, where no other test says it; docs/pains.md lists it all."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from vlmkit import VLM
from vlmkit.assemble import assemble
from vlmkit.data.collate import Collator, TextRules
from vlmkit.data.prompts import PROMPTS
from vlmkit.data.sample import IMAGE, Message, Sample
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.inference import model_inputs, question
from vlmkit.train import checkpoints, distribute, loop
from vlmkit.train.metrics import read_metrics
from vlmkit.train.module import StageModule
from vlmkit.train.run import train_recipe
from vlmkit.train.stage import apply_stage

ALL = dict.fromkeys(("encoder", "connector", "llm"))
LORA = {"r": 2, "dropout": 0.2}
ADAPTERS = {"connector": None, "llm": LORA}
STEPS = {"steps": 4, "batch_size": 4, "warmup": 0, "schedule": "constant", "checkpoint_every": 2}


def rates(parts):
    """Parts with LoRA options or None to what a stage says about them."""
    return {part: {"lr": 1e-2, **({"lora": lora} if lora else {})} for part, lora in parts.items()}


def test_the_mean_of_micro_batches_is_another_loss(tiny_vlm, make_stage, samples, collate):
    """What dividing by the number of micro-batches gives, where rows differ in supervised tokens."""
    module = StageModule(tiny_vlm(), make_stage())
    batches = [collate(module.vlm, [sample]) for sample in samples]
    found = [module(batch)["next_token"] for batch in (*batches, collate(module.vlm, samples))]
    *parts, (whole, weight) = [(float(loss.detach()), float(w)) for loss, w in found]
    naive = sum(loss / w for loss, w in parts) / len(parts)
    right = sum(loss for loss, _ in parts) / sum(w for _, w in parts)
    assert right == pytest.approx(whole / weight, abs=1e-6)
    assert abs(naive - right) > 1e-2


def test_a_limit_of_tokens_counts_those_of_images_and_cuts_nothing(tiny_vlm, make_sample):
    """Elsewhere a limit that images alone use up cuts all answers off, and the loss is zero."""
    model, sample = tiny_vlm(), make_sample("one", 2, ("what color is it?", "red"))
    p = model.processor

    def row(limit):
        told = p.tokenizer, PROMPTS["chat_template"], p.count_fitted, p.image_token_id
        return Collator(p.specs, TextRules(*told, max_length=limit))([(sample, 0)])

    free = row(None)
    length, images = free.input_ids_BL.shape[1], int((free.input_ids_BL == p.image_token_id).sum())
    assert images == 2 * model.count_tokens((16, 16)) > 0 < int((free.labels_BL >= 0).sum())
    assert torch.equal(row(length).labels_BL, free.labels_BL)
    for limit in (length - 1, length - images):
        with pytest.raises(VlmkitError, match=f"'one' makes a row of {length} tokens"):
            row(limit)


CHOICES = {
    "connector": {"connector": None},
    "all": ALL,
    "llm": {"llm": None},
    "lora": ADAPTERS,
    "tower and lora": {"encoder": None, "llm": LORA},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("parts", CHOICES.values(), ids=CHOICES)
def test_the_optimiser_holds_what_trains_once_and_nothing_else(tiny_vlm, tiny_clip, make_stage, parts, tied):
    """No state is kept for a frozen tower, and nothing decays that has no gradient."""
    model = tiny_vlm(encoder=tiny_clip, llm_options={"tie_word_embeddings": tied})
    stage = make_stage(train=rates(parts))
    apply_stage(model, stage)
    module = StageModule(model, stage)
    held = [id(p) for group in module.param_groups(stage) for p in group["params"]]
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert len(held) == len(set(held)) and set(held) == trained
    assert (len(trained) < len(list(module.parameters()))) is (parts != ALL)


def test_training_and_asking_see_the_same_normalised_pixels(tiny_vlm, noise, collate):
    """One code for both; mean and deviation are those of the encoder, and are used."""
    own = {"mean": [0.2, 0.4, 0.6], "std": [0.1, 0.2, 0.3]}
    size = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    model, image = tiny_vlm(encoder={"type": "vit", **size, **own, "layout": "pad"}), noise(3, (23, 11))
    talk = (Message("user", (IMAGE, "say yes")), Message("assistant", ("yes",)))
    trained = collate(model, [Sample("s", (image,), (talk,))]).pixel_values
    assert torch.equal(trained, model_inputs(model, [question([image], "say yes")])["pixel_values"])
    mean, std = (torch.tensor(own[name])[:, None, None] for name in ("mean", "std"))
    bytes_CHW = (trained.view(3, 16, 16) * std + mean) * 255
    assert (bytes_CHW - bytes_CHW.round()).abs().max() < 1e-2
    assert bytes_CHW.min() > -1e-2 and bytes_CHW.max() < 255.01 and trained.max() > 1.5


def test_text_around_images_stays_what_it_was(tiny_vlm, make_stage, make_sample, collate):
    """Image tokens take the places of placeholders: no embedding of a text before or after is lost."""
    model, seen = tiny_vlm(), []
    batch = collate(model, [make_sample("pair", 2, ("how many images are there?", "two of them"))])
    norm = model.language_model.model.layers[0].input_layernorm
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    StageModule(model, make_stage())(batch)
    # In the first pass the head is asked what it does.
    ids_L, (_, read_LD) = batch.input_ids_BL[0], seen
    text_L = ids_L != model.config.image_token_id
    embedded_LD = model.get_input_embeddings()(ids_L)
    assert torch.equal(read_LD[text_L], embedded_LD[text_L])
    assert text_L[[0, -1]].all() and int((~text_L).sum()) == 2 * model.count_tokens((16, 16))
    assert not (read_LD == embedded_LD)[~text_L].all(1).any()


@pytest.mark.parametrize("kind", ["MEGATRON_LM", "XLA"])
def test_ways_of_several_processes_that_were_not_tried_are_refused(kind):
    with pytest.raises(
        UsageError,
        match=f"{kind} is not supported; use accelerate's multi_gpu .DDP., FSDP version 2 or DeepSpeed",
    ):
        distribute._check_kind(SimpleNamespace(distributed_type=DistributedType[kind]))


def losses(run):
    return [(row["loss"], row["grad_norm"]) for row in read_metrics(run / "metrics.jsonl")]


def different(run, other):
    """Names of the tensors that differ by a bit in two saved models."""
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert mine.keys() == theirs.keys()
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    """A function: a run's folder, its parts and options of `tiny_recipe` to a recipe."""
    return lambda folder, parts, **options: tiny_recipe(
        stages=[{**STEPS, "train": rates(parts)}], output=str(folder), **options
    )


@pytest.fixture(scope="module")
def adapted(recipe, tmp_path_factory):
    """A finished run of connector and adapters, in a folder of a plain name."""
    return train_recipe(recipe(tmp_path_factory.mktemp("runs") / "plain", ADAPTERS)).path


@pytest.fixture(scope="module", params=[False, True], ids=["head", "tied head"])
def whole(request, recipe, tiny_clip, tmp_path_factory):
    """A finished run that trained every part, and the options of its model."""
    options = {"encoder": tiny_clip, "llm_options": {"tie_word_embeddings": request.param}}
    return train_recipe(recipe(tmp_path_factory.mktemp("whole") / "run", ALL, **options)).path, options


def test_every_trained_tensor_is_in_what_is_loaded(whole, tiny_recipe):
    """Tower, connector, language model and head; also where another run starts from it, without a merge."""
    run, options = whole
    stored = load_file(checkpoints.latest_checkpoint(run, "only") / "trained.safetensors")
    trained = {name.removeprefix("vlm."): tensor for name, tensor in stored.items()}
    fresh = assemble(tiny_recipe(**options)).state_dict()
    for part in ("encoders", "connector", "language_model"):
        assert any(n.startswith(part) and not torch.equal(fresh[n], t) for n, t in trained.items())
    again = assemble(tiny_recipe(**options, init_from=str(run), seed=9))
    for model in (VLM.from_pretrained(run), again):
        for name, tensor in trained.items():
            assert torch.equal(model.state_dict()[name], tensor), name
        tied = options["llm_options"]["tie_word_embeddings"]
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
        assert tied or "language_model.lm_head.weight" in trained


def test_a_run_without_its_trained_tower_does_not_load(whole, tmp_path):
    """Elsewhere the published tower takes its place, and nobody hears of it."""
    copied = shutil.copytree(whole[0], tmp_path / "run")
    tensors = load_file(copied / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("encoders.")}
    assert len(kept) < len(tensors)
    save_file(kept, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(VlmkitError, match=r"missing tensors encoders\.0\."):
        VLM.from_pretrained(copied)


def test_the_name_of_a_folder_decides_nothing(adapted, recipe, tmp_path, noise):
    """Not what trains, not what is saved, not how it is loaded; nor does a folder that was renamed."""
    run = train_recipe(recipe(tmp_path / "llava-lora-7b-qlora-vicuna-clip", ADAPTERS)).path
    assert losses(run) == losses(adapted) and different(run, adapted) == set()
    moved = run.rename(run.with_name("mpt-projector-checkpoint-4"))
    answers = [VLM.from_pretrained(p).ask(noise(1), "say yes", max_new_tokens=4) for p in (moved, adapted)]
    assert answers[0] == answers[1]


def test_another_seed_is_another_run(adapted, recipe, tmp_path):
    """The same one gives the same bits, as the test above shows."""
    other = train_recipe(recipe(tmp_path / "plain", ADAPTERS, seed=1)).path
    assert losses(other) != losses(adapted) and different(other, adapted)


def forget(name):
    """What stands for a function of `checkpoints` that brings something back, and does not."""
    return {
        "nothing": lambda patch: None,
        "optimiser": lambda patch: patch.setattr(checkpoints, "load_optimizer", lambda *_: None),
        "random state": lambda patch: patch.setattr(checkpoints, "set_random_state", lambda *_: None),
        "place": lambda patch: patch.setattr(loop, "_batches", _from_the_first(loop._batches)),
    }[name]


def _from_the_first(batches):
    """The samples of the first steps again, as where the place in the data is not stored."""

    def made(stage, data, run, start, steps):
        again = (own for _, own in batches(stage, data, run, 0, steps - start))
        return zip(range(start, steps), again)

    return made


@pytest.mark.parametrize("lost", ["nothing", "optimiser", "random state", "place"])
def test_each_thing_that_a_resumed_run_forgets_is_seen(adapted, recipe, tmp_path, monkeypatch, lost):
    """Resumed in the middle of its stage; a run without its optimiser's state is no resumed run."""
    run = shutil.copytree(adapted, tmp_path / "run")
    manifest = json.loads((run / "vlmkit.json").read_text())
    (run / "vlmkit.json").write_text(json.dumps({**manifest, "stages_done": [], "finished": False}))
    shutil.rmtree(checkpoints.latest_checkpoint(run, "only"))
    forget(lost)(monkeypatch)
    train_recipe(recipe(run, ADAPTERS), resume=True)
    assert bool(different(run, adapted)) is (lost != "nothing")
