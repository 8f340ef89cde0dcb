"""What moves from one model into another, tensor by tensor, and what is said where it does not fit."""

import pytest
import torch

from csat.errors import ConfigError
from csat.labels.datasets import consep, pannuke
from csat.model.files import load_exported, save_model
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.model.student import Student, StudentConfig
from csat.model.transfer import transfer
from csat.panel import on_tile
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.tasks import Task
from teachers.hovernet import PUBLISHED
from tests.csat.model.test_registry import DENSE, FOR_NUCLEI, build

ALL = (BACKBONE, DECODER, HEADS)


def changed_by(source, model, parts) -> set[str]:
    """Tensors that the transfer changed; those that it says it copied are the source's, the others are as they were."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = source.state_dict()
    moved = set(transfer(source, model, parts=parts, source_name="runs/first"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name] if name in moved else before[name]), name
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def used(model):
    """With norm statistics and affine weights that are not the fresh ones', so that a copy shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize(("name", "task"), DENSE.items())
@pytest.mark.parametrize("parts", [(BACKBONE,), (BACKBONE, DECODER), ALL], ids="+".join)
def test_exactly_the_named_parts_move(name, task, parts):
    source, model = used(build(name, task, seed=1)), build(name, task)
    expected = set().union(*(model.tensors_of(part) for part in parts)) | ({"mean", "std"} & model.state_dict().keys())
    counters = {
        tensor for tensor in expected if tensor.endswith("num_batches_tracked")
    }  # whole numbers: not changed by `used`
    assert changed_by(source, model, parts) == expected - counters


def test_the_parts_of_a_model_are_all_of_it():
    for name, task in DENSE.items():
        model = build(name, task)
        parts = [set(model.tensors_of(part)) for part in ALL]
        assert sum(map(len, parts)) == len(set().union(*parts))
        rest = model.state_dict().keys() - set().union(*parts)
        assert rest == ({"net.upsample2x.unpool_mat"} if name == "hovernet" else {"mean", "std"})


@pytest.mark.parametrize("name", ["csat_nano", "unet"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(Task.NUCLEI, Task.SEGMENTATION), (Task.NUCLEI, Task.CLASSIFICATION), (Task.CLASSIFICATION, Task.NUCLEI)],
)
def test_another_task_keeps_its_own_heads(name, before, after):
    source, model = used(build(name, before, seed=1)), build(name, after)
    changed = changed_by(source, model, ALL)
    assert not changed & model.tensors_of(HEADS).keys()
    assert changed >= {tensor for tensor in model.tensors_of(BACKBONE) if not tensor.endswith("num_batches_tracked")}
    is_dense = Task.CLASSIFICATION not in (before, after)
    assert bool(changed & model.tensors_of(DECODER).keys()) == is_dense  # a decoder that never saw a map is worth nothing


@pytest.mark.parametrize("name", FOR_NUCLEI)
def test_other_types_keep_their_own_head(name):
    source = used(build(name, Task.NUCLEI, seed=1, classes=("a", "b", "c")))
    for classes in (("x", "y"), ("a", "c", "b")):  # another number, and the same number in another order
        model = build(name, Task.NUCLEI, classes=classes)
        changed = changed_by(source, model, ALL) & model.tensors_of(HEADS).keys()
        heads = {head for head in ("np", "hv", "tp") if any(f".{head}." in name for name in changed)}
        assert heads == {"np", "hv"}


def test_a_branch_that_the_run_lacks_stays_fresh():
    source, model = used(build("hovernet", Task.NUCLEI, seed=1, classes=())), build("hovernet", Task.NUCLEI)
    changed = changed_by(source, model, ALL)
    assert not any(".tp." in name for name in changed) and any("decoder.hv.u3" in name for name in changed)


def test_heads_that_rckd_made_are_those_of_nuclei():
    """A pretrained student learned `tp` as a probability, labels are learned as logits: raw predictions are one thing."""
    names = ("background", "immune", "tumour")
    responses = [
        ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=46),
        ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=46, symmetry=Symmetry.HV),
        ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=3, crop_px=46, channel_names=names),
    ]
    source = used(Student(StudentConfig(backbone="csat_nano", decoder_channels=8), responses))
    model = build("csat_nano", Task.NUCLEI)
    assert model.tensors_of(HEADS).keys() <= changed_by(source, model, ALL)


OLD_TYPES = {  # as students of published teachers were exported by version 0.1
    "pannuke": ("background", "neoplastic", "inflammatory", "connective", "dead", "non-neoplastic epithelial"),
    "consep": ("background", "miscellaneous", "inflammatory", "epithelial", "spindle-shaped"),
    "monusac": ("background", "epithelial", "lymphocyte", "macrophage", "neutrophil"),
}
OF_SETS = {
    "pannuke": pannuke.TYPES,
    "consep": consep.TYPES,
    "monusac": ("Epithelial", "Lymphocytes", "Macrophages", "Neutrophils"),
}


