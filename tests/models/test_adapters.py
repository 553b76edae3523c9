"""Low-rank adapters: what is trained, what it is merged into, what checkpoints hold, and the model without it."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.peft
from architectures import small_model
from conftest import TINY_TOFU_TEMPLATE, TinyNetwork, exact_norms, shipped
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sga.batching.batch import collate
from sga.batching.encoding import Encoder
from sga.callbacks import checkpoints
from sga.callbacks.evaluator import evaluation_of
from sga.callbacks.rules import Point, StoppingRule, Verdict
from sga.cli import UnlearningCLI, run_verb
from sga.errors import UserError
from sga.evaluation.cache import model_key
from sga.experiments.sequence import read_sequence
from sga.likelihood.forward import sequence_nll
from sga.models.adapters import LoRA, adapter_off, is_adapter_weight, save_merged
from sga.models.blocks import check_layers
from sga.models.pretrained import Pretrained
from sga.runs.starting_model import StartingModel

Adapted = Callable[..., PreTrainedModel]
Fit = Callable[..., UnlearningCLI]


@pytest.fixture(scope="session")
def base_folder(tiny_network: TinyNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder."""
    folder = tmp_path_factory.mktemp("base")
    tiny_network.model(torch.float32).save_pretrained(folder)
    tiny_network.encoder.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapted(base_folder: Path, tiny_network: TinyNetwork) -> Adapted:
    """Makes the tiny model with an adapter; `moved` puts random numbers in the place of B, which is zero at first."""

    def make(moved: bool = False, dtype: torch.dtype = torch.float64, **options: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        language_model = LoRA(str(base_folder), **{"rank": 4, "alpha": 8, "dropout": 0.0, **options})
        network = language_model.network(tiny_network.encoder.tokenizer).to(dtype)
        if dtype == torch.float64:
            exact_norms(network)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if moved and "lora_B" in name:
                    parameter.normal_(std=0.1)
        return network.eval()

    return make


def gradients(network: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_training_starts_from_the_model_and_moves_the_adapter_only(
    adapted: Adapted, tiny_network: TinyNetwork, dora: bool
) -> None:
    """LoRA adds a zero. DoRA divides by a norm and multiplies with one that was computed in float32: hence 1e-7."""
    network, batch = adapted(dora=dora), collate(tiny_network.groups(2, 3))
    torch.testing.assert_close(
        sequence_nll(network, batch), sequence_nll(tiny_network.model(), batch), rtol=0, atol=1e-7 if dora else 0
    )
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name in network.state_dict() if is_adapter_weight(name)}
    # Seven linear layers in each of two blocks, none of them the head; A and B, and for DoRA the norms.
    assert len(trainable) == 2 * 7 * (3 if dora else 2)
    assert gradients(network, sequence_nll(network, batch).mean()).keys() == trainable


@pytest.mark.parametrize("dora", [False, True])
def test_without_its_adapter_the_model_is_the_one_before_to_the_last_bit(
    adapted: Adapted, tiny_network: TinyNetwork, dora: bool
) -> None:
    network, batch = adapted(moved=True, dora=dora), collate(tiny_network.groups(2, 3))
    expected, moved = sequence_nll(tiny_network.model(), batch), sequence_nll(network, batch)
    assert not torch.allclose(moved, expected, atol=1e-3), "the adapter does something"
    network.train()
    assert torch.equal(StartingModel(network).answers(batch).nll, expected)
    assert network.training and torch.equal(sequence_nll(network.eval(), batch), moved)


def test_switching_the_adapter_off_leaves_alone_what_is_trained(adapted: Adapted) -> None:
    """A loss that trains block 1 only trains the adapter's part of it, before and after."""
    network = adapted()
    check_layers(network, trained_layers=(1,))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all(is_adapter_weight(name) and ".layers.1." in name for name in trained)
    with adapter_off(network):
        assert trained == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_gradients_do_not_depend_on_the_adapter_being_switched_off_in_between(
    adapted: Adapted, tiny_network: TinyNetwork
) -> None:
    network, batch = adapted(moved=True), collate(tiny_network.groups(2, 3))
    expected = gradients(network, sequence_nll(network, batch).mean())
    loss = sequence_nll(network, batch).mean()
    StartingModel(network).answers(batch)  # as a method with a reference does it, before the backward pass
    for name, gradient in gradients(network, loss).items():
        assert torch.equal(gradient, expected[name])


@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
def test_gradient_checkpointing_gives_the_same_gradients(
    kind: str, adapted: Adapted, tiny_network: TinyNetwork
) -> None:
    network = tiny_network.model() if kind == "full" else adapted(moved=True, dora=kind == "dora")
    network.train()
    batch = collate(tiny_network.groups(2, 3))
    expected = gradients(network, sequence_nll(network, batch).mean())
    network.gradient_checkpointing_enable()
    found = gradients(network, sequence_nll(network, batch).mean())
    assert expected.keys() == found.keys() and max(g.abs().max() for g in expected.values()) > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dora", [False, True])
def test_the_merged_model_gives_the_same_logits(
    adapted: Adapted, tiny_network: TinyNetwork, tmp_path: Path, dora: bool
) -> None:
    network = adapted(moved=True, dora=dora)
    before = model_key(network, {})
    save_merged(network, tmp_path, network.state_dict())
    assert model_key(network, {}) == before
    plain = exact_norms(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)).eval()
    assert not any(is_adapter_weight(name) or "base_layer" in name for name in plain.state_dict())
    assert plain.config.tie_word_embeddings and plain.lm_head.weight is plain.model.embed_tokens.weight
    ids = torch.tensor([tiny_network.encoded[0].ids])
    torch.testing.assert_close(plain(ids).logits, network(ids).logits, rtol=0, atol=1e-10)
    assert not torch.allclose(plain(ids).logits, tiny_network.model()(ids).logits, atol=1e-3)


