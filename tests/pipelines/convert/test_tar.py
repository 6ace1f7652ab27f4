import io
import os
import tarfile

import pytest
from support.sources import content

from pipelines.convert import open_source


def make_tar(path, *members: str | tuple[str, bytes], mode: str = "w"):
    """Each member's content is its name, or what is given."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            name, content = member if isinstance(member, tuple) else (member, os.fsencode(member))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def test_class_folders(tmp_path):
    """The folders that all images share are no classes, whatever stands before them."""
    for prefix in ("", "./", "set/", "a/b/", "../", "../../set/"):
        members = [f"{prefix}owl/1.jpg", f"{prefix}README", f"{prefix}auk/deep/2.png", f"{prefix}.x/3.jpg"]
        source = open_source([make_tar(tmp_path / "birds.tar", *members)])
        assert (source.kind, source.name, source.class_names) == ("tar", "birds.tar", ["auk", "owl"])
        assert content(source) == [(members[0], 1), (members[2], 0)]
        assert source.remarks == [
            "ignored, not image files: 1 without a suffix",
            "ignored folders: '.x'",
            "labels from folders: 'auk', 'owl'",
        ]


def test_folders_above(tmp_path):
    """The way up is no class, nor hidden."""
    source = open_source([make_tar(tmp_path / "a.tar", "../owl/1.jpg", "auk/2.jpg", "../.x/3.jpg")])
    assert source.class_names == ["auk", "owl"]
    assert content(source) == [("../owl/1.jpg", 1), ("auk/2.jpg", 0)]


def test_links(tmp_path):
    """Links to members of the same tar: hard links by name, symbolic links by relative path; also links to links."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./a/0.jpg", "b/1.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(name[-5:].encode()))
        for name, kind, target in (
            ("b/hard.jpg", tarfile.LNKTYPE, "./a/0.jpg"),
            ("b/soft.jpg", tarfile.SYMTYPE, "../a/0.jpg"),
            ("a/again.jpg", tarfile.SYMTYPE, "../b/soft.jpg"),
            ("a/lost.jpg", tarfile.SYMTYPE, "/elsewhere/0.jpg"),
            ("a/notes.txt", tarfile.SYMTYPE, "0.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    source = open_source([str(tmp_path / "a.tar")])
    found = {source.item(k): (int(source.labels[k]), source.read(k)) for k in range(len(source.labels))}
    assert found == {
        "./a/0.jpg": (0, b"0.jpg"),
        "b/1.jpg": (1, b"1.jpg"),
        "b/hard.jpg": (1, b"0.jpg"),
        "b/soft.jpg": (1, b"0.jpg"),
        "a/again.jpg": (0, b"0.jpg"),
    }
    assert source.remarks[0] == "ignored: 1 links to what is no image of the same tar"


def test_a_name_may_be_long(tmp_path):
    """Over 100 characters a tar needs a further header before the member."""
    name = "x" * 90 + "/" + "y" * 90 + ".jpg"
    source = open_source([make_tar(tmp_path / "a.tar", name, "z/2.jpg")])
    assert content(source) == [(name, 0), ("z/2.jpg", 1)]


def test_flat(tmp_path):
    source = open_source([make_tar(tmp_path / "a.tar", "all/1.jpg", "all/2.jpg")])
    assert source.class_names is None
    assert source.remarks == ["no labels: no folders that differ, and no .cls files"]
    assert content(source) == [("all/1.jpg", -1), ("all/2.jpg", -1)]


def test_webdataset_pairs(tmp_path):
    """A key ends at the first dot; pairs need not stand side by side; keys may repeat from tar to tar."""
    first = make_tar(
        tmp_path / "0.tar", ("a/k.1.cls", b"3"), "a/k.jpg", "a/l.jpg", ("a/l.cls", b"12\n"), "a/k.json"
    )
    second = make_tar(tmp_path / "1.tar", ("a/k.cls", b"0"), "a/k.jpg")
    source = open_source([first, second])
    assert (source.name, source.class_names) == ("0.tar and 1 more", None)
    assert source.remarks == [
        "ignored, not image files: 1 .json; labels in .json files are not read",
        "labels from .cls files: 3 classes",
    ]
    assert content(source) == [("0.tar/a/k.jpg", 3), ("0.tar/a/l.jpg", 12), ("1.tar/a/k.jpg", 0)]


def test_webdataset_samples_of_several_images(tmp_path):
    """`a.seg.png` is another field of the sample `a`; of `b` there is no other image."""
    members = ["./a.jpg", "a.seg.png", ("a.CLS", b"3"), "b.left.png", ("b.cls", b"4")]
    source = open_source([make_tar(tmp_path / "0.tar", *members)])
    assert content(source) == [("./a.jpg", 3), ("b.left.png", 4)]
    assert source.remarks == ["ignored: 1 further images of samples", "labels from .cls files: 2 classes"]


def test_several_tars_of_one_set(tmp_path):
    paths = [make_tar(tmp_path / f"{k}.tar", f"set/c{k}/1.jpg", f"set/c{1 - k}/2.jpg") for k in (0, 1)]
    assert content(open_source(paths)) == [
        ("0.tar/set/c0/1.jpg", 0),
        ("0.tar/set/c1/2.jpg", 1),
        ("1.tar/set/c1/1.jpg", 1),
        ("1.tar/set/c0/2.jpg", 0),
    ]


def test_a_tar_per_class(tmp_path):
    """ImageNet's class tars, as `ILSVRC2012_img_train.tar` holds them: the tars' names are the classes."""
    names = ["n01443537", "n01440764", "n02085620"]
    paths = [make_tar(tmp_path / f"{name}.tar", f"{name}_{k}.JPEG") for k, name in enumerate(names)]
    source = open_source(paths)
    assert source.class_names == sorted(names)
    assert source.labels.tolist() == [1, 0, 2]
    assert source.remarks == ["labels from the tars' names: 'n01440764', 'n01443537', 'n02085620'"]
    source = open_source([make_tar(tmp_path / f"{name}.TAR", "all/1.jpg") for name in ("owl", "auk")])
    assert (source.class_names, source.labels.tolist()) == (["auk", "owl"], [1, 0])


def test_a_class_tar_without_images(tmp_path):
    paths = [make_tar(tmp_path / "owl.tar", "1.jpg"), make_tar(tmp_path / "auk.tar", "notes.txt")]
    source = open_source([*paths, make_tar(tmp_path / "kea.tar", "1.jpg")])
    assert (source.class_names, source.labels.tolist()) == (["kea", "owl"], [1, 0])
    assert "no classes, since no image is in these tars: 'auk.tar'" in source.remarks


@pytest.mark.parametrize("names", [("train-0007", "train-0008"), ("00000", "00001", "00002"), ("a2b", "a1b")])
def test_shards_are_no_classes(tmp_path, names):
    source = open_source([make_tar(tmp_path / f"{name}.tar", f"{name}/../1.jpg", "1.json") for name in names])
    assert (source.class_names, set(source.labels.tolist())) == (None, {-1})
    assert any("like shards" in remark for remark in source.remarks)
    assert any("labels in .json files are not read" in remark for remark in source.remarks)


def test_split_tars_are_no_classes(tmp_path):
    with pytest.raises(ValueError, match="train and val look like splits"):
        open_source([make_tar(tmp_path / f"{name}.tar", "1.jpg") for name in ("train", "val")])


@pytest.mark.parametrize("junk", ["__MACOSX", "lost+found", ".cache"])
def test_folders_of_systems_are_no_classes(tmp_path, junk):
    members = [
        "set/cat/1.jpg",
        f"{junk}/set/cat/._1.jpg",
        f"set/{junk}/2.jpg",
        "set/dog/.DS_Store",
        "set/dog/1.jpg",
    ]
    source = open_source([make_tar(tmp_path / "a.tar", *members)])
    assert source.class_names == ["cat", "dog"]
    assert content(source) == [("set/cat/1.jpg", 0), ("set/dog/1.jpg", 1)]
    assert source.remarks[0] == f"ignored folders: '{junk}'"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("notes.txt",), r"no image in it \(.*\); ignored, not image files: 1 .txt"),
        (("1.jpg", ("1.cls", b"owl")), "1.cls' holds b'owl', no class number"),
        (("1.jpg", ("1.cls", b"9" * 30)), "1.cls' holds b'9+', no class number"),
        (("1.jpg", ("1.cls", b"1048576")), r"holds b'1048576', .*0 to 1,048,575"),
        (("1.jpg", ("1.cls", b"")), "holds b'', no class number"),
        (("1.jpg", "2.jpg", ("1.cls", b"1")), "'2.jpg' has no .cls file"),
        (("a/1.jpg", "b/1.jpg", "2.jpg"), "images lie beside folders"),
        (("x/train/a/1.jpg", "x/val/a/1.jpg"), "train and val look like splits"),
    ],
)
def test_ambiguous_tars_are_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        open_source([make_tar(tmp_path / "a.tar", *members)])