@pytest.mark.parametrize("name", OLD_TYPES)
@pytest.mark.parametrize("is_old", [False, True], ids=["now", "as version 0.1 wrote it"])
def test_types_learned_of_a_published_hovernet_are_those_of_its_set(tmp_path, name, is_old):
    """The head `tp` of a student of that teacher starts the one that learns from the labels, however the types were spelt."""
    types = OLD_TYPES[name] if is_old else PUBLISHED[name].types
    tp = ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=len(types), channel_names=types)
    student = used(Student(StudentConfig(backbone="csat_nano", decoder_channels=8), [tp]))
    save_model(student, str(tmp_path), {"teacher": "hovernet"})
    source, model = load_exported(str(tmp_path)), build("csat_nano", Task.NUCLEI, classes=OF_SETS[name])
    changed = changed_by(source, model, ALL)
    assert any(".tp." in tensor for tensor in changed & model.tensors_of(HEADS).keys())
    other = build("csat_nano", Task.NUCLEI, classes=tuple(reversed(OF_SETS[name])))
    assert not any(".tp." in tensor for tensor in changed_by(source, other, ALL))


def test_normalisation_moves_with_the_backbone():
    source, model = build("csat_nano", Task.NUCLEI), build("csat_nano", Task.NUCLEI)
    source.mean.fill_(0.7)
    transfer(source, model, parts=(BACKBONE,), source_name="x")
    assert model.mean.flatten().tolist() == pytest.approx([0.7] * 3)


def test_a_tag_names_the_same_backbone():
    source = build("convnextv2_atto.fcmae_ft_in1k", Task.CLASSIFICATION, seed=1)
    model = build("convnextv2_atto", Task.CLASSIFICATION)
    transfer(source, model, parts=ALL, source_name="x")
    assert torch.equal(model.backbone.stem[0].weight, source.backbone.stem[0].weight)


class TestRefusals:
    def refuse(self, source, model, parts=ALL):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ConfigError) as caught:
            transfer(source, model, parts=parts, source_name="runs/first")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert "runs/first" in str(caught.value)
        return str(caught.value)

    def test_another_backbone_names_both(self):
        message = self.refuse(build("resnet18", Task.NUCLEI, decoder_channels=8), build("csat_nano", Task.NUCLEI))
        assert "'resnet18'" in message and "'csat_nano'" in message and "set model.name resnet18" in message

    def test_another_kind_of_model_names_both(self):
        message = self.refuse(build("hovernet", Task.NUCLEI), build("csat_nano", Task.NUCLEI))
        assert "holds a hovernet" in message and "student with the backbone 'csat_nano'" in message
        assert "holds a student with the backbone 'csat_nano'" in self.refuse(
            build("csat_nano", Task.NUCLEI), build("unet", Task.NUCLEI)
        )

    def test_another_width_of_the_decoder(self):
        source, model = build("csat_nano", Task.NUCLEI, decoder_channels=16), build("csat_nano", Task.NUCLEI)
        message = self.refuse(source, model)
        assert "decoder" in message and "model.decoder_channels" in message and "model.transfer backbone" in message
        assert "[16, 24] there, [8, 24] here" in message
        transfer(source, model, parts=(BACKBONE,), source_name="x")

    def test_which_does_not_matter_where_there_is_none(self):
        source = build("csat_nano", Task.NUCLEI, decoder_channels=16)
        transfer(source, build("csat_nano", Task.CLASSIFICATION), parts=ALL, source_name="x")

    @pytest.mark.parametrize("options", [{"width": 8, "depth": 2}, {"width": 4, "depth": 3}])
    def test_another_size_of_unet(self, options):
        message = self.refuse(build("unet", Task.NUCLEI, options=options), build("unet", Task.NUCLEI))
        assert "the backbone of runs/first has another size" in message and "Set model.options" in message

    def test_another_mode_of_hovernet_shares_the_encoder_only(self):
        source = used(build("hovernet", Task.NUCLEI, seed=1, options={"width": 0.0625, "mode": "original"}))
        assert "the decoder of runs/first" in self.refuse(source, build("hovernet", Task.NUCLEI))
        assert changed_by(source, build("hovernet", Task.NUCLEI), (BACKBONE,))

    @pytest.mark.parametrize("name", ["csat_nano", "unet"])
    def test_a_decoder_that_was_never_trained(self, name):
        message = self.refuse(build(name, Task.CLASSIFICATION), build(name, Task.SEGMENTATION), (BACKBONE, DECODER))
        assert "no decoder that was ever trained: set model.transfer backbone" in message


def test_heads_that_were_learned_of_several_teachers_go_by_what_they_mean():
    """`nuclei.np` becomes `np`; of two teachers' nuclei the first one's, and what nobody asks for stays behind."""
    nuclei = (
        ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),
        ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV),
    )
    source = used(
        Student(StudentConfig(backbone="csat_nano"), [on_tile(spec, name) for name in ("a", "b") for spec in nuclei])
    )
    model = Student(StudentConfig(backbone="csat_nano"), nuclei)
    moved = transfer(source, model, parts=ALL, source_name="runs/first")
    assert {name for name in moved if name.startswith("heads")} == model.tensors_of(HEADS).keys()
    for spec in nuclei:
        theirs = list(source.tensors_of_head(f"a.{spec.name}").values())
        for tensor, other in zip(model.tensors_of_head(spec.name).values(), theirs, strict=True):
            assert torch.equal(tensor, other)