def test_frozen_weights_may_be_bfloat16_and_the_adapter_is_float32(
    base_folder: Path, tiny_network: TinyNetwork, recwarn: pytest.WarningsRecorder
) -> None:
    network = LoRA(str(base_folder), dtype="bfloat16").network(tiny_network.encoder.tokenizer)
    types = {is_adapter_weight(name): parameter.dtype for name, parameter in network.named_parameters()}
    assert types == {False: torch.bfloat16, True: torch.float32}
    assert not [warning for warning in recwarn if "pure bfloat16" in str(warning.message)]


def test_what_an_adapter_is_scaled_with_is_part_of_the_key_of_kept_answers(adapted: Adapted) -> None:
    keys = {model_key(adapted(alpha=alpha), {}) for alpha in (8, 8, 16)}
    assert len(keys) == 2
    assert model_key(adapted(moved=True), {}) not in keys


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0}, "alpha must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"target_modules": []}, "target_modules must name at least one layer"),
        ({"target_modules": ["query"]}, "no adapter fits into"),
        ({"target_modules": ["q_proj", "lm_head"]}, "share their weights"),
    ],
)
def test_adapters_that_cannot_be_are_refused(adapted: Adapted, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        adapted(**options)


# ---- mixtures of experts --------------------------------------------------------------------------------------------


def described(**options: Any) -> LoRA:
    """An adapter without a folder: the network is given to `prepared`."""
    return LoRA("gpt2", **{"rank": 2, "alpha": 4, "dropout": 0.0, **options})


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "qwen3_next", "llama"])
def test_experts_with_an_adapter_are_merged(name: str, tmp_path: Path) -> None:
    network = small_model(name)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    with torch.no_grad():
        before = network(input_ids=ids).logits
        described().prepared(network)
        for own, parameter in network.named_parameters():
            if "lora_B" in own:
                parameter.normal_(std=0.3)
        moved = network(input_ids=ids).logits
        with adapter_off(network):
            torch.testing.assert_close(network(input_ids=ids).logits, before, rtol=0, atol=1e-5)
        save_merged(network, tmp_path, network.state_dict())
        merged = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, moved, rtol=0, atol=1e-4)
    assert (moved - before).abs().max() > 0.1
    assert any("experts" in own for own, _ in network.named_parameters() if is_adapter_weight(own)) == (name != "llama")


