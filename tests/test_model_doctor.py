"""What `doctor --model` says of a model: that it is computed right, or why not."""

import pytest
import torch
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

from hapo_lab.commands.cli import main
from hapo_lab.commands.model_doctor import PROMPT, SURPRISE, chi_square, saved_bytes
from hapo_lab.engines.protocol import Sampling
from hapo_lab.engines.transformers_engine import TransformersEngine
from hapo_lab.policy.chat import prompt_ids
from hapo_lab.policy.models import PRESETS


def examine(capsys, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--model", *map(str, arguments)])
    return end.value.code, capsys.readouterr().out


def test_a_model_is_examined_without_training(capsys):
    code, says = examine(capsys, "tiny", "--tokens", "1000")
    assert code == 0 and says.endswith("tiny can be trained here.\n")
    marks = {line[4:23].strip(): line[:4].strip() for line in says.splitlines() if line[:4] in ("ok  ", "--  ", "NO  ")}
    assert marks.pop("demonstrations") == "--"  # it knows few characters
    assert marks == dict.fromkeys(["family", "log-probabilities", "end of turn", "prompt", "sampling", "frequencies", "memory"],
                                  "ok")
    for words in ("llama: 4 layers of full attention", "'<end>' (4)", "a pass of 1,000 tokens", "not: '  two  spaces"):
        assert words in says


def test_a_model_that_is_computed_wrong_is_refused_in_a_sentence(capsys, tmp_path):
    MambaForCausalLM(MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, state_size=4)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(PRESETS["tiny"].source).save_pretrained(tmp_path)
    code, says = examine(capsys, tmp_path)
    assert code == 1 and "mamba carries a state along the sequence" in " ".join(says.split())
    assert f"{tmp_path} can't be trained here: model." in says


def test_a_model_that_is_not_there_is_named(capsys):
    code, says = examine(capsys, "gpt-9")
    assert code == 1 and "model 'gpt-9' is not a preset" in says


def test_frequencies_tell_another_temperature(fresh):
    engine, prompt = TransformersEngine(fresh), prompt_ids(fresh, PROMPT)
    with torch.no_grad():
        for i, p in enumerate(fresh.trainable()):
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    engine.sync()
    found = []
    for temperature in (1.0, 2.0):
        first, = engine.generate([prompt], 512, Sampling(1, temperature), seed=0)
        found.append(chi_square(fresh, prompt, [c.ids[0] for c in first]))
    assert found[0] > 0.01 and found[1] < SURPRISE


def test_what_a_pass_keeps_grows_with_its_tokens(fresh):
    kept = [saved_bytes(fresh, n) for n in (16, 32, 48)]
    assert 0 < kept[1] - kept[0] == pytest.approx(kept[2] - kept[1], rel=0.15)