@pytest.mark.parametrize(("mode", "remedy"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_a_compressed_tar_names_the_remedy(tmp_path, mode, remedy):
    with pytest.raises(ValueError, match=f"is compressed.*{remedy}"):
        open_source([make_tar(tmp_path / "a.tar", "1.jpg", mode=mode)])


def test_what_is_no_whole_tar(tmp_path):
    (tmp_path / "text.tar").write_bytes(b"this is no tar" * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    whole = make_tar(tmp_path / "whole.tar", ("1.jpg", bytes(5000)), ("2.jpg", bytes(5000)))
    data = (tmp_path / "whole.tar").read_bytes()
    for length in (3000, 512 + 5120 + 100, 512 + 5120 + 512 + 100):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.tar: corrupt tar"):
            open_source([str(tmp_path / "cut.tar")])
    broken = bytearray(data)
    broken[512 + 5120 + 5] = 255  # in the second header, so that its checksum is wrong
    (tmp_path / "cut.tar").write_bytes(broken)
    with pytest.raises(ValueError, match=r"cut\.tar: .*at byte 5,632, after '1.jpg', there is no header"):
        open_source([str(tmp_path / "cut.tar")])
    for name in ("text.tar", "empty.tar"):
        with pytest.raises(ValueError, match=f"{name}: no tar file"):
            open_source([str(tmp_path / name)])
    source = open_source([whole])
    (tmp_path / "whole.tar").write_bytes(data[:6000])
    with pytest.raises(OSError, match="truncated"):
        source.read(1)


def tar_bytes(tmp_path, *members: str | tuple[str, bytes], mode: str = "w") -> bytes:
    make_tar(tmp_path / "inner.tmp", *members, mode=mode)
    return (tmp_path / "inner.tmp").read_bytes()


def test_a_tar_of_class_tars(tmp_path):
    """As if the inner ones had been given: the names are classes, and nothing is unpacked."""
    inner = [
        (f"set/{name}.tar", tar_bytes(tmp_path, f"{name}_1.JPEG", f"{name}_2.JPEG"))
        for name in ("owl", "auk")
    ]
    source = open_source([make_tar(tmp_path / "train.tar", *inner, "README")])
    assert (source.kind, source.name, source.class_names) == ("tar", "train.tar", ["auk", "owl"])
    assert content(source) == [
        ("set/owl.tar/owl_1.JPEG", 1),
        ("set/owl.tar/owl_2.JPEG", 1),
        ("set/auk.tar/auk_1.JPEG", 0),
        ("set/auk.tar/auk_2.JPEG", 0),
    ]
    assert "labels from the tars' names: 'auk', 'owl'" in source.remarks


def test_tars_of_folders_and_deeper_ones(tmp_path):
    """The folder of a tar, and a tar around tars, are folders on the way to the images."""
    cat, dog = tar_bytes(tmp_path, "1.jpg"), tar_bytes(tmp_path, "2.jpg")
    middle = tar_bytes(tmp_path, ("cat.tar", cat), ("dog.tar", dog))
    source = open_source([make_tar(tmp_path / "a.tar", ("all/classes.tar", middle))])
    assert content(source) == [("all/classes.tar/cat.tar/1.jpg", 0), ("all/classes.tar/dog.tar/2.jpg", 1)]
    assert source.class_names == ["cat", "dog"]
    source = open_source([make_tar(tmp_path / "b.tar", ("cat/0.tar", cat), ("dog/0.tar", dog))])
    assert (source.class_names, source.labels.tolist()) == (["cat", "dog"], [0, 1])
    with pytest.raises(ValueError, match="train and val look like splits"):
        open_source([make_tar(tmp_path / "c.tar", ("train/cat.tar", cat), ("val/cat.tar", dog))])


def test_shards_in_a_tar_are_no_classes(tmp_path):
    inner = [(f"{k}.tar", tar_bytes(tmp_path, f"{k}a.jpg", (f"{k}a.cls", b"%d" % k))) for k in (3, 4)]
    source = open_source([make_tar(tmp_path / "a.tar", *inner)])
    assert content(source) == [("3.tar/3a.jpg", 3), ("4.tar/4a.jpg", 4)]
    inner = [(f"{k}.tar", tar_bytes(tmp_path, f"{k}a.jpg")) for k in (3, 4)]
    assert open_source([make_tar(tmp_path / "b.tar", *inner)]).class_names is None


def test_tars_are_opened_to_a_depth(tmp_path):
    data = tar_bytes(tmp_path, "1.jpg")
    for _ in range(6):
        data = tar_bytes(tmp_path, ("deeper.tar", data))
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"no image in it .* 1 \.tar"):
        open_source([str(tmp_path / "a.tar")])


def test_an_inner_tar_stays_in_its_bytes(tmp_path):
    """Its headers are checked within its extent: the member that goes beyond it is in the outer tar's bytes."""
    whole = tar_bytes(tmp_path, ("1.jpg", bytes(5000)))
    outer = make_tar(tmp_path / "a.tar", ("cat.tar", whole[:3072]), ("dog.tar", whole))
    with pytest.raises(
        ValueError, match=r"a\.tar: 'cat\.tar': corrupt tar: member '1\.jpg' at byte 0: has 5,000"
    ):
        open_source([outer])
    outer = make_tar(tmp_path / "b.tar", ("cat.tar", whole), ("dog.tar", b"<html>" * 99))
    with pytest.raises(ValueError, match=r"b\.tar: 'dog\.tar': no tar file, but an HTML page"):
        open_source([outer])
    packed = tar_bytes(tmp_path, "1.jpg", mode="w:gz")
    with pytest.raises(ValueError, match=r"'dog\.tar': no tar file, but .*gzip; gunzip it first"):
        open_source([make_tar(tmp_path / "c.tar", ("dog.tar", packed))])


@pytest.mark.slow
def test_a_million_members_and_a_bad_header(tmp_path):
    """The error names the member before the damage; reading up to there takes seconds, and no memory per byte."""
    info = tarfile.TarInfo("a/x.jpg")
    with open(tmp_path / "a.tar", "wb") as file:
        for block in range(1000):
            headers = b""
            for k in range(1000):
                info.name = f"{block}/{k}.jpg"
                headers += info.tobuf(tarfile.USTAR_FORMAT)
            file.write(headers)
        file.write(b"x" * 512 + bytes(1024))
    with pytest.raises(ValueError, match=r"at byte 512,000,000, after '999/999\.jpg', there is no header"):
        open_source([str(tmp_path / "a.tar")])


def test_labels_in_json_files(tmp_path):
    members = [
        *("a.jpg", ("a.json", b'{"label": 3, "fine": "owl"}')),
        *("b.jpg", ("b.json", b'{"label": 4, "fine": "auk"}')),
    ]
    path = make_tar(tmp_path / "0.tar", *members)
    source = open_source([path])
    assert content(source) == [("a.jpg", 3), ("b.jpg", 4)]
    assert "labels from .json files: 2 classes" in source.remarks
    source = open_source([path], columns="label=json.fine")
    assert (content(source), source.class_names) == ([("a.jpg", 1), ("b.jpg", 0)], ["auk", "owl"])
    with pytest.raises(ValueError, match=r"'a\.json' .* its key 'coarse'; its keys: label, fine"):
        open_source([path], columns="label=json.coarse")


def test_labels_in_txt_files(tmp_path):
    """Numbers are labels; captions are not, unless the user says that they are names."""
    numbers = make_tar(tmp_path / "0.tar", "a.jpg", ("a.txt", b"7\n"), "b.jpg", ("b.txt", b"0"), "README.txt")
    assert content(open_source([numbers])) == [("a.jpg", 7), ("b.jpg", 0)]
    names = make_tar(tmp_path / "1.tar", "a.jpg", ("a.txt", b"an owl\n"), "b.jpg", ("b.txt", b"an auk"))
    assert open_source([names]).labels.tolist() == [-1, -1]
    source = open_source([names], columns="label=txt")
    assert (source.labels.tolist(), source.class_names) == ([1, 0], ["an auk", "an owl"])


@pytest.mark.parametrize(
    ("members", "columns", "message"),
    [
        (("a.jpg", ("a.json", b"{")), "label=json", r"'a\.json' is no valid JSON"),
        (("a.jpg", ("a.json", b"[" * 100_000)), "label=json", r"'a\.json' is no valid JSON"),
        (("a.jpg", ("a.json", b"[1]")), "label=json", "its keys: none"),
        (("a.jpg", ("a.json", b'{"label": -5}')), "label=json", "holds b'-5', no class number"),
        (("a.jpg", ("a.json", b'{"label": 2000000}')), "label=json", "no class number"),
        (("a.jpg", ("a.json", b'{"label": true}')), "label=json", "no number or name"),
        (("a.jpg", "b.jpg", ("a.json", b'{"label": 1}')), "label=json", r"'b\.jpg' has no \.json file"),
        (
            ("a.jpg", "b.jpg", ("a.json", b'{"label": 1}'), ("b.json", b'{"label": "x"}')),
            "label=json",
            "number as its label and others have names",
        ),
        (("a.jpg", ("a.txt", b"")), "label=txt", "holds b'', no class number"),
        (("a.jpg",), "label=xml", "cls, txt, json or json.KEY"),
        (("a.jpg",), "label=cls.x", "cls, txt, json or json.KEY"),
        (("a.jpg",), "image=png", "a tar has no such column"),
        (("a.jpg",), "labels=cls", "--columns must be image=NAME,label=NAME"),
    ],
)
def test_labels_that_say_nothing_clear(tmp_path, members, columns, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_source([make_tar(tmp_path / "0.tar", *members)], columns=columns)
    assert str(caught.value).isprintable()


def test_json_files_without_a_label_are_ignored(tmp_path):
    """Those of img2dataset have captions and addresses."""
    members = ("a.jpg", ("a.json", b'{"caption": "x"}'), "b.jpg", ("b.json", b"no JSON"))
    source = open_source([make_tar(tmp_path / "0.tar", *members)])
    assert source.labels.tolist() == [-1, -1]
    assert source.remarks[0] == "ignored, not image files: 2 .json; labels in .json files are not read"


def test_repeated_names(tmp_path):
    """A tar may hold a name more than once, when it was added to: all are images."""
    source = open_source([make_tar(tmp_path / "a.tar", "a/1.jpg", "b/1.jpg", "a/1.jpg")])
    assert content(source) == [("a/1.jpg", 0), ("b/1.jpg", 1), ("a/1.jpg", 0)]
    assert "1 images have the name of an earlier one; all are taken" in source.remarks


def test_names_that_are_not_utf_8(tmp_path):
    inner = tar_bytes(tmp_path, "x\udce9.jpg")
    source = open_source([make_tar(tmp_path / "a.tar", ("caf\udce9.tar", inner), ("d.tar", inner))])
    assert source.class_names == ["caf\\udce9", "d"]
    assert source.item(0) == "caf\\udce9.tar/x\\udce9.jpg"