def test_experts_are_refused_with_the_default_dropout_and_the_way_out_works() -> None:
    with pytest.raises(UserError, match=r"experts .*set --model.language_model.dropout 0 .*target_modules, such as"):
        described(dropout=0.05).prepared(small_model("mixtral"))
    described(dropout=0.05, target_modules=["q_proj", "v_proj"]).prepared(small_model("mixtral"))


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("qwen2_moe", r"mlp\.gate\.weight, mlp\.experts\.gate_up_proj, mlp\.experts\.down_proj$"),
        ("phimoe", r"mlp\.router\.weight"),  # a linear layer that gives several things, on which PEFT's fails
        ("gpt_oss", r"mlp\.experts\.gate_up_proj"),
    ],
)
def test_what_stays_frozen_is_said(name: str, frozen: str) -> None:
    network = small_model(name)
    with pytest.warns(UserWarning, match=f"get no adapter and stay as they are.*{frozen}"):
        described().prepared(network)
    network(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()


def test_nothing_is_said_where_everything_has_an_adapter(recwarn: pytest.WarningsRecorder) -> None:
    for name in ("llama", "gpt2", "mixtral"):
        described().prepared(small_model(name))
    network = small_model("gemma3")
    described().prepared(network)
    assert not [one for one in recwarn if "no adapter" in str(one.message)]
    adapted = [own for own, _ in network.named_parameters() if is_adapter_weight(own)]
    assert len(adapted) == 28 and all("language_model" in own for own in adapted), "none on what reads images"


def test_a_missing_package_is_said_before_anything_is_loaded(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"sga-unlearning\[lora\]"):
        LoRA(str(base_folder))


def test_a_peft_that_transformers_refuses_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "99.0")
    with pytest.raises(UserError, match=r"transformers \d.* with peft \d.* >= 99\.0.*sga-unlearning\[lora\]"):
        LoRA("no such model")


def test_tiny_tofu_ascends_by_its_adapter_alone_and_merges(tiny_models: Path, tmp_path: Path) -> None:
    """A real trained model, one ascent step with plain tools. 1e-5: float32, as in the runs below."""
    language_model = LoRA(str(tiny_models / "full"), rank=4, dropout=0.0)
    tokenizer = language_model.tokenizer([])
    torch.manual_seed(0)
    network = language_model.network(tokenizer)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    encoder = Encoder(tokenizer, TINY_TOFU_TEMPLATE, 512)
    pairs = (("Who wrote Hamlet?", "Shakespeare"), ("Who wrote Faust?", "Goethe"))
    batch = collate([[encoder.encode(*pair) for pair in pairs]])
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    nll = sequence_nll(network, batch).mean()
    (-nll).backward()
    optimizer.step()
    assert sequence_nll(network, batch).mean() > nll
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("lora_B" in name for name in moved), "A's gradient is zero as long as B is"
    save_merged(network, tmp_path, network.state_dict())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(sequence_nll(plain, batch), sequence_nll(network, batch), rtol=0, atol=1e-5)


# ---- runs -----------------------------------------------------------------------------------------------------------

QUICK = ("--model_utility.generate=false",)
SHORT = (*QUICK, "--export.enabled=false")


@pytest.fixture
def fit(unlearn_options: list[str], own_target: Path) -> Fit:
    """Runs a short run with an adapter into a folder; more options override."""
    lora = ["--model.language_model=LoRA", f"--model.language_model.name_or_path={own_target}"]

    def run(folder: Path, *options: str) -> UnlearningCLI:
        return run_verb(["fit", *unlearn_options, *lora, f"--run.folder={folder}", *options])

    return run


def weights(run: UnlearningCLI) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.model.state_dict().items()}


