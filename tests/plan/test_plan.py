"""The plan of an experiment: its passes are those that a run of it makes, and it says what is missing."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metagame.fetch.command import asked_configs
from metagame.jobs.build import Job
from metagame.models.clip import CLIP
from metagame.models.language_model import LanguageModel
from metagame.models.masked import MaskedModel
from metagame.models.siglip2 import SigLIP2
from metagame.models.vision_language import VisionLanguage
from metagame.plan.command import main
from metagame.plan.cost import (
    JobPlan,
    count_flops,
    forward_flops,
    model_facts,
    plan_job,
    planned_configs,
    summary,
)
from metagame.plan.passes import Count


def planned(overrides, scale="tiny"):
    """The config of each job with its plan."""
    configs = planned_configs([*overrides.split(), f"scale={scale}"])
    return [(cfg, plan_job(cfg, configs)) for cfg in configs]


def explain_all(job, limit):
    samples = list(job.benchmark.samples()[:limit])
    for sample, inputs in zip(samples, job.prepare(samples), strict=True):
        for variant in job.methods:
            job.evaluate(variant, sample, inputs, lambda done, total: None)


def counted_run(cfg, monkeypatch):
    """What goes through the model while a job explains its samples."""
    passes, texts = Counter(), set()

    def counting(owner, name, count):
        original = getattr(owner, name)

        def wrapped(self, *args, **kwargs):
            count(*args)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    counting(MaskedModel, "outputs", lambda inputs: passes.update(forward=len(inputs)))
    counting(MaskedModel, "_gradients", lambda inputs: passes.update(backward=len(inputs)))
    counting(LanguageModel, "generate", lambda prompt: passes.update(answers=1))
    for model in (CLIP, SigLIP2):
        counting(model, "encode_images", lambda pixels: passes.update(images=len(pixels)))
    counting(VisionLanguage, "embed", texts.update)
    job = Job.build(cfg)
    if cfg.benchmark.name in ("voc", "concepts"):
        blocks = job.model.pipeline.transformer.transformer_blocks
        name = "painting steps" if cfg.benchmark.name == "concepts" else "pictures"
        blocks[0].register_forward_pre_hook(lambda *_: passes.update({name: 1}))
    explain_all(job, cfg.limit)
    if texts:
        passes["texts"] = len(texts)
    monkeypatch.undo()
    return passes


@pytest.mark.parametrize(
    "overrides",
    [
        "experiment=table2 model=clip_vitb16 attribution=mask_clip,meta_grad_eclip,fixlip limit=3",
        "experiment=table2 model=clip_vitb16 attribution=patch_ig,meta_patch_ig,fixlip_banzhaf limit=2",
        "experiment=table4 model=siglip2_vitb32 attribution=meta_mask_siglip,fixlip limit=2",
        "experiment=figure13 benchmark=voc limit=3",
        "experiment=figure4",
    ],
)
def test_the_passes_are_those_of_a_run(overrides, monkeypatch):
    for cfg, plan in planned(overrides):
        assert not plan.missing
        assert plan.count.passes == counted_run(cfg, monkeypatch), plan.label


def test_passes_of_prompts_are_those_of_a_run_but_for_the_curves_of_pair_deletion(monkeypatch):
    few = "estimator.budget_per_player=8"
    for cfg, plan in planned(f"experiment=figure3 attribution=meta_attnlrp,ig,leave_one_out,proximity {few} limit=1"):
        passes, (sample,) = counted_run(cfg, monkeypatch), Job.build(cfg).benchmark.samples()[:1]
        curves = 2 * len(sample.text.split())
        assert passes["forward"] <= plan.count.passes["forward"] < passes["forward"] + curves
        assert plan.count.passes - Counter(forward=10**9) == passes - Counter(forward=10**9)
        assert any("curves" in note and "upper bound" in note for note in plan.notes)


def test_the_text_side_of_exclip_takes_passes_of_each_text_and_the_image_side_one_of_a_blank_image(monkeypatch):
    ((cfg, plan),) = planned("experiment=table4 model=siglip2_vitb32 attribution=exclip limit=2")
    passes, encode = Counter(), SigLIP2.encode_texts
    counted = lambda self, texts: passes.update(texts=len(texts)) or encode(self, texts)  # noqa: E731
    monkeypatch.setattr(SigLIP2, "encode_texts", counted)
    passes["images"] = counted_run(cfg, monkeypatch)["images"]
    assert plan.count.passes == passes == {"images": 3, "texts": 4 * 4}
    assert any("derivatives" in note for note in plan.notes)


def test_masked_images_of_the_text_side_are_counted_once_for_all_methods_and_a_text_once_more_for_each(monkeypatch):
    estimator = "estimator=regression estimator.budget_per_player=3"
    ((cfg, plan),) = planned(f"experiment=table2 model=clip_vitb16 attribution=both_ways {estimator} limit=2")
    passes = counted_run(cfg, monkeypatch)
    assert passes["images"] == 2 * (1 + 3 * 16)
    assert plan.count.passes == passes + Counter(texts=3 * 4)


@pytest.mark.parametrize(
    ("overrides", "backward", "tokens"),
    [
        ("experiment=faithfulness attribution=ig", None, None),
        (
            "experiment=faithfulness attribution=meta_attention_game_mutual_proxy estimator=exact"
            " estimator.budget_per_player=null",
            None, None,
        ),
        ("experiment=ttcav attribution.method.repeats=2", 5 * 50, 17),  # an image of concepts once, as a job has it
    ],
)  # fmt: skip
def test_passes_of_a_classifier_are_those_of_a_run_with_its_scores(overrides, backward, tokens):
    ((cfg, plan),) = planned(f"{overrides} limit=2")
    job, rows = Job.build(cfg), []

    def count(net, given, named):
        rows.append(len(named["inputs_embeds"] if "inputs_embeds" in named else given[0]))

    job.model.net.register_forward_pre_hook(count, with_kwargs=True)
    explain_all(job, 2)
    assert plan.count.passes["forward"] == sum(rows)
    if backward is not None:
        assert plan.count.passes == {"forward": sum(rows), "backward": backward}
        assert plan.count.tokens["forward"] == tokens * sum(rows)


def test_scores_are_counted_once_for_each_variant():
    ((_, plan),) = planned("experiment=figure3 attribution=lrp_by_layer limit=1")
    assert plan.count.passes["forward"] == 168  # of 8 variants, each with two curves of 10 points


def test_sentences_that_go_on_take_no_answer_and_a_pass_more_for_their_margin():
    ((_, plan),) = planned("experiment=evidence attribution=attnlrp limit=8", "paper")
    assert plan.count.passes == {"forward": 16, "backward": 8}
    assert not any("answers" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        ("experiment=table3 benchmark=voc", {"pictures": 1449}),
        ("experiment=figure13 benchmark=voc", {"pictures": 2898}),
        ("experiment=table2 attribution=meta_grad_eclip", {"images": 500, "texts": 10 + 9 * 10 + 1}),
    ],
)
def test_what_is_not_here_is_named_and_the_passes_counted_all_the_same(overrides, passes):
    _, plan = planned(overrides, "paper")[0]
    kind, number = next(iter(passes.items()))
    assert (plan.count.passes.keys(), plan.count.passes[kind]) == (passes.keys(), number)
    missing = " ".join(plan.missing)
    assert all(word in missing for word in ("the weights of", "metagame fetch weights model=", "data"))


def test_the_weights_that_are_missing_are_fetched_by_what_names_them_whatever_the_experiment_takes_itself():
    overrides = "model=smollm2_135m model.checkpoint=some/one model.revision=v1 limit=1"
    _, plan = planned(f"experiment=figure3 attribution=attnlrp {overrides}", "small")[0]
    command = "metagame fetch weights scale=small model=smollm2_135m model.checkpoint=some/one model.revision=v1"
    assert any(each.endswith(f": {command}.") for each in plan.missing)
    asked = command.removeprefix("metagame fetch weights ").split()
    assert [cfg.model.checkpoint for cfg in asked_configs(asked)] == ["some/one"]


@pytest.mark.parametrize("checkpoint", ["/nope/x/qwen", "data/nope/clip"])
def test_a_folder_that_does_not_exist_is_missing(checkpoint):
    _, plan = planned(f"experiment=figure3 attribution=attnlrp model.checkpoint={checkpoint} limit=1")[0]
    assert any(f"the folder {checkpoint}" in each and "does not exist" in each for each in plan.missing)


def test_a_model_that_cannot_be_counted_is_named_and_the_others_are_planned(capsys):
    main(["experiment=figure3", "scale=tiny", "attribution=attnlrp,attention"])
    output = capsys.readouterr().out
    assert "cannot be counted" in output
    assert "1 of 2 jobs" in output or "not known" in output


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("experiment=figure3 plan.tflops=fast", "plan.tflops=fast must be a positive number"),
        ("experiment=figure3 plan.tflops=0", "plan.tflops=0 must be a positive number"),
        ("experiment=figure99", "figure99"),
        ("experiment=faithfulness attribution=ig scale=small", "(has no values for|at) scale=small"),
        (
            "experiment=table1 leave_out=[{model:adderr}]",
            "leave_out has model=adderr, which is unknown: did you mean adder",
        ),
        ("model=adder plan.foo=3", "the setting 'plan' is unknown"),
        ("model=adder +scale.thread=3", r"the config has unknown settings \(scale.thread\)"),
    ],
)
def test_bad_input_gets_a_sentence(overrides, said):
    with pytest.raises(SystemExit, match=said):
        main(overrides.split())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("experiment=figure3 attribution=attnlrp model.max_new_tokens=null", "model.max_new_tokens=None must be"),
        ("experiment=figure4 model.denoising.n_steps=four", "model.denoising.n_steps=four must be a positive integer"),
    ],
)
def test_a_number_of_passes_that_is_none_is_told(overrides, said):
    _, plan = planned(overrides)[0]
    assert any(said in note for note in plan.notes)


def test_flops_of_a_transformer_are_those_that_torch_counts():
    width, tokens = 64, 50
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True).eval()
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        layer(torch.zeros(1, tokens, width))
    ours = forward_flops({"layers": 1, "width": width, "parameters": 12 * width**2}, tokens)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_hours_and_shards_follow_from_the_flops():
    facts = model_facts()["google/gemma-3-1b-it"]
    count = Count(Counter(forward=1000), Counter(forward=1000 * 100))
    assert count_flops(count, facts) == pytest.approx(1000 * forward_flops(facts["language"], 100))
    assert count_flops(count, {}) is None
    plan = JobPlan("a job", None, 30, count, 100e12 * 3600 * 40, (), ())  # 40 hours
    first, slurm = summary([plan], 100.0)
    assert "40 hours at 100 TFLOPs" in first
    assert slurm == "On SLURM: shards=15 hydra.launcher.timeout_min=240, by the longest job."
    *_, slurm = summary([replace(plan, n_samples=4)], 100.0)
    assert slurm == "On SLURM: shards=4 hydra.launcher.timeout_min=900, by the longest job."


@pytest.mark.parametrize(("kind", "part"), [("pictures", "transformer"), ("painting steps", "painting")])
def test_only_a_given_image_is_encoded_by_the_autoencoder(kind, part):
    facts = model_facts()["black-forest-labs/FLUX.1-schnell"]
    extra = facts["autoencoder"] if kind == "pictures" else 0
    each = forward_flops(facts[part], facts[part]["tokens"]) + extra
    assert count_flops(Count(Counter({kind: 2})), facts) == 2 * each
