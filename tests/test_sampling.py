"""What the kit's own engine samples from: the policy's softmax, whatever the model's generation_config says."""

import pytest
import torch
from hostile import engines, fits, make_hostile, trainers
from transformers import GenerationConfig

from hapo_lab.commands.cli import main
from hapo_lab.engines.protocol import Completion, EngineError, Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine, _GrowingLayer
from hapo_lab.methods import GRPO
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.memory import Shape, row_bytes
from hapo_lab.training.config import Config
from hapo_lab.training.evaluation import evaluate, grade
from hapo_lab.training.guards import TrainingError
from hapo_lab.training.trainer import Trainer

both_modes = pytest.mark.parametrize("own_copy", [True, False])


@pytest.fixture
def moved(fresh):
    """`tiny`, less sure of itself than it was made."""
    with torch.no_grad():
        for i, p in enumerate(fresh.trainable()):
            p += 0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return fresh


@pytest.fixture
def hostile(moved, monkeypatch):
    config = GenerationConfig()
    make_hostile(config)
    for model in (moved.model, moved.model.get_base_model()):
        monkeypatch.setattr(model, "generation_config", config)
    return moved


@both_modes
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_hostile_generation_config_changes_no_log_probability(hostile, sums, own_copy, temperature):
    prompts = [prompt_ids(hostile, p) for p in sums.train[:3]]
    drawn = TransformersEngine(hostile, own_copy).generate(prompts, 8, Sampling(16, temperature), seed=1)
    assert (trainers(hostile, prompts, drawn, temperature) - engines(drawn)).abs().max() < 1e-5


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 100])
def test_what_is_sampled_does_not_depend_on_how_many_rows_the_memory_holds(moved, sums, rows, monkeypatch):
    """Some answers end within eight tokens and leave their batch; some go on."""
    monkeypatch.setattr("hapo_lab.engines.transformers_engine.TIDY", 8)
    prompts, sampling = [prompt_ids(moved, p) for p in sums.train[:3]], Sampling(150, 6.0)
    row = row_bytes(Shape.of(moved.model.config), max(map(len, prompts)) + 150, width=4)
    one, other = (TransformersEngine(moved, memory=n * row).generate(prompts, 4, sampling, seed=3) for n in (12, rows))
    assert [[c.ids for c in group] for group in one] == [[c.ids for c in group] for group in other]
    assert (engines(one) - engines(other)).abs().max() < 1e-5
    assert (trainers(moved, prompts, other, 6.0) - engines(other)).abs().max() < 1e-5
    lengths = [len(c.ids) for group in one for c in group]
    assert min(lengths) <= 8 < 24 < max(lengths)


def test_an_answers_keys_are_copied_as_often_as_its_length_doubles_and_never_have_room_for_more_than_asked():
    layer, new = _GrowingLayer(longest=100), torch.randn(2, 1, 4, 100, 3)
    places, most = set(), 0
    for start, end in [(0, 5)] + [(i, i + 1) for i in range(5, 50)]:
        keys, values = layer.update(*new[..., start:end, :])
        places.add(keys.data_ptr())
        most = max(most, layer.rooms[0].shape[2])
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([1]))
    for i in range(50, 100):
        keys, values = layer.update(*new[..., i:i + 1, :])
    assert layer.get_seq_length() == layer.rooms[0].shape[2] == 100 and most < 100 and len(places) == 4  # 10, 20, 40, 80
    assert torch.equal(keys, new[0]) and torch.equal(values, new[1])


@both_modes
def test_a_hostile_generation_config_changes_no_frequency(hostile, sums, own_copy):
    prompt = prompt_ids(hostile, sums.train[0])
    drawn, = TransformersEngine(hostile, own_copy).generate([prompt], 4000, Sampling(1), seed=0)
    assert fits(hostile, prompt, drawn) > 0.01 and len({c.ids for c in drawn}) > 10


def test_prompts_of_any_length_are_sampled_as_if_alone(moved, sums):
    engine = TransformersEngine(moved)
    whole = prompt_ids(moved, sums.train[0])
    for prompts in ([whole[-1:], whole, whole[-5:]], [whole[-1:]]):
        drawn = engine.generate(prompts, 4, Sampling(8), seed=0)
        assert (trainers(moved, prompts, drawn) - engines(drawn)).abs().max() < 1e-5


# no numbers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(fresh):
    """`tiny` with NaN in its last norm, as an overflow leaves it."""
    weight = fresh.model.get_base_model().model.norm.weight
    before = weight.detach().clone()
    weight.data[3] = torch.nan
    yield fresh
    weight.data.copy_(before)


@both_modes
def test_an_evaluation_of_nan_is_an_error_and_no_rate(broken, sums, own_copy):
    with pytest.raises(EngineError, match="tiny gives NaN for log-probabilities, computing in torch.float32: its weights are"):
        evaluate(broken, TransformersEngine(broken, own_copy), sums, sums.heldout[:1], samples=2)


def test_training_on_nan_is_refused(broken, sums, tmp_path):
    config = Config(steps=1, prompts=1, group_size=2, eval_every=0)
    with pytest.raises(TrainingError, match="no rollouts: tiny gives NaN for log-probabilities"):
        list(Trainer(broken, sums, GRPO, config, folder=tmp_path, engine="transformers"))


def test_the_command_line_says_it_in_one_sentence(whole, monkeypatch, broken, tmp_path):
    broken.model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "run.json").write_text((whole / "run.json").read_text())
    (tmp_path / "steps.jsonl").write_text("")
    monkeypatch.setattr("hapo_lab.commands.cli.policy_of", lambda *_, **__: broken)
    with pytest.raises(SystemExit, match=r"^hapo_lab: tiny gives NaN for log-probabilities"):
        main(["evaluate", str(tmp_path)])


# engines that tell less --------------------------------------------------------------------------------------------


def test_a_completion_without_log_probabilities_is_graded_like_any_other(sums):
    problem = sums.train[0]
    rollout = grade(sums, problem, Completion((5, 4), problem.demonstration, (), True))
    assert rollout.reward == 1 and rollout.engine_logps == ()
