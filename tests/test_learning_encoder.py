"""What of a pretrained encoder learns: its last blocks, or LoRA adapters; and what is kept."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.training.arguments import ModelArguments
from visionflow_hf.training.build import continue_model, with_adapters
from visionflow_hf.training.train import refuse_contradictions

CONFIG = ViTConfig(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
)


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    ViTModel(CONFIG, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def train(corpus, run, encoder, *flags) -> int:
    short = ["--max_steps", 6, "--disable_tqdm", "true", "--linear_dim", 0]
    words = ["train", corpus, run, "--encoder", encoder, *short, *flags]
    return main([str(word) for word in words])


def change(run, encoder) -> dict[str, torch.Tensor]:
    """What training added to each weight of the encoder."""
    before = ViTModel.from_pretrained(encoder, add_pooling_layer=False).state_dict()
    after = load_model(run)[0].encoder.state_dict()
    return {name: after[name] - values for name, values in before.items()}


def test_the_last_block_learns_and_no_other(encoder, colour_corpus, tmp_path):
    assert train(colour_corpus, tmp_path / "run", encoder, "--unfreeze_blocks", 1) == 0
    learned = {name for name, difference in change(tmp_path / "run", encoder).items() if difference.any()}
    assert learned and all("layers.1." in name or name.startswith("layernorm") for name in learned)
    assert {"layernorm.weight"} < learned


def test_adapters_change_linear_layers_by_matrices_of_their_rank(encoder, colour_corpus, tmp_path):
    assert train(colour_corpus, tmp_path / "run", encoder, "--lora_rank", 3) == 0
    ranks = {
        name: torch.linalg.matrix_rank(difference, rtol=1e-3).item()
        for name, difference in change(tmp_path / "run", encoder).items()
        if difference.any()
    }
    assert len(ranks) == 2 * 6  # query, key, value and output of the attention, and both layers of the MLP
    assert set(ranks.values()) == {3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unfreeze_blocks", "3"], "unfreeze_blocks is 3: 1 to 2"),
        (["--unfreeze_blocks", "-1"], "unfreeze_blocks is -1: a finite number of at least 0"),
        (["--lora_rank", "-1"], "lora_rank is -1: a finite number of at least 0"),
        (["--lora_rank", "2", "--unfreeze_blocks", "1"], "--unfreeze_blocks and --lora_rank each say"),
        (["--lora_rank", "2", "--freeze_encoder", "true"], "--freeze_encoder and --lora_rank each say"),
        (["--lora_rank", "2", "--freeze_encoder", "false"], "--freeze_encoder and --lora_rank each say"),
        (["--lora_rank", "2", "--freeze-shared"], "--lora_rank and --freeze_shared each say"),
        (["--lora_rank", "2", "--encoder", "scratch"], "name one with --encoder"),
    ],
)
def test_what_cannot_learn_so(encoder, colour_corpus, tmp_path, refused, flags, message):
    refused(lambda: train(colour_corpus, tmp_path / "run", encoder, *flags), message)
    assert not (tmp_path / "run").exists()


def test_adapters_need_linear_layers():
    pytest.importorskip("peft")
    with pytest.raises(UserError, match="--lora_rank adapts linear layers, and this encoder has none"):
        with_adapters(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), 4)


def test_a_trained_model_keeps_what_no_flag_changes(run, corpus):
    train = open_corpus(corpus).splits["train"]
    told = ModelArguments(from_model=str(run), kl_weight=0.5, bridge_dropout=0.0)
    model, _ = continue_model(str(run), train, told)
    before = load_model(run)[0].config
    assert (model.config.kl_weight, model.config.bridge_dropout) == (0.5, 0.0)
    assert (model.config.image_weight, model.config.linear_dim) == (before.image_weight, before.linear_dim)
    with pytest.raises(UserError, match="brings its own --decoder_channels"):
        refuse_contradictions(ModelArguments(from_model=str(run), decoder_channels=8))
