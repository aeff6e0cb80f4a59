"""Names of a region against tensors of a live model, wrapped as trainers wrap it."""

import pytest
import torch
from torch import nn

from freezetrain.errors import UserError
from freezetrain.regions import Base, Entries, Region, fingerprint


class Net(nn.Module):
    """Two layers, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embed.weight


class Holder(nn.Module):
    """Holds modules as attributes, as DDP, a LightningModule or a distiller does."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def region() -> Region:
    return Region(
        {
            "layers.0.weight": Entries.from_rows((6, 6), [2]),
            "layers.1.weight": Entries.from_indices((6, 6), [0, 7]),
            "layers.1.bias": Entries.empty((6,)),
        }
    )


def test_the_parameters_themselves_come_back_in_model_order_without_the_empty():
    net = Net()
    resolved = region().resolve(net)
    assert [item.name for item in resolved] == ["layers.0.weight", "layers.1.weight"]
    assert resolved[0].parameter is net.layers[0].weight
    assert resolved[1].parameter is net.layers[1].weight
    assert resolved[1].entries == region()["layers.1.weight"]


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda net: Holder(module=net), "module."),
        (lambda net: Holder(module=Holder(model=net)), "module.model."),
        (lambda net: torch.compile(net), "_orig_mod."),
        (lambda net: Holder(module=torch.compile(net)), "module._orig_mod."),
        (lambda net: Holder(metric=nn.Linear(2, 2), model=net), "model."),
    ],
)
def test_found_under_wrappers(wrap, prefix):
    net = Net()
    model = wrap(net)
    resolved = region().resolve(model)
    assert [item.name for item in resolved] == [
        f"{prefix}layers.0.weight",
        f"{prefix}layers.1.weight",
    ]
    assert resolved[0].parameter is net.layers[0].weight
    assert dict(model.named_parameters())[resolved[1].name] is net.layers[1].weight


def test_found_where_single_layers_are_compiled():
    net = Net()
    plain = net.layers[1]
    net.layers[1] = torch.compile(plain)
    resolved = region().resolve(net)
    assert resolved[1].name == "layers.1._orig_mod.weight"
    assert resolved[1].parameter is plain.weight


def test_two_that_fit_are_refused_whichever_lies_deeper():
    shallow, deep = Net(), Net()
    model = Holder(helper=Holder(teacher=deep), student=shallow)
    with pytest.raises(UserError, match=r"fits the submodules 'helper\.teacher' and 'student'"):
        region().resolve(model)
    assert region().resolve(shallow)[0].parameter is shallow.layers[0].weight


def test_student_and_teacher_are_refused_but_one_model_under_two_names_is_not():
    with pytest.raises(UserError, match=r"submodules 'student' and 'teacher'; pass the one"):
        region().resolve(Holder(student=Net(), teacher=Net()))
    net = Net()
    resolved = region().resolve(Holder(model=net, alias=net))
    assert resolved[0].parameter is net.layers[0].weight
    assert len(resolved) == 2


def test_names_of_a_tied_parameter_give_one_item_with_the_union():
    net = Net()
    tied = Region(
        {
            "head.weight": Entries.from_rows((20, 6), [1]),
            "embed.weight": Entries.from_rows((20, 6), [3]),
        }
    )
    (resolved,) = tied.resolve(net)
    assert resolved.name == "embed.weight"
    assert resolved.parameter is net.embed.weight
    assert resolved.entries == Entries.from_rows((20, 6), [1, 3])
    assert resolved.key in tied
    (resolved,) = Region({"head.weight": Entries.whole((20, 6))}).resolve(net)
    assert resolved.name == "embed.weight"


def test_the_key_is_the_name_that_the_region_has():
    net = Net()
    both = Region(
        {"head.weight": Entries.from_rows((20, 6), [1]), "embed.weight": Entries.empty((20, 6))}
    )
    (resolved,) = both.resolve(net)
    assert (resolved.name, resolved.key) == ("embed.weight", "head.weight")  # which has the entries
    for item in region().resolve(Holder(module=torch.compile(net))):
        assert item.name == f"module._orig_mod.{item.key}"
        assert item.key in region()


def test_the_whole_shape_of_a_partitioned_parameter_counts():
    """ZeRO-3 leaves parameters empty and notes their shape."""
    net = Net()
    for layer in net.layers:
        layer.weight.ds_shape, layer.weight.data = layer.weight.shape, torch.empty(0)
        layer.bias.ds_shape, layer.bias.data = layer.bias.shape, torch.empty(0)
    resolved = region().resolve(net)
    assert [item.entries for item in resolved] == [region()[item.key] for item in resolved]
    with pytest.raises(UserError, match=r"the model of shape \[6, 6\]"):
        Region({"layers.0.weight": Entries.empty((0,))}).resolve(net)


def test_missing_names_are_refused_with_near_misses_even_when_empty():
    wrong = Region({**region(), "layers.0.weigth": Entries.empty((6, 6))})
    with pytest.raises(UserError, match=r"no parameter 'layers.0.weigth' \(did you mean 'layers.0"):
        wrong.resolve(Holder(module=Net()))
    with pytest.raises(UserError, match=r"no parameter 'layers.0.weight'.* and 2 more of .* 3"):
        region().resolve(nn.Linear(2, 2))


def test_other_shapes_are_refused():
    wrong = Region({"layers.0.weight": Entries.empty((6, 7))})
    with pytest.raises(UserError, match=r"'layers.0.weight' of shape \[6, 7\], .* \[6, 6\]"):
        wrong.resolve(Net())


def test_a_region_without_names_resolves_to_nothing():
    assert Region({}).resolve(Net()) == []


def test_check_base_accepts_the_wrapped_base_and_refuses_another():
    net = Net()
    known = Region(region(), base=Base("net", None, fingerprint(net)))
    known.check_base(net)
    known.check_base(Holder(metric=nn.Linear(1, 1), model=net))
    with pytest.raises(UserError, match="made for another model, net"):
        known.check_base(Net())
    region().check_base(Net())  # a region of no known base fits any
