"""A new model and its processor, with the sizes that fit a corpus; and which weights of its encoder are trained."""

from datasets import Dataset
from torch import nn

from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.pretrained import load_autoencoder, load_encoder
from visionflow_hf.training.arguments import PRETRAINED, SCRATCH, ModelArguments

PRETRAINED_FROM = 64  # px; for smaller stimuli a small encoder is trained
OF_TRAINING = (
    *("bridge_dropout", "voxel_dropout"),
    *("image_weight", "kl_weight", "alignment_weight", "fmri_weight"),
)
PASSED_ON = ("feature_layers", "latent_dim", "linear_dim", "decoder_channels", "bridge_hidden_size", *OF_TRAINING)


def build_processor(train: Dataset, image_size: int | None = None) -> VisionFlowProcessor:
    """`VisionFlowProcessor.from_dataset`, whose complaints are the user's to mend."""
    try:
        return VisionFlowProcessor.from_dataset(train, image_size)
    except ValueError as error:
        raise UserError(str(error)) from error


def encoder_name(image_size: list[int], args: ModelArguments) -> str:
    """The encoder that `args` names, or the one that fits the images."""
    return args.encoder or (PRETRAINED if max(image_size) >= PRETRAINED_FROM else SCRATCH)


def build_model(processor: VisionFlowProcessor, args: ModelArguments, rows: Dataset) -> VisionFlowModel:
    """A model with new weights, but those of a pretrained encoder and of an autoencoder.

    Args:
        rows: of the train split, as `VisionFlowConfig.for_dataset` reads them.

    Raises:
        UserError: the encoder or the autoencoder cannot be found, or the encoder is no vision model.
    """
    encoder, own = None, {}
    name = encoder_name(processor.image_size, args)
    if name == SCRATCH:
        if args.unfreeze_blocks or args.lora_rank:
            raise UserError("--unfreeze_blocks and --lora_rank are for a pretrained encoder: name one with --encoder")
    else:
        encoder, own = load_encoder(name)
        own["vision_config"] = encoder.config
        if args.feature_layers:
            own["linear_layers"] = args.feature_layers
    if args.autoencoder is not None:
        autoencoder = load_autoencoder(args.autoencoder)
        settings = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
        own |= {"decoder_type": "autoencoder_kl", "autoencoder_config": settings}
    given = {name: getattr(args, name) for name in PASSED_ON if getattr(args, name) is not None}
    try:
        config = VisionFlowConfig.for_dataset(rows, processor, **given, **own)
    except ValueError as error:  # the config says what it expected
        raise UserError(str(error)) from error
    model = VisionFlowModel(config)
    if encoder is not None:
        model.encoder = encoder
    if args.autoencoder is not None:
        model.image_decoder.set_autoencoder(autoencoder)
    choose_trained_weights(model, args, frozen=encoder is not None)
    return model


def continue_model(name: str, train: Dataset, args: ModelArguments) -> tuple[VisionFlowModel, VisionFlowProcessor]:
    """The image side of a trained model, with new maps for the subjects of `train`; its processor.

    Raises:
        UserError: no model of that name.
    """
    trained, old = load_model(name)
    processor = build_processor(train)
    processor.image_size, processor.num_channels = old.image_size, old.num_channels
    config = VisionFlowConfig.from_dict(trained.config.to_dict())
    for name in OF_TRAINING:
        if getattr(args, name) is not None:
            setattr(config, name, getattr(args, name))
    linear_dim = args.linear_dim
    if linear_dim is None:  # fewer stimuli may have bounded that of the model
        linear_dim = max(config.linear_dim, VisionFlowConfig.linear_dim) if config.linear_dim else 0
    config.linear_dim = min(linear_dim, len(set(train["stimulus_id"])))
    config.linear_share, config.refine_steps, config.brightness = 0.0, 0, 1.0
    config.subjects = processor.subjects
    config.num_voxels = [len(processor.fmri_mean[subject]) for subject in processor.subjects]
    model = VisionFlowModel(config).float()  # the encoder of a model in half precision would be made in that
    for part in ("encoder", "posterior_head", "image_decoder"):
        getattr(model, part).load_state_dict(getattr(trained, part).state_dict())
    choose_trained_weights(model, args, frozen=False)
    return model, processor


def choose_trained_weights(model: VisionFlowModel, args: ModelArguments, frozen: bool) -> None:
    """Freeze the weights of the encoder that are not to be trained, and add adapters where `args` asks for them.

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
    """Train the last blocks and all that follows them; the blocks of a hierarchical encoder are its stages."""
    lists = [(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)]
    blocks = next((module for name, module in lists if "embed" not in name), [])  # some embed patches in each stage
    if not 0 < number <= len(blocks):
        raise UserError(f"--unfreeze_blocks is {number}: 1 to {len(blocks)} is expected, which this encoder has")
    frozen = {weight for block in list(blocks)[:-number] for weight in block.parameters()}
    weights = list(encoder.parameters())
    first = next(blocks[-number].parameters())
    for weight in weights[next(place for place, weight in enumerate(weights) if weight is first) :]:
        weight.requires_grad_(weight not in frozen)


def with_adapters(encoder: nn.Module, rank: int) -> nn.Module:
    """LoRA (Hu et al. 2021, arXiv:2106.09685): W of each linear layer is frozen, W + B A is used; B begins at zero."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--lora_rank needs peft: pip install 'visionflow-hf[lora]'") from error
    if rank < 1:
        raise UserError(f"--lora_rank is {rank}: 1 or more is expected")
    if not any(isinstance(module, nn.Linear) for module in encoder.modules()):
        raise UserError("--lora_rank adapts linear layers, and this encoder has none: give --unfreeze_blocks instead")
    return get_peft_model(encoder, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def merge_adapters(model: VisionFlowModel) -> None:
    """Add each B A to its W, which leaves an encoder without adapters."""
    if hasattr(model.encoder, "merge_and_unload"):
        model.encoder = model.encoder.merge_and_unload()
