"""The paper's folders of masks and scores, in and out, without running what a file holds."""

import os
from collections import UserDict
from itertools import count
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.regions import Entries, Region
from freezetrain.scoring import (
    Scores,
    export_masks,
    export_scores,
    import_masks,
    import_scores,
    select,
)
from freezetrain.scoring.paper_layout import holds_masks


def region() -> Region:
    torch.manual_seed(0)
    return Region(
        {
            "model.layers.0.mlp.up_proj.weight": Entries.from_mask(torch.rand(8, 9) < 0.2),
            "model.norm.weight": Entries.whole((9,)),
        }
    )


def test_files_are_bool_tensors_named_by_parameter_and_come_back(tmp_path):
    folder = export_masks(region(), tmp_path / "masks")
    assert sorted(os.listdir(folder)) == [f"{name}.pt" for name in region()]
    for name, entries in region().items():
        mask = torch.load(folder / f"{name}.pt", weights_only=True)
        assert torch.equal(mask, entries.mask())
    (folder / "README.md").write_text("not a mask")
    assert import_masks(folder) == region()


@pytest.mark.parametrize("name", ["../up", "a/b", "/root", "a\\b", "..", "", "a..b", "C:x", ".a"])
def test_names_that_leave_the_folder_are_refused_and_nothing_is_written(tmp_path, name):
    bad = Region({"good": Entries.whole((3,)), name: Entries.whole((3,))})
    with pytest.raises(UserError, match="cannot be both a parameter's name and a file's"):
        export_masks(bad, tmp_path / "masks")
    assert os.listdir(tmp_path) == []


def test_odd_file_names_and_links_are_refused(tmp_path):
    torch.save(torch.ones(3, dtype=torch.bool), tmp_path / "outside")
    for file, words in [("a..b.pt", "cannot be both"), ("w.pt", "link or not a file")]:
        folder = tmp_path / f"folder of {file}"
        folder.mkdir()
        (folder / file).symlink_to(tmp_path / "outside")
        for read in (import_masks, import_scores, holds_masks):
            with pytest.raises(UserError, match=words):
                read(folder)


def test_a_link_that_takes_the_place_of_a_file_is_refused(tmp_path):
    torch.save(torch.ones(3), tmp_path / "layers.0.w.pt")
    scores = import_scores(tmp_path)
    (tmp_path / "layers.0.w.pt").rename(tmp_path / "outside")
    (tmp_path / "layers.0.w.pt").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="link or not a file"):
        scores["layers.0.w"]


class Payload:
    """Creates a folder when unpickled without weights_only."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_that_hold_anything_else_are_refused_and_never_run(tmp_path):
    folders = (tmp_path / str(number) for number in count())

    def load(thing):
        folder = next(folders)
        folder.mkdir()
        if isinstance(thing, bytes):
            (folder / "w.pt").write_bytes(thing)
        else:
            torch.save(thing, folder / "w.pt")
        return import_masks(folder)

    with pytest.raises(UserError, match=r"w.pt: it is a pickle that holds more than tensors"):
        load(Payload(str(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(
        UserError, match=r"'w': expected a mask of dtype torch.bool, got torch.float"
    ):
        load(torch.ones(3))
    with pytest.raises(UserError, match=r"expected a dense tensor of masks .* without data"):
        load(torch.ones(3, dtype=torch.bool, device="meta"))
    with pytest.raises(UserError, match=r"expected a dense tensor of masks .* got dict"):
        load({"mask": torch.ones(3, dtype=torch.bool)})
    whole = export_masks(region(), tmp_path / "masks") / "model.norm.weight.pt"
    for data in (b"", b"text", whole.read_bytes()[:-30]):
        with pytest.raises(UserError, match=r"cannot read the masks in .*w.pt: .*torch.save"):
            load(data)


def mask(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: mask(1).expand(10**11), "100,000,000,000 entries that share 1 stored values"),
        (lambda: mask(3).expand(4, 3), "12 entries that share 3 stored values"),
        (lambda: mask(4).as_strided((4, 4), (0, 1)), "16 entries that share 4"),
        (lambda: mask(3, 3).to_sparse(), "of layout torch.sparse_coo"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_tensors_without_a_value_for_each_entry_are_refused(tmp_path, make, complaint):
    torch.save(make(), tmp_path / "layers.0.w.pt")
    for read in (import_masks, holds_masks):
        with pytest.raises(UserError, match=complaint):
            read(tmp_path)


def test_a_compressed_file_is_refused(tmp_path):
    torch.save(mask(10**6), tmp_path / "plain")
    with ZipFile(tmp_path / "plain") as plain, ZipFile(tmp_path / "w.pt", "w", ZIP_DEFLATED) as out:
        for name in plain.namelist():
            out.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"it is compressed; make the file again with torch.save"):
        import_masks(tmp_path)


def test_masks_that_the_disk_cannot_hold_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"may take .* TB and the disk of .* left"):
        export_masks(
            Region({f"a{n}": Entries.whole((2**36,)) for n in range(10**4)}), tmp_path / "x"
        )


def test_missing_or_empty_folders_and_existing_targets_are_refused(tmp_path):
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="found none in"):
            import_masks(folder)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=r"cannot write to .*it exists"):
        export_masks(region(), tmp_path / "there")


def grad_mul_param(folder):
    """What the authors' script saves: signed, 16 bits, still attached, of every parameter."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    saved = {}
    for name, shape in [
        ("model.embed_tokens.weight", (5, 3)),
        ("model.layers.0.mlp.up_proj.weight", (8, 9)),
        ("model.layers.1.input_layernorm.weight", (9,)),
        ("model.norm.weight", (9,)),
    ]:
        saved[name] = torch.randn(shape, generator=generator).bfloat16().requires_grad_()
        torch.save(saved[name] * 1, folder / f"{name}.pt")
    return saved