def starting_weights(own_target: Path) -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(own_target / "model").state_dict())


@dataclass(frozen=True)
class First(StoppingRule):
    """Chooses the first evaluation, of the model before training."""

    def declaration(self) -> str:
        return "the first evaluation"

    def needs(self) -> tuple[str, ...]:
        return ()

    def judge(self, point: Point, start: Point, chosen: Point | None) -> Verdict:
        return Verdict(chosen is None, "it is the first", None)


def assert_only_the_adapter_moved(run: UnlearningCLI, own_target: Path) -> None:
    start = starting_weights(own_target)
    moved = 0.0
    for name, value in weights(run).items():
        if not is_adapter_weight(name):
            assert torch.equal(value, start[name.replace(".base_layer.", ".")]), name
        elif "lora_B" in name:
            moved = max(moved, value.abs().max().item())
    assert moved > 1e-4, "B is no longer zero"


def metrics_of(run: UnlearningCLI) -> dict[str, float]:
    """Of the last evaluation."""
    evaluation = evaluation_of(run.trainer)
    assert evaluation is not None
    return evaluation.metrics


def test_a_run_leaves_the_adapter_alone_and_merged(
    fit: Fit, own_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """1e-5: float32 weights with the adapter added to them are rounded once more than two products that are added."""
    folder = tmp_path / "run"
    run = fit(folder, "--model.loss=sga.GradientAscent", "--model.gradient_checkpointing=true", *QUICK)
    assert_only_the_adapter_moved(run, own_target)
    held = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert held and all(is_adapter_weight(name) for name in held)

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer("Where was Ada Brook born?", return_tensors="pt").input_ids
    network = run.model.model.eval()
    network.gradient_checkpointing_disable()
    expected = network(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(folder / "model")
    torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(own_target / "model")
    assert not torch.allclose(base(ids).logits, expected, atol=1e-3)
    torch.testing.assert_close(
        PeftModel.from_pretrained(base, folder / "adapter").eval()(ids).logits, expected, rtol=0, atol=1e-5
    )

    model = ["--model.language_model=Pretrained", f"--model.language_model.name_or_path={folder}"]
    again = run_verb(["validate", *own_options, *model, *QUICK, f"--run.folder={tmp_path / 'again'}"])
    last = metrics_of(run)
    for name, value in metrics_of(again).items():
        if "perplexity" in name:
            assert value == pytest.approx(last[name], rel=1e-4)
    kept = run_verb(["test", "--config", str(folder / "config.yaml")])
    assert metrics_of(kept)["own/forget/avg_nll"] == pytest.approx(last["own/forget/avg_nll"], rel=1e-6)


def test_the_reference_is_the_same_model_without_its_adapter(
    fit: Fit, own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step every log-ratio is 0, so that NPO's loss is (2/β)·log 2; and weights are loaded once only."""
    loads = []
    network = Pretrained.network
    monkeypatch.setattr(Pretrained, "network", lambda *arguments: loads.append(1) or network(*arguments))
    npo = ("--model.loss=sga.NPO", "--model.loss.beta=0.1", "--data.micro_batch_size=2", *SHORT)
    first = fit(tmp_path / "one", *npo, "--trainer.max_steps=1")
    assert first.trainer.callback_metrics["train/loss"].item() == pytest.approx(20 * math.log(2), abs=1e-5)
    run = fit(tmp_path / "whole", *npo)
    assert run.trainer.callback_metrics["train/loss"].item() < 20 * math.log(2) - 1e-3
    assert_only_the_adapter_moved(run, own_target)
    kl = fit(tmp_path / "kl", "--model.loss=sga.KLMinimization", *SHORT, "--trainer.max_steps=1")
    assert kl.model.tokens["reference_tokens"] or kl.model._starting is not None
    assert len(loads) == 3, "one for each run"


def test_a_dynamic_rate_looks_at_the_adapter(fit: Fit, own_target: Path, tmp_path: Path) -> None:
    run = fit(
        tmp_path / "run",
        "--model.loss.smoothing_rate=sga.MarginRate",
        "--model.loss.smoothing_rate.margin=0.5",
        "--data.micro_batch_size=2",
        *SHORT,
    )
    assert set(run.model.rate.geometry) == {"model.layers.0", "model.layers.1"}, "no embeddings, no head, no norm"
    assert run.model.rate.state.decisions == 4
    assert_only_the_adapter_moved(run, own_target)


def test_a_run_resumed_from_any_checkpoint_ends_as_the_whole_one(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the adapter's dropout, a rule that puts its own choice back, and a loss that needs the reference."""
    found: list[Path] = []
    save = checkpoints.save

    def save_and_copy(trainer: Any, name: str, weights_only: bool = False) -> None:
        save(trainer, name, weights_only)
        folder = Path(trainer.default_root_dir)
        if name == "last":
            found.append(folder.with_name(f"{folder.name}-{len(found)}"))
            shutil.copytree(folder, found[-1], ignore=shutil.ignore_patterns("tensorboard"))

    options = ("--model.loss=sga.NPO", "--data.batch_size=3", "--data.micro_batch_size=2", *SHORT)
    options += ("--checkpoint.every_n_steps=1",)
    monkeypatch.setattr(checkpoints, "save", save_and_copy)
    whole = weights(fit(tmp_path / "whole", *options))
    taken = list(found)
    assert len(taken) >= 3
    for folder in taken:
        resumed = weights(fit(folder, "--ckpt_path=last", *options))
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_rule_puts_the_chosen_adapter_back(fit: Fit, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "--stop.rule=test_adapters.First", *SHORT)
    best, last = (
        torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    assert best["global_step"] < last["global_step"] and best["state_dict"].keys() == last["state_dict"].keys()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, best["state_dict"][name])
    assert any(not torch.equal(value, best["state_dict"][name]) for name, value in last["state_dict"].items())


def test_a_checkpoint_is_refused_beside_other_weights(fit: Fit, own_target: Path, tmp_path: Path) -> None:
    copy = tmp_path / "target"
    shutil.copytree(own_target / "model", copy)
    options = (f"--model.language_model.name_or_path={copy}", *SHORT)
    fit(tmp_path / "run", *options)
    other = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.01)
    other.save_pretrained(copy)
    with pytest.raises(UserError, match="made with another model beside its adapter"):
        fit(tmp_path / "run", *options, "--ckpt_path=last", "--trainer.max_epochs=3")


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["sga", "sga-margin", "npo-kl", "rmu", "undial"])
def test_methods_on_the_built_in_authors(stem: str, finished_run: Path, tmp_path: Path) -> None:
    target = finished_run.parent / "target"
    run = run_verb(
        [
            "fit",
            *shipped("authors", stem),
            "--model.language_model=LoRA",
            f"--model.language_model.name_or_path={target}",
            "--data.source.retain_authors=4",
            "--data.source.questions_per_author=6",
            "--data.evaluation_rows=4",
            "--evaluation.reference=null",
            "--trainer.accelerator=cpu",
            "--trainer.max_epochs=1",
            f"--run.folder={tmp_path / 'run'}",
            *(["--model.loss.layer=1", "--model.loss.trained_layers=[0,1]"] if stem == "rmu" else []),
            *SHORT,
        ]
    )
    assert_only_the_adapter_moved(run, target)


def test_each_request_of_a_sequence_trains_its_own_adapter(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "model:\n  language_model:\n    class_path: sga.LoRA\n"
        "    init_args: {name_or_path: gpt2, revision: main, rank: 4}\n"
    )
    (tmp_path / "sequence.yaml").write_text("config: base.yaml\nfolds: 2\n")
    _, second = read_sequence(tmp_path / "sequence.yaml")
    assert second.full_config(tmp_path / "runs")["model"]["language_model"] == {
        "class_path": "sga.LoRA",
        "init_args": {"rank": 4, "name_or_path": str(tmp_path / "runs" / "request-1")},
    }
