"""What a reader who knows transformers found in the Hugging Face side: each test failed once."""

import pandas as pd
import pytest
import torch
from test_model import tiny_config
from transformers import Trainer, TrainingArguments

from visionflow_hf import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.hub import load_model
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training_flags import told


def test_a_folder_is_left_without_the_voxels_of_an_earlier_model(run, tmp_path):
    model, _ = load_model(run)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "voxels.parquet").is_file()
    VisionFlowModel(tiny_config(subjects=["subj01"], num_voxels=[7])).save_pretrained(tmp_path)
    assert not (tmp_path / "voxels.parquet").exists()
    assert VisionFlowModel.from_pretrained(tmp_path).voxels is None


def test_the_requirements_of_a_user_are_kept(tmp_path):
    model = VisionFlowModel(tiny_config())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "requirements.txt").read_text().startswith("transformers>=")
    for own in ("mine\n", (tmp_path / "requirements.txt").read_text() + "mine==1.0\n"):
        (tmp_path / "requirements.txt").write_text(own)
        model.save_pretrained(tmp_path)
        assert (tmp_path / "requirements.txt").read_text() == own


def test_endpoints_install_what_an_autoencoder_needs(tmp_path):
    from visionflow_hf.modeling.handler import write_requirements

    config = tiny_config()
    config.decoder_type = "autoencoder_kl"
    write_requirements(str(tmp_path), config)
    assert "diffusers" in (tmp_path / "requirements.txt").read_text()


def test_regions_of_an_offloaded_model_are_its_own(run):
    from accelerate import cpu_offload

    model, processor = load_model(run)
    batch = processor(images=torch.rand(2, 1, 16, 16), subject="subj01")
    name, voxels = next(iter(model.roi_voxels("subj01").items()))
    expected = model.predict_fmri(**batch, rois=[name])[name]
    offloaded = cpu_offload(model, execution_device="cpu")
    assert offloaded.roi_voxels("subj01")[name].tolist() == voxels.tolist()
    torch.testing.assert_close(offloaded.predict_fmri(**batch, rois=[name])[name], expected)


def test_the_pipeline_of_each_task_of_the_config_is_made_with_a_model_at_hand(run):
    model, processor = load_model(run)
    features = model.pipeline("image-feature-extraction", processor)
    image = processor.post_process_images(torch.rand(1, 1, 16, 16))[0]
    assert features(image).shape == (model.config.latent_dim + model.config.linear_dim,)
    with pytest.raises(ValueError, match="unknown parameter num_samples"):
        features(image, num_samples=2)


def arguments(tmp_path, **more):
    return TrainingArguments(
        tmp_path, max_steps=1, save_strategy="no", report_to=[], remove_unused_columns=False, use_cpu=True, **more
    )


def rows(count=8):
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    images = VisionFlowProcessor(image_size=[16, 16], num_channels=1).post_process_images(
        torch.rand(count, 1, 16, 16, generator=generator)
    )
    fmri = torch.randn(count, 30, generator=generator).tolist()
    names = [f"s{number}" for number in range(count)]
    return Dataset.from_dict({"image": images, "fmri": fmri, "subject": ["subj01"] * count, "stimulus_id": names})


def made(table):
    from visionflow_hf import VisionFlowCollator

    processor = VisionFlowProcessor.from_dataset(table)
    model = VisionFlowModel(VisionFlowConfig.for_dataset(table, processor))
    return model, processor, VisionFlowCollator(processor)


def test_a_refit_without_the_processor_says_what_is_missing(tmp_path):
    table = rows()
    model, _, collator = made(table)
    for given, message in ((None, "give processor"), (object(), "VisionFlowProcessor is expected")):
        callbacks = [model.refit_callback()]
        trainer = Trainer(
            model, arguments(tmp_path), collator, table, callbacks=callbacks, processing_class=given if given else None
        )
        with pytest.raises(ValueError, match=message):
            trainer.train()


def test_adapters_on_the_side_that_is_fitted_are_refused_before_any_step(tmp_path):
    peft = pytest.importorskip("peft")
    table = rows()
    model, processor, collator = made(table)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    trainer = Trainer(
        adapted,
        arguments(tmp_path),
        collator,
        table,
        callbacks=[model.refit_callback()],
        processing_class=processor,
    )
    with pytest.raises(ValueError, match="adapters in fmri_to_latent"):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "saved", "validated", "best"),
    [
        ({}, "steps", "steps", True),
        ({"eval_strategy": "no"}, "steps", "no", False),
        ({"eval_strategy": "epoch"}, "epoch", "epoch", True),
        ({"save_strategy": "no"}, "no", "steps", False),
        ({"save_strategy": "epoch"}, "epoch", "epoch", True),
    ],
)
def test_saving_and_validating_follow_one_another(tmp_path, given, saved, validated, best):
    args = VisionFlowTrainingArguments(str(tmp_path), **given)
    assert (args.save_strategy, args.eval_strategy, args.load_best_model_at_end) == (saved, validated, best)
    assert VisionFlowTrainingArguments(str(tmp_path), eval_steps=50).save_steps == 50
    written = told(ModelArguments(), args)  # arguments.yaml, to which the next run adds its own flags
    assert {"save_strategy", "eval_strategy", "load_best_model_at_end", "save_steps"} & set(written) == set(given)


def test_the_config_takes_an_encoder_as_a_dict_and_sizes_as_numbers():
    table = rows()
    _, processor, _ = made(table)
    vision = {"model_type": "vit", "image_size": 16, "patch_size": 4, "num_channels": 1, "hidden_size": 16}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = VisionFlowConfig.for_dataset(table, processor, vision_config=vision, encoder_image_size=16)
    assert config.vision_config.hidden_size == 16 and config.encoder_image_size == [16, 16]


def test_samples_are_made_images_and_other_shapes_are_refused():
    processor = VisionFlowProcessor(image_size=[16, 16], num_channels=1)
    images = processor.post_process_images(torch.rand(3, 2, 1, 16, 16))
    assert [len(own) for own in images] == [2, 2, 2] and images[0][0].size == (16, 16)
    with pytest.raises(ValueError, match=r"pixels of shape \(1, 16, 16\)"):
        processor.post_process_images(torch.rand(1, 16, 16))


def test_input_embeddings_are_those_of_the_encoder_both_ways():
    model = VisionFlowModel(tiny_config())
    embeddings = model.get_input_embeddings()
    model.set_input_embeddings(embeddings)
    assert model.get_input_embeddings() is embeddings


def test_a_new_subject_from_a_table_of_pandas(run):
    model, _ = load_model(run)
    generator = torch.Generator().manual_seed(0)
    images, fmri = torch.rand(6, 1, 16, 16, generator=generator), torch.randn(6, 5, generator=generator)
    grown = model.fit_subject("new", images=images, fmri=pd.DataFrame(fmri.numpy(), index=range(10, 16)))
    assert "new" in grown.subjects
