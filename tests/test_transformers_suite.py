"""transformers' own tests of every model and config, run against ours; `EXPLAINED` says why some are skipped."""

import re
import unittest

import torch
from transformers import ViTConfig
from upstream import import_upstream

from visionflow_hf import VisionFlowConfig, VisionFlowModel

common = import_upstream("test_modeling_common")
configuration = import_upstream("test_configuration_common")

# A skip for a reason that is not explained here is a failure. Beside these, decorators skip what needs an accelerator,
# Flash Attention, DeepSpeed, MPS or the kernels library, none of which this project requires, and what is marked slow.
EXPLAINED = {
    "No decoder-only language modeling head": "it is no language model",
    "No sequence-to-sequence language modeling head": "it is no language model",
    "test_resize_embeddings is set to `False`": "there are no tokens whose number could change",
    "does not have position embeddings": "those are the encoder's, and are tested with it",
    "does not support sliding window mask": "attention is the encoder's",
    "No model with a differentiable loss was available": "it looks for a token embedding, a ViT embeds by convolution",
    "does not support SDPA": "for models that are not composite; the composite test of dispatch runs",
    "Model does not support output_attentions": "it looks for hooks that record them, the encoder returns them",
    "Model does not have both a non-text modality tower and a language sub-model": "it has no language sub-model",
    "does not support grouped_mm": "there are no experts",
    "has no sparse experts": "there are no experts",
    "has no `output_router_logits`": "there are no experts",
    "has no _keep_in_fp32_modules": "every module may be bf16",
    "No `_keep_in_fp32_modules_strict` defined": "every module may be bf16",
    "Do not take a cache": "there are no earlier tokens to keep",
    "does not have a TP plan": "the largest layers are one subject's own, there is nothing to split over devices",
    "has no `base_model_class` defined": "there is one model class, without heads",
    "not in MODEL_MAPPING": "it is code of the Hub, not part of transformers",
}


class Tester:
    """A tiny config and its inputs, in the form that the mixin asks for."""

    batch_size = 3
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 16
    image_size = 12
    patch_size = 4
    seq_length = 10  # class token and 3 x 3 patches

    def get_config(self) -> VisionFlowConfig:
        vision = ViTConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=24,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        return VisionFlowConfig(
            vision_config=vision,
            image_size=[12, 12],
            feature_grid=3,
            linear_dim=2,
            latent_dim=9,  # the noise that the mixin gives to MAE, a number a patch, then fits our `noise`
            subjects=["ann", "bob"],
            num_voxels=[9, 5],
            bridge_hidden_size=8,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {
            "pixel_values": torch.rand(self.batch_size, 3, 12, 12),
            "fmri": torch.randn(self.batch_size, 9),
            "subject_ids": torch.tensor([0, 1, 0]),
        }


class VisionFlowModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (VisionFlowModel,)
    _is_composite = True
    test_resize_embeddings = False
    test_inputs_embeds = None  # no tokens
    test_model_get_set_embeddings = None
    test_all_params_have_gradient = False  # a ViT's pooler stays as it came, and is not read

    def setUp(self):
        self.model_tester = Tester()
        self.config_tester = configuration.ConfigTester(self, config_class=VisionFlowConfig, has_text_modality=False)

    def skipTest(self, reason):
        if not any(re.search(re.escape(known), reason, re.IGNORECASE) for known in EXPLAINED):
            self.fail(f"skipped for a reason that is not explained: {reason}")
        super().skipTest(reason)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_reverse_loading_mapping(self):
        """Our weights keep the model's own names on disk, see `VisionFlowModel.save_pretrained`."""
        super().test_reverse_loading_mapping(check_keys_were_modified=False)