def test_scores_are_the_sizes_of_what_layers_have(tmp_path):
    saved = grad_mul_param(tmp_path / "zh")
    scores = import_scores(tmp_path / "zh", "zh")
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"]
    assert list(scores) == names
    assert scores.shapes == {names[0]: (8, 9), names[1]: (9,)}
    for name in names:
        assert torch.equal(scores[name], saved[name].detach().float().abs())
        assert not scores[name].requires_grad
    assert scores.made["left_out"] == ["model.embed_tokens.weight", "model.norm.weight"]
    assert scores.made["language"] == "zh"
    # As the authors' script selects: torch.topk of the sum over languages, per tensor.
    total = Scores.sum([scores, scores])
    top = (2 * saved[names[0]].detach().float().abs()).flatten().topk(7).indices
    region = select(total, 0.1)
    assert region.names == names[:1]
    assert region.indices(names[0]).tolist() == sorted(top.tolist())
    assert select(total, 0.1, norms=True).names == names


def test_scores_come_back(tmp_path):
    generator = torch.Generator().manual_seed(2)
    tensors = {f"h.{n}.w": torch.rand(3, 4, generator=generator) for n in range(2)}
    # One memory behind both, as in a file that is mapped.
    both = torch.stack(list(tensors.values()))
    scores = Scores(dict(zip(tensors, both, strict=True)), made={"method": "taylor"})
    folder = export_scores(scores, tmp_path / "scores")
    assert sorted(os.listdir(folder)) == ["h.0.w.pt", "h.1.w.pt"]
    for name, tensor in tensors.items():
        loaded = torch.load(folder / f"{name}.pt", weights_only=True)
        assert torch.equal(loaded, tensor)
        assert loaded.untyped_storage().nbytes() == tensor.nbytes
    back = import_scores(folder)
    assert all(torch.equal(back[name], scores[name]) for name in tensors)
    assert [holds_masks(folder), holds_masks(export_masks(region(), tmp_path / "masks"))] == [
        False,
        True,
    ]
    with pytest.raises(UserError, match=r"gradient × parameter .*got those of method 'fisher'"):
        export_scores(Scores(tensors, made={"method": "fisher"}), tmp_path / "fisher")
    assert not (tmp_path / "fisher").exists()


def test_scores_that_are_none_are_refused(tmp_path):
    torch.save(torch.ones(3), tmp_path / "lm_head.pt")
    with pytest.raises(UserError, match=r"in numbered layers .* got 'lm_head' and none of these"):
        import_scores(tmp_path)
    torch.save(torch.arange(3), tmp_path / "layers.0.w.pt")
    with pytest.raises(UserError, match=r"floating scores of 'layers.0.w', got torch.int64"):
        import_scores(tmp_path)["layers.0.w"]
    with pytest.raises(UserError, match=r"bool masks or floating scores .* got torch.int64"):
        holds_masks(tmp_path)


def test_a_failed_export_leaves_nothing(tmp_path):
    scores = Scores(
        Failing({"a.0": torch.ones(2), "a.1": torch.ones(2)}), made={"method": "taylor"}
    )
    with pytest.raises(UserError, match=r"cannot write to .*no space"):
        export_scores(scores, tmp_path / "scores")
    assert os.listdir(tmp_path) == []


class Failing(UserDict):
    """A disk that gives up at the second tensor."""

    def __getitem__(self, name):
        if name == "a.1":
            raise OSError("no space")
        return super().__getitem__(name)


def test_files_of_old_torch_are_read(tmp_path):
    torch.save(torch.ones(3), tmp_path / "h.0.w.pt", _use_new_zipfile_serialization=False)
    assert import_scores(tmp_path)["h.0.w"].tolist() == [1, 1, 1]
