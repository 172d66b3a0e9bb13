"""Which weights of the image encoder learn: all, none, those of its last blocks, or LoRA adapters beside them."""

from torch import nn

from visionflow_hf.errors import UserError
from visionflow_hf.modeling import VisionFlowModel
from visionflow_hf.training.arguments import ModelArguments


def choose_what_learns(model: VisionFlowModel, args: ModelArguments, frozen: bool) -> None:
    """Freeze what shall not learn, and put adapters in where `args` asks for them.

    Args:
        frozen: whether the encoder's weights are kept where `args` does not say.

    Raises:
        UserError: more blocks than the encoder has, or peft is not installed.
    """
    frozen = frozen if args.freeze_encoder is None else args.freeze_encoder
    model.encoder.requires_grad_(not (frozen or args.unfreeze_blocks or args.lora_rank))
    if args.unfreeze_blocks:
        unfreeze_last_blocks(model.encoder, args.unfreeze_blocks)
    if args.lora_rank:
        model.encoder = with_adapters(model.encoder, args.lora_rank)


def unfreeze_last_blocks(encoder: nn.Module, number: int) -> None:
    """Let the last blocks learn, and all that follows them; the blocks of a hierarchical encoder are its stages."""
    blocks = next((module for module in encoder.modules() if isinstance(module, nn.ModuleList)), [])
    if not 0 < number <= len(blocks):
        raise UserError(f"--unfreeze_blocks is {number}: 1 to {len(blocks)} is expected, which this encoder has")
    weights = list(encoder.parameters())
    first = next(blocks[-number].parameters())
    for weight in weights[next(place for place, weight in enumerate(weights) if weight is first) :]:
        weight.requires_grad_()


def with_adapters(encoder: nn.Module, rank: int) -> nn.Module:
    """LoRA (Hu et al. 2021, arXiv:2106.09685): each linear layer's W is kept, and W + B A used; B begins at zero."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--lora_rank needs peft: pip install 'visionflow-hf[lora]'") from error
    if rank < 1:
        raise UserError(f"--lora_rank is {rank}: 1 or more is expected")
    return get_peft_model(encoder, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def merge_adapters(model: VisionFlowModel) -> None:
    """Add each B A to its W, so that the encoder is one like before."""
    if hasattr(model.encoder, "merge_and_unload"):
        model.encoder = model.encoder.merge_and_unload()
