"""Operations of a step against those that PyTorch counts while it runs, and the table of peaks."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlmkit.train.flops import StageFlops, has_experts, states_attention
from vlmkit.train.module import StageModule
from vlmkit.train.peaks import PEAKS, peak_flops, peak_of
from vlmkit.train.stage import apply_stage

LR = {"lr": 1e-3}
# Wide enough that products of matrices are nearly all of the work.
WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
WIDE |= {"max_position_embeddings": 512}
TRAINS = {
    "all": {"encoder": LR, "connector": LR, "llm": LR},
    "connector": {"connector": LR},
    "llm": {"llm": LR},
    "adapters": {"connector": LR, "llm": {**LR, "lora": {"r": 2}}},
    "encoder": {"encoder": LR},
}


@pytest.fixture
def counted(tiny_vlm, make_stage, make_sample, collate):
    """A function: what trains, and the words of an answer, to (our count, PyTorch's count)."""

    def count(trains, words=2, attention="eager"):
        model = tiny_vlm(llm_options=WIDE)
        model.language_model.set_attn_implementation(attention)
        stage = make_stage(train=trains)
        apply_stage(model, stage)
        module = StageModule(model, stage)
        batch = collate(model, [make_sample("long", 1, ("what color is it?", "red " * words))])
        with torch.no_grad():
            # The head learns first whether it may work in chunks.
            module(batch)
        with FlopCounterMode(display=False) as counter:
            loss, _ = module(batch)["next_token"]
            loss.backward()
        return StageFlops(module)(batch), counter.get_total_flops()

    return count


@pytest.mark.parametrize("trains", TRAINS.values(), ids=TRAINS)
def test_operations_are_those_that_are_done(counted, trains):
    ours, theirs = counted(trains)
    assert ours == pytest.approx(theirs, rel=0.07)


def test_attention_grows_with_the_square_of_the_tokens(counted):
    """In a row of 300 tokens of 64 numbers it is much of the work."""
    ours, theirs = counted(TRAINS["llm"], 300)
    assert ours == pytest.approx(theirs, rel=0.03)


def test_what_trains_changes_the_count(counted):
    counts = {name: counted(trains)[0] for name, trains in TRAINS.items()}
    assert counts["connector"] < counts["adapters"] < counts["all"]
    assert counts["encoder"] > counts["connector"], "a gradient goes through all that is behind it"


def test_experts_are_not_counted():
    from transformers import LlamaConfig, MixtralConfig, Qwen3MoeConfig

    assert has_experts(MixtralConfig()) and has_experts(Qwen3MoeConfig())
    assert not has_experts(LlamaConfig())


def test_a_model_whose_configuration_states_no_attention_is_not_counted():
    from transformers import GPT2Config, LlamaConfig, MambaConfig, RwkvConfig

    assert states_attention(LlamaConfig()) and states_attention(GPT2Config())
    assert not states_attention(MambaConfig()) and not states_attention(RwkvConfig())


def test_peaks_are_known_by_the_whole_name_of_a_card():
    assert peak_of("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert peak_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None
    assert peak_of("Tesla T4", "bf16") is None and peak_of("Tesla T4", "no") == 8.1e12
    assert all(peak.bf16 is None or peak.bf16 > peak.fp32 for peak in PEAKS.values())
    assert peak_flops(torch.device("cpu"), "bf16") is None


def test_float32_that_may_be_shorter_has_no_peak():
    try:
        torch.set_float32_matmul_precision("high")
        assert peak_of("NVIDIA H200", "no") is None and peak_of("NVIDIA H200", "bf16") is not None
    finally:
        torch.set_float32_matmul_precision("highest")
